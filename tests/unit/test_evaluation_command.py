"""`cra evaluate` on a folder of images."""

import json
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.evaluation import call, evaluate, write_lines
from tests.releases import make_tower_release
from tests.tuning import make_dataset


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, `model` and a release of another text tower below `releases`."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "data").mkdir()
    rows = []
    for image in make_dataset(range(3)).images:
        (folder / "data" / image.image_id).write_bytes(image.read())
        rows.append(
            {
                "file": image.image_id,
                "captions": list(image.captions),
                "plain": list(image.general),
                "group": image.group,
                **image.attributes,
            }
        )
    write_lines(folder / "data" / "captions.jsonl", rows)
    base = make_checkpoint(folder / "model")
    make_tower_release(folder / "releases", base, make_checkpoint(folder / "other", text_seed=3))
    return folder


def columns(world: Path) -> list[str]:
    """Return what every call says."""
    return [
        str(world / "data"),
        "--general-column=plain",
        "--attribute-column=colour",
        f"--cache={world / 'features'}",
    ]


def test_a_release_against_the_base(world: Path, tmp_path: Path) -> None:
    """The report on the console and in three files names both, chance, and their difference."""
    (release,) = (world / "releases").iterdir()
    out = tmp_path / "out"
    done = call(
        world / "model", *columns(world), f"--release={release}", "--against=base", f"--out={out}"
    )
    assert done.exit_code == 0, done.stderr
    for word in ("chance", "difference", "R@20 by category", "Everyday captions"):
        assert word in done.stdout
    assert {file.name for file in out.iterdir()} == {"report.html", "report.json", "report.md"}
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert found["models"][-1] == release.name
    assert found["models"][0].startswith("tiny-")
    for section in found["sections"]:
        assert section["comparison"]["text_to_image"]["R@5"]["p_value"] > 0
        assert section["evaluations"][0]["text_to_image"]["candidates"] == 72
    misses = sum(len(section["misses"]) for section in found["sections"])
    assert misses > 6
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<article>") == misses


def test_equal_releases_do_not_differ(world: Path) -> None:
    """The base against itself: every difference is 0, every p is 1."""
    found = evaluate(world / "model", *columns(world), "--against=base")
    for section in found["sections"]:
        for direction in ("text_to_image", "image_to_text"):
            for one in section["comparison"][direction].values():
                assert (one["value"], one["p_value"]) == (0.0, 1.0)


def test_int8_is_the_services(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where services take int8, which torch does not have, `cra evaluate` measures as without."""
    usual = evaluate(world / "model", *columns(world))
    monkeypatch.setenv("CRA_PRECISION", "int8")
    assert evaluate(world / "model", *columns(world))["sections"] == usual["sections"]


def test_a_split_by_group_is_the_trainers(world: Path) -> None:
    """`--split` measures the groups that `cra train` with the same shares keeps out."""
    arguments = [*columns(world), "--test-share=0.4", "--validation-share=0.3"]
    parts = {
        name: evaluate(world / "model", *arguments, f"--split={name}")["data"]
        for name in ("train", "validation", "test")
    }
    assert sum(part["images"] for part in parts.values()) == 72
    assert sum(part["groups"] for part in parts.values()) == 18
    refused = call(world / "model", *arguments, "--split=none")
    assert refused.exit_code == 2
    assert "train, validation, test" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--release=none"], "neither a folder"),
        (["--release=."], "holds no release"),
        (["--on-error=stop", "--group-column=none"], "captions.jsonl:1"),
        (["--live"], "bucket/key"),
    ],
)
def test_what_cannot_be_done_is_said(world: Path, arguments: list[str], problem: str) -> None:
    """A mistake ends with one message and exit code 1, and no trace of the program."""
    done = call(world / "model", *columns(world), *arguments)
    assert done.exit_code == 1
    assert problem in done.stderr
    assert isinstance(done.exception, SystemExit)
