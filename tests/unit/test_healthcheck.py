"""`deploy/healthcheck.py` as it is called: by hand, by Docker and by Kubernetes."""

import sys
from pathlib import Path

import pytest

from deploy import healthcheck


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["59999"], "port 59999 is none of our servers': 50051, 50052, 50053, 8080"),
        (["--works", "59999"], "port 59999 is none of our servers'"),
        ([], "required: PORT|FILE"),
        (["--woks", "50051"], "unrecognized arguments: --woks"),
    ],
)
def test_what_it_cannot_ask_is_told_with_its_usage(
    words: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A port that nobody of ours has, or a wrong word, ends it with 2 and says what it takes.

    Break: ask without a look at `known`.
    """
    monkeypatch.setattr(sys, "argv", ["healthcheck.py", *words])
    with pytest.raises(SystemExit) as ended:
        healthcheck.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "usage: healthcheck.py" in said
    assert told in said


def test_a_file_that_is_touched_is_a_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 for one that was touched just now, 1 for one that is not there.

    Break: `sys.exit(beats(…))`.
    """
    (tmp_path / "worker").touch()
    for name, code in (("worker", 0), ("beat", 1)):
        monkeypatch.setattr(sys, "argv", ["healthcheck.py", "--works", str(tmp_path / name)])
        with pytest.raises(SystemExit) as ended:
            healthcheck.main()
        assert ended.value.code == code
