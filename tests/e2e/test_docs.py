"""Every command and Python snippet of the documentation, run as it stands on the running stack."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.datasets import write_lines
from tests.docs import (
    PAGES,
    PYTHON_NOT_RUN,
    Block,
    blocks,
    reason_not_to_run,
    shell_blocks,
)
from tests.e2e.test_stack import photograph
from tests.releases import make_tower_release
from tests.servers import ROOT, wait_until
from tests.stack import Stack

MAY_LACK = ("curl", "openssl")
"""Programs that a machine may be without; their commands are then skipped."""


class Desk:
    """A folder where a reader of the docs would stand, with what the commands name."""

    def __init__(self, folder: Path, stack: Stack) -> None:
        self.folder = folder
        settings = stack.settings
        (folder / ".data/run").mkdir(parents=True)
        (folder / ".data/run/stack.env").symlink_to(
            Path(stack.env["CRA_DATA_DIR"]) / "run/stack.env"
        )
        (folder / ".venv").symlink_to(sys.prefix)
        for name in ("proto", "deploy"):
            (folder / name).symlink_to(ROOT / name)
        for number, name in enumerate(("gate.jpg", "tang/hall.jpg")):
            file = folder / "photos" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(photograph(700 + number))
        pairs = folder / "pairs"
        shutil.copytree(folder / "photos", pairs)
        # The first of rendered buildings.
        (folder / "photos/test-000000.jpg").write_bytes(photograph(702))
        rows = [
            {"file": "gate.jpg", "caption": "红色的大门", "group": "gate"},
            {"file": "tang/hall.jpg", "caption": "唐代大殿", "group": "hall"},
        ]
        write_lines(pairs / "captions.jsonl", rows)
        (folder / "queries.txt").write_text("红墙\n飞檐\n", encoding="utf-8")
        model = Path(stack.env["CRA_MODEL"])
        self.release = make_tower_release(folder / ".data/releases", model, model, "docs").name
        if settings.tls_ca:
            shutil.copy(settings.tls_ca, folder / "ca.pem")
        self._words = {
            "/etc/cra": str(folder / "etc"),
            "http://127.0.0.1:19530": settings.milvus_uri,
            "http://127.0.0.1:8080": f"http://127.0.0.1:{settings.web_port}",
            "NAME": self.release,
        }
        self._client = (
            f'"{settings.gateway_target}", api_key="{settings.api_key.get_secret_value()}", '
            f'tls=__import__("cra.shared.tls", fromlist="x").ClientTls('
            f'"{settings.tls_ca}", "{settings.tls_client_cert}", "{settings.tls_client_key}")'
        )
        (folder / "etc").mkdir()
        self._own = {
            name: stack.env[name]
            for name in (
                "CRA_GATEWAY_TARGET",
                "CRA_API_KEY",
                "CRA_TLS_CA",
                "CRA_TLS_CLIENT_CERT",
                "CRA_TLS_CLIENT_KEY",
            )
        }

    def adapted(self, text: str) -> str:
        """Return commands or code with the names that hold on this desk."""
        for word, ours in self._words.items():
            text = text.replace(word, ours)
        return text.replace('SearchClient("dns:///127.0.0.1:50051"', f"SearchClient({self._client}")

    def run(self, command: list[str], **env: str) -> str:
        """Run a program on the desk with nothing of our own environment; return its output."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
                "HOME": str(self.folder),
                "LANG": "C.UTF-8",
                **env,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def shell(self, page: list[Block]) -> None:
        """Run the commands of a page in one shell, in their order; the first that fails ends it."""
        script = ["set -e", "trap 'echo \"failed: $told\" >&2' ERR"]
        for block in page:
            for command in block.commands:
                if reason_not_to_run(command) or _lacks(command):
                    continue
                told = f"{block}: {command}".replace("'", "")
                script += [f"told='{told}'", self.adapted(command)]
        self.run(["bash", "-c", "\n".join(script)], CRA_ENV_FILE=".data/run/stack.env")

    def python(self, code: str, *arguments: str) -> str:
        """Run a program as a caller would."""
        ready = f"client = SearchClient({self._client})\n"
        return self.run(
            [sys.executable, "-c", _IMPORTS + ready + self.adapted(code), *arguments], **self._own
        )


_IMPORTS = (
    "from cra.search.v1 import search_pb2 as pb\nfrom cra.shared.client import SearchClient\n"
)
"""What a snippet need not repeat, beside a `client`."""


def _lacks(command: str) -> bool:
    program = command.split(maxsplit=1)[0]
    return program in MAY_LACK and shutil.which(program) is None


@pytest.fixture(scope="module")
def desk(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk, and the stack as it was before afterwards."""
    desk = Desk(tmp_path_factory.mktemp("desk"), stack)
    for number, key in ((700, "gate.jpg"), (702, "test-000000.jpg")):
        stack.put(key, photograph(number))
        stack.follows(photograph(number), key)
    yield desk
    stack.cra("releases", "activate", "base")
    uploads = stack.bucket.list_objects("images", prefix="uploads/", recursive=True)
    keys = ("gate.jpg", "tang/hall.jpg", "test-000000.jpg")
    for key in (*keys, *(str(one.object_name) for one in uploads)):
        stack.bucket.remove_object("images", key)
    wait_until(stack.settled, "nothing of the desk is left", 60)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("README.zh")])
def test_the_commands_of_a_page(desk: Desk, page: str) -> None:
    """Each exits with 0, one after the other, as a reader would give them.

    The Chinese README has the commands of the English one: tests/unit/test_docs.py.
    """
    desk.shell(shell_blocks(page))


SNIPPETS = [block for page in PAGES for block in blocks(page) if block.language == "python"]


@pytest.mark.parametrize("block", SNIPPETS, ids=str)
def test_the_python_of_a_page(desk: Desk, block: Block) -> None:
    """Each snippet runs as it stands, but for the address and the key of this stack."""
    if reason := PYTHON_NOT_RUN.get(block.text.splitlines()[0]):
        pytest.skip(reason)
    desk.python(block.text, "红墙")


def test_the_example_for_callers_pages_and_explains(desk: Desk) -> None:
    """The whole program of docs/calling.md prints ranked images, and a bad request's field."""
    (code,) = [one.text for one in SNIPPETS if one.text.startswith('"""Prints the best images')]
    lines = desk.python(code, "红墙").splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert any("images/gate.jpg" in line for line in lines)
    with pytest.raises(AssertionError, match=r"text .*1,?000"):
        desk.python(code, "墙" * 1001)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_command_that_fails_is_told(desk: Desk) -> None:
    """The page, the line and the command are in the failure: the tests above can fail."""
    wrong = Block("docs/none.md", 7, "", "cra status\ncra search 红墙 --top-k 0\ncra failures\n")
    with pytest.raises(AssertionError, match=r"failed: docs/none.md:7: cra search 红墙 --top-k 0"):
        desk.shell([wrong])
