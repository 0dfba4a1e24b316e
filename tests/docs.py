"""The code blocks of the documentation: what there is, and what of it no test runs, and why not."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from markdown_it import MarkdownIt

from tests.servers import ROOT

PAGES: Final = (
    *sorted(file.name for file in ROOT.glob("*.md")),
    *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")),
)
"""Every page of the documentation, as paths from the repository."""

SHELL: Final = frozenset({"", "sh", "bash", "shell", "console"})
"""What a block says that holds commands; one that is indented says nothing."""

NOT_RUN: Final = {
    r"make (demo|test|test-all|check|bad-inputs|fuzz|bench|faults|load|miniature|quality)": (
        "takes minutes to hours; the target is looked up in the Makefile"
    ),
    r"make (install|proto|locks)": "changes the environment that the tests run in",
    r"(CRA_\w+=\S+ )*make (up|down|status)": (
        "starts and stops a stack of its own: tests/stack.py does it by the same program"
    ),
    r"(kubectl|helm) .*": "needs a cluster; tests/unit/test_k8s_*.py check what it is given",
    r"cra trace .*": "asks for services that are traced; tests/e2e/test_seeing.py",
    r"(CRA_\w+=\S+ )*docker compose .*": (
        "needs Docker; tests/containers runs it where there is an engine"
    ),
    r"cra train .*": "takes minutes by its defaults; tests/integration/test_train_command.py",
    r"cra evaluate .*": "needs what `cra train` leaves; tests/unit/test_evaluation_command.py",
    r"cra releases (publish|activate) RELEASE": "docs/operations.md has the same with names",
    r"cra releases (compare OLD|activate) NEW --queries .*": (
        "needs two embedding services; tests/e2e/test_moving.py"
    ),
    r"grpcurl .*": "is no part of any installation; tests/e2e/test_stack.py asks reflection",
    r"cra --env-file deploy/compose/operator\.env .*": "needs what compose runs; tests/containers",
    r"mc mirror .*": "is a tool of others, for a store of others",
    r"tar .*": "of a stack that is down",
    r"python -m pip install .*": "installs packages",
    r"\.venv/bin/python -m pytest .*": "is a test by itself",
    r"\.venv/bin/python -m tests\.unit\.settings_table": (
        "writes README.md; tests/unit/test_settings.py holds the table"
    ),
    r"python -m cra\.services\.training\.miniature.*": "takes minutes to hours",
    r"python -m cra\.services\.training\.buildings .*": "tests/unit/test_buildings.py",
    r"(go|protoc) .*": "tests/e2e/test_calling.py, where there is a compiler",
}
"""Commands that no test runs, as patterns of the whole command, each with the reason.

One that is neither here nor does what it says fails the tests."""

NOT_SHELL: Final = frozenset(
    {"text", "json", "jsonl", "yaml", "toml", "csv", "proto", "go", "java"}
)
"""What a block says that holds no command and no Python."""

_FIFTY: Final = "asks for an index of 50 images; tests/integration/test_search_quality.py has one"
PYTHON_NOT_RUN: Final = {
    "# One bound for all kinds of queries: a cosine of 0.3 is much for one text and nothing for a "
    "picture.": _FIFTY,
    "# 各种查询同一个界限：余弦 0.3 对一段文字已经很高，对一张图则什么也不是。": _FIFTY,
}
"""First lines of Python blocks that no test runs, each with the reason."""


@dataclass(frozen=True)
class Block:
    """A block of code."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a block of the shell, without comments, each on one line."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        stripped = (re.sub(r"(^|\s+)#\s.*$", "", line).strip() for line in joined.splitlines())
        return [line.removeprefix("$ ") for line in stripped if line]


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of code of a page, those inside lists included."""
    for token in MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8")):
        if token.type in {"fence", "code_block"}:
            assert token.map is not None
            yield Block(page, token.map[0] + 1, token.info.strip(), token.content)


def shell_blocks(page: str) -> list[Block]:
    """Return the blocks of commands of a page."""
    return [block for block in blocks(page) if block.language in SHELL]


def reason_not_to_run(command: str) -> str:
    """Return why no test runs a command; empty if one has to."""
    return next((why for one, why in NOT_RUN.items() if re.fullmatch(one, command)), "")
