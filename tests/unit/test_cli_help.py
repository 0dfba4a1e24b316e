"""`cra`'s help, its exit codes, and completion in a shell."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cra.services.cli.completion import SHELLS
from cra.services.cli.group import cra
from cra.shared.errors import UnauthenticatedError
from tests.cra_lines import check_line, commands, words_of
from tests.servers import ROOT, free_ports

BIN = Path(sys.executable).parent


def test_every_command_has_examples_that_it_would_take() -> None:
    """Each command's help ends with examples, and each of them is a command line of that command.

    Break: rename an option and not its example.
    """
    seen = 0
    for path, command in [((), cra), *commands()]:
        help_text = command.get_help(click.Context(command, info_name=" ".join(path)))
        _, found, examples = help_text.partition("Examples:\n")
        assert found, f"cra {' '.join(path)} has no examples"
        for line in examples.splitlines():
            words = words_of(line)
            if words[:1] == ["cra"]:
                named = check_line(words[1:])
                assert isinstance(command, click.Group) or named is command, line
                seen += 1
    assert seen > 30


def test_the_look_over_finds_what_is_wrong() -> None:
    """An unknown command, option or value is found: the test above can fail."""
    for line in ("serach 红", "search 红 --top-j 3", "search 红 --top-k 0", "releases remove"):
        with pytest.raises(click.UsageError):
            check_line(shlex.split(line))


def test_the_list_of_commands_imports_no_torch() -> None:
    """`cra --help` is there at once: commands of other extras are read, and not imported.

    Break: load the entry points in `get_command`.
    """
    code = (
        "import sys; from click.testing import CliRunner; "
        "from cra.services.cli.group import cra; "
        "done = CliRunner().invoke(cra, ['--help']); "
        "assert 'Tune the text tower' in done.output, done.output; "
        "assert not {'torch', 'pymilvus'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_exit_codes_tell_later_from_never(tmp_path: Path) -> None:
    """3 where a part does not answer, 2 where the command line is wrong, 1 where the work is.

    Break: one exit code for every domain error.
    """
    (port,) = free_ports(1)
    env = {
        "CRA_GATEWAY_TARGET": f"dns:///127.0.0.1:{port}",
        "CRA_INGEST_TARGET": f"dns:///127.0.0.1:{port}",
        "CRA_S3_ENDPOINT": f"127.0.0.1:{port}",
    }

    def code(*arguments: str, **changes: str) -> int:
        return CliRunner().invoke(cra, arguments, env={**env, **changes}).exit_code

    (tmp_path / "a.jpg").write_bytes(b"x")
    assert code("search", "红") == 3
    assert code("put", str(tmp_path)) == 3
    assert code("search") == 2
    assert code("search", "") == 2
    assert code("search", "红", "--less", " ") == 2
    assert code("search", "红", "--image", str(tmp_path / "a.jpg")) == 2
    assert code("search", "红", "--after", "yesterday") == 2
    assert code("put", str(tmp_path / "none")) == 2
    assert code("search", "红", CRA_GATEWAY_PORT="none") == 1
    assert code("--help") == 0


@pytest.mark.parametrize("option", ["--weight", "--min-score", "--min-relevance"])
@pytest.mark.parametrize("value", ["nan", "-inf", "1e9"])
def test_a_number_out_of_range_is_refused_by_its_option(option: str, value: str) -> None:
    """What is no number is in no range either; the message names the option and the range.

    Break: `click.FloatRange` in place of `Number`.
    """
    done = CliRunner().invoke(cra, ["search", "红", f"{option}={value}"])
    assert done.exit_code == 2
    assert f"'{option}': {float(value)} is not in the range" in done.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["search", "\udcff\udcfe"], r"'[TEXT]': b'\xff\xfe'"),
        (["search", "--like", "images/\udcff"], r"'--like': b'images/\xff'"),
        (["search", "红", "--more", "雪", "--more", "\udcff"], r"'--more': b'\xff'"),
        (["search", "红", "--meta", "a=\udcff"], r"'--meta': b'a=\xff'"),
        (["put", str(ROOT), "--prefix", "\udcff"], r"'--prefix': b'\xff'"),
        (["releases", "activate", "\udcff"], r"'NAME': b'\xff'"),
        (["train", str(ROOT), "--label", "\udcff"], r"'--label': b'\xff'"),
    ],
)
def test_an_argument_that_is_no_utf_8_is_refused_by_its_name(words: list[str], told: str) -> None:
    """A wrong command line, and not a codec's complaint midway, whichever command it is.

    Break: no `_taking_utf8` around the commands, or not in `_load`.
    """
    done = CliRunner().invoke(cra, words)
    assert done.exit_code == 2, done.output
    assert f"Invalid value for {told} is no UTF-8" in done.output


def test_a_path_may_be_no_utf_8(tmp_path: Path) -> None:
    """Paths are bytes: a picture to search by needs no name that is a text.

    Break: check `str(text)`, whatever it is, in `_check_utf8`.
    """
    file = tmp_path / "\udcff.jpg"
    file.write_bytes(b"x")
    env = {"CRA_GATEWAY_TARGET": "ipv4:127.0.0.1:1"}
    assert CliRunner().invoke(cra, ["search", "--image", str(file)], env=env).exit_code == 3


def test_without_its_extra_it_says_what_to_install() -> None:
    """The package alone has a `cra`, and nothing that it needs.

    Break: import the group outside of `try` in `main`.
    """
    code = (
        "import sys; sys.modules['click'] = None; "
        "from cra.services.cli.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("pip install 'cra[cli]'")
    assert "Traceback" not in done.stderr


def test_what_has_to_be_agreed_to_says_how_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With nobody there to be asked the option is named; whoever answers no has said so.

    Break: `abort=True` in the question of `releases remove`.
    """

    class Store:
        def __init__(self, *_: object) -> None: ...

        def manifest(self, name: str) -> None: ...

    monkeypatch.setattr("cra.services.cli.releases.S3ReleaseStore", Store)
    command = ["releases", "remove", "halls-0a1b2c3d"]
    done = CliRunner().invoke(cra, command, input="")
    assert done.exit_code == 2
    assert "give --yes" in done.output
    refused = CliRunner().invoke(cra, command, input="n\n")
    assert refused.exit_code == 1
    assert "--yes" not in refused.output


def test_refused_credentials_name_their_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who searches without a key is told of CRA_API_KEY.

    Break: name none in `_CREDENTIALS`.
    """

    def refuse(*_: object) -> None:
        raise UnauthenticatedError("a valid API key is needed")

    monkeypatch.setattr("cra.services.cli.search.SearchClient.of", refuse)
    done = CliRunner().invoke(cra, ["search", "红"])
    assert done.exit_code == 1
    assert "a valid API key is needed. " in done.output
    assert "CRA_API_KEY for searches" in done.output


@pytest.mark.parametrize("left", [1, 30, 90])
def test_ctrl_c_while_it_is_imported_ends_it_quietly(left: int) -> None:
    """Exit code 130 and not a word, however much of `cra` is there; later it is as ever.

    Break: no `end_quietly` in `main`.

    Args:
        left: modules of the group's imports that come before Ctrl-C.
    """
    code = (
        "import signal, sys\n"
        "class Interrupting:\n"
        f"    left = {left}\n"
        "    def find_spec(self, *_):\n"
        "        self.left -= 1\n"
        "        if not self.left: signal.raise_signal(signal.SIGINT)\n"
        "from cra.services.cli.__main__ import main\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.argv = ['cra', 'completion', 'bash']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_does_not_kill_what_is_done() -> None:
    """While the interpreter ends there is nothing left to stop: the exit code stays.

    Break: no `atexit` in `end_quietly`.
    """
    code = (
        "import signal, sys\n"
        "class Late:\n"
        "    def __del__(self, kill=signal.raise_signal, number=signal.SIGINT): kill(number)\n"
        "sys.late = Late()\n"
        "from cra.services.cli.__main__ import main\n"
        "sys.argv = ['cra', 'completion', 'bash']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_its_script(shell: str) -> None:
    """`cra completion` prints a script that asks `cra` itself, whatever the settings are."""
    env = {"CRA_GATEWAY_PORT": "none"}
    done = CliRunner().invoke(cra, ["completion", shell], env=env)
    assert done.exit_code == 0, done.output
    assert f"_CRA_COMPLETE={shell}_complete" in done.output


def complete(*words: str, **env: str) -> list[str]:
    """Return what a real bash completes the last word to, with the script that `cra` prints."""
    script = (
        'eval "$(cra completion bash)"; '
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
        '_cra_completion cra; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": path, "HOME": "/nowhere", **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes() -> None:
    """Commands, subcommands, options, values and the buckets of the settings."""
    assert complete("cra", "rec") == ["reconcile"]
    assert complete("cra", "releases", "ro") == ["rollback"]
    assert complete("cra", "put", "--pre") == ["--prefix"]
    assert complete("cra", "completion", "") == list(SHELLS)
    assert complete("cra", "search", "--bucket", "pl", CRA_BUCKETS="images,plans") == ["plans"]
    assert complete("cra", "releases", "activate", "b", CRA_S3_ENDPOINT="127.0.0.1:1") == ["base"]
