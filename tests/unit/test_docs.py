"""The documentation against what there is: commands that exist, and two languages that agree."""

import re
import shlex

import click
import pytest

from tests.cra_lines import check_line, words_of
from tests.docs import NOT_RUN, NOT_SHELL, PAGES, SHELL, blocks, reason_not_to_run, shell_blocks
from tests.servers import ROOT

COMMANDS = [
    (str(block), command)
    for page in PAGES
    for block in shell_blocks(page)
    for command in block.commands
]


def test_the_pages_are_read() -> None:
    """There are pages, blocks and commands: the tests beside this one look at something."""
    assert {"README.md", "README.zh-CN.md", "docs/operations.md", "docs/calling.md"} <= set(PAGES)
    assert len(COMMANDS) > 60


def test_every_block_says_what_it_is() -> None:
    """A block is commands, Python, or of a language that is known to be neither."""
    known = SHELL | NOT_SHELL | {"python"}
    strange = [str(one) for page in PAGES for one in blocks(page) if one.language not in known]
    assert not strange, f"name their language, or add it to tests/docs.py: {strange}"


@pytest.mark.parametrize(("where", "command"), COMMANDS)
def test_each_command_is_one(where: str, command: str) -> None:
    """`cra` would take it with these options; the Makefile has the target; the file is there.

    Break: rename an option of `cra`, or a target of the Makefile, and not the docs.
    """
    words = words_of(re.sub(r"^(\w+=\S+ )+", "", command))
    if words[0] == "cra":
        check_line(words[1:])
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{re.escape(words[1])}:", makefile, re.MULTILINE), where
    elif words[0].endswith("python") and words[1] == "-m" and words[2].startswith("tests."):
        path = ROOT / words[2].replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), where
    else:
        assert shlex.split(command), where


def test_a_command_that_is_none_is_found() -> None:
    """The test above can fail."""
    with pytest.raises(click.UsageError):
        check_line(shlex.split("put photos/ --metadata city=西安"))


def test_the_list_of_what_is_not_run_has_no_leftovers() -> None:
    """Each pattern still stands for a command somewhere, and has its reason."""
    for pattern, reason in NOT_RUN.items():
        assert reason
        assert any(re.fullmatch(pattern, command) for _, command in COMMANDS), pattern
    assert any(not reason_not_to_run(command) for _, command in COMMANDS)


def test_links_between_pages_lead_somewhere() -> None:
    """A link that is no address of the web names a file of the repository."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if not re.match(r"[a-z]+:", target):
                assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_the_two_readmes_agree() -> None:
    """They have the same commands, sections, tables and figures, and link to each other.

    Break: change a figure or a command in one of them alone.
    """
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in _READMES)
    assert f"]({_READMES[1]})" in english
    assert f"]({_READMES[0]}" in chinese
    there = [[c for b in shell_blocks(name) for c in b.commands] for name in _READMES]
    assert there[0] == there[1]
    code = [[b.text for b in blocks(name) if b.language == "python"] for name in _READMES]
    assert [_without_comments(one) for one in code[0]] == [_without_comments(b) for b in code[1]]
    # The table of settings stands in the English one alone; the other links to it.
    english = re.sub(r"<!-- settings -->.*<!-- /settings -->", "", english, flags=re.DOTALL)
    for pattern in (r"^## ", r"^\|"):
        counts = [len(re.findall(pattern, text, re.MULTILINE)) for text in (english, chinese)]
        assert counts[0] == counts[1], pattern
    sections = [re.split(r"^## ", text, flags=re.MULTILINE) for text in (english, chinese)]
    for one, other in zip(*sections, strict=True):
        assert _figures(one) == _figures(other), other.splitlines()[0]


_READMES = ("README.md", "README.zh-CN.md")


def _without_comments(code: str) -> str:
    return re.sub(r"#.*", "", code)


def _figures(text: str) -> list[str]:
    """Return the figures with a decimal point or in thousands, in order of size, as written."""
    return sorted(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])|\d+,\d{3}(?:,\d{3})*", text))
