"""`cra train` as a person runs it: real processes, real files, real kills."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cra.shared.releases import read_release
from tests.checkpoints import make_checkpoint
from tests.tuning import make_dataset

DEADLINE = 120.0
OPTIONS = [
    *("--max-epochs", "6", "--batch-size", "16", "--lr", "0.002", "--warmup", "2"),
    *("--patience", "100", "--kd-batch-size", "4", "--threads", "1", "--snapshot-steps", "1"),
    *("--validation-share", "0.3", "--test-share", "0", "--general-column", "general"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model and a data set of pictures."""
    folder = tmp_path_factory.mktemp("world")
    make_checkpoint(folder / "base")
    pairs = folder / "pairs"
    pairs.mkdir()
    rows = []
    for image in make_dataset(range(8)).images:
        (pairs / image.image_id).write_bytes(image.read())
        rows.append(
            {
                "file": image.image_id,
                "captions": image.captions,
                "general": image.general,
                "group": image.group,
            }
        )
    rows.append({"file": "missing.png", "caption": "塔", "group": "g"})
    (pairs / "broken.png").write_bytes(b"no picture")
    rows.append({"file": "broken.png", "caption": "塔", "group": rows[0]["group"]})
    (pairs / "captions.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
    )
    return folder


def _start(world: Path, work: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cra.services.cli", "train", str(world / "pairs"), *OPTIONS]
    places = ["--work", work / "runs", "--releases", work / "releases", "--cache", world / "cache"]
    return subprocess.Popen(
        [*command, *map(str, places), *options],
        env=os.environ | {"CRA_MODEL": str(world / "base"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> tuple[Path, str]:
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    return Path(out.strip().splitlines()[-1]), err


def _state(work: Path) -> tuple[int, int]:
    """Return when the state on disk was last written, and its size; zeros before the first."""
    found = list((work / "runs").glob("*/state.pt"))
    if not found:
        return 0, 0
    stat = found[0].stat()
    return stat.st_mtime_ns, stat.st_size


def test_killed_again_and_again_it_ends_with_the_same_weights(world: Path, tmp_path: Path) -> None:
    """Kill -9 after every few states: what comes out in the end is the same, bit for bit.

    Bad rows and images are left out and named, and the release is whole.
    """
    folder, err = _finish(_start(world, tmp_path / "whole"))
    assert "captions.jsonl:193: there is no file 'missing.png'" in err
    assert "captions.jsonl:194: broken.png: not_an_image" in err
    expected = read_release(folder)
    assert (tmp_path / "whole" / "runs").is_dir()
    killed = 0
    work = tmp_path / "killed"
    while killed < 2:
        process = _start(world, work)
        deadline = time.monotonic() + DEADLINE
        begun, writes = _state(work)[0], 0
        while process.poll() is None and writes < 2:
            assert time.monotonic() < deadline
            if _state(work)[0] != begun:
                begun, writes = _state(work)[0], writes + 1
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
        killed += 1
    found = read_release(_finish(_start(world, work))[0])
    assert found.weights.read_bytes() == expected.weights.read_bytes()
    assert found.manifest.metrics == expected.manifest.metrics
    assert found.manifest.data == expected.manifest.data
    assert list((work / "runs").glob("*/tensorboard/events*"))


def test_bad_arguments_are_named(world: Path, tmp_path: Path) -> None:
    """A hyperparameter, shares or a label out of range end at once with a line that names it."""
    for options, words in (
        (["--lr", "0"], "lr is 0.0"),
        (["--validation-share", "0.6", "--test-share", "0.5"], "leave nothing to learn"),
        (["--group-column", "nobody"], "nobody is missing"),
        (["--label", "大厅"], "--label is '大厅'"),
        (["--snapshot-steps", "0"], "--snapshot-steps"),
        (["--on-error", "stop"], "captions.jsonl:193"),
    ):
        process = _start(world, tmp_path, *options)
        _, err = process.communicate(timeout=DEADLINE)
        assert process.returncode != 0
        assert words in err
        assert "Traceback" not in err
