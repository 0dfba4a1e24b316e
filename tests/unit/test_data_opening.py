"""Opening by location, decoding all images, and `cra dataset check`."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cra.services.training.buildings.dataset import write_dataset
from cra.services.training.commands.dataset import dataset
from cra.services.training.data.dataset import BadDataError
from cra.services.training.data.opening import check_images, has_splits, open_dataset, without
from cra.services.training.data.reading import Columns
from cra.shared.settings import Settings
from tests.datasets import picture, write_chinese_clip, write_files, write_lines


def _check(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run `cra dataset check --json`; return its exit code and what it printed."""
    command = ["check", "--json", *arguments]
    result = CliRunner().invoke(dataset, command, obj=Settings(), catch_exceptions=False)
    printed: dict[str, Any] = json.loads(result.stdout)
    return result.exit_code, printed


def _folder(folder: Path) -> Path:
    """Write three images of two groups, the last of them cut short."""
    write_files(folder, "a.png", "b.png", "c.png")
    (folder / "c.png").write_bytes(picture(2)[:50])
    rows = [
        {"file": "a.png", "captions": ["塔", "木塔"], "group": "g"},
        {"file": "b.png", "captions": ["塔"], "group": "h"},
        {"file": "c.png", "captions": ["殿"], "group": "h"},
    ]
    write_lines(folder / "captions.jsonl", rows)
    return folder


@pytest.mark.parametrize("what", ["nothing", "file", "empty", "s3://"])
def test_what_is_no_data_set_is_refused(tmp_path: Path, what: str) -> None:
    """The error names the location and the formats there are."""
    location = what if what == "s3://" else str(tmp_path / what)
    if what == "file":
        (tmp_path / what).write_text("{}")
    if what == "empty":
        (tmp_path / what).mkdir()
    with pytest.raises(BadDataError, match=r"s3://bucket/prefix") as caught:
        open_dataset(location, Columns(), settings=Settings())
    assert caught.value.problems[0].where == location


def test_who_says_how_data_is_split(tmp_path: Path) -> None:
    """A column or the files of Chinese CLIP do; else nobody, and a split is to be made."""
    folder = str(_folder(tmp_path))
    assert not has_splits(folder, Columns())
    assert has_splits(folder, Columns(split="part"))
    other = tmp_path / "other"
    other.mkdir()
    assert has_splits(str(write_chinese_clip(other, "a", {"1": picture()}, [])), Columns())
    assert not has_splits("s3://bucket/prefix", Columns())


def test_the_generators_own_index_is_read(tmp_path: Path) -> None:
    """Rendered buildings come in as any folder does; the largest roof is their category."""
    write_dataset(tmp_path, "test", 6)
    columns = Columns("professional", "plain", "building", ("facts:roof",))
    found = open_dataset(str(tmp_path), columns)
    assert not found.problems
    assert len(found) == 6
    assert len({image.group for image in found.images}) == 3
    assert all(image.general for image in found.images)
    assert any(image.attributes.get("roof") for image in found.images)
    assert check_images(found.images) == []


def test_images_that_cannot_be_decoded_are_found(tmp_path: Path) -> None:
    """Decoding is a step of its own: bad images are named by row, and the rest goes on."""
    found = open_dataset(str(_folder(tmp_path)), Columns())
    (tmp_path / "a.png").unlink()
    seen: list[int] = []
    problems = check_images(found.images, seen.append)
    assert [problem.where for problem in problems] == ["captions.jsonl:1", "captions.jsonl:3"]
    assert "a.png: cannot be read" in problems[0].message
    assert "c.png: truncated" in problems[1].message
    assert seen == [1, 2, 3]
    left = without(found, problems)
    assert [image.image_id for image in left.images] == ["b.png"]
    assert list(left.problems) == problems
    (tmp_path / "b.png").unlink()
    with pytest.raises(BadDataError) as caught:
        without(left, check_images(left.images))
    assert len(caught.value.problems) == 3


def test_check_counts_and_reports(tmp_path: Path) -> None:
    """`cra dataset check` counts what is good, lists what is bad, and exits 1 if anything is."""
    code, printed = _check(str(_folder(tmp_path)), "--duplicates")
    assert code == 1
    assert printed["images"] == 2
    assert printed["groups"] == 2
    assert printed["pairs"] == 3
    assert printed["different_captions"] == 2
    assert printed["most_captions_of_an_image"] == 2
    assert printed["most_images_of_a_caption"] == 2
    assert [one["where"] for one in printed["problem_list"]] == ["captions.jsonl:3"]
    assert printed["duplicates"] == [
        {
            "kind": "same caption",
            "first": "a.png",
            "second": "b.png",
            "across_groups": True,
            "detail": "塔",
        }
    ]
    (tmp_path / "c.png").write_bytes(picture(2))
    assert _check(str(tmp_path))[0] == 0


def test_check_without_decoding_and_stopping(tmp_path: Path) -> None:
    """Images are left alone if told so; told to stop, the first bad row is all there is."""
    assert _check(str(_folder(tmp_path)), "--no-images")[0] == 0
    with (tmp_path / "captions.jsonl").open("a") as lines:
        lines.write("{\n[]\n")
    assert len(_check(str(tmp_path), "--no-images")[1]["problem_list"]) == 2
    code, printed = _check(str(tmp_path), "--on-error", "stop")
    assert code == 1
    assert printed["images"] == 0
    assert [one["where"] for one in printed["problem_list"]] == ["captions.jsonl:4"]


def test_check_takes_columns_and_splits(tmp_path: Path) -> None:
    """All columns have options; a split of Chinese CLIP's is named as one of a column is."""
    write_files(tmp_path, "a.png", "b.png")
    rows = [
        {"file": "a.png", "zh": "塔", "easy": "房", "site": "x", "style": "唐", "part": "train"},
        {"file": "b.png", "zh": "殿", "easy": "屋", "site": "y", "style": "宋", "part": "test"},
    ]
    write_lines(tmp_path / "captions.jsonl", rows)
    options = "--caption-column zh --general-column easy --group-column site"
    options += " --attribute-column style --split-column part --split test"
    code, printed = _check(str(tmp_path), *options.split())
    assert (code, printed["images"], printed["everyday_captions"]) == (0, 1, 1)
    write_chinese_clip(tmp_path, "val", {"1": picture()}, [(1, "塔", [1])])
    (tmp_path / "captions.jsonl").unlink()
    code, printed = _check(str(tmp_path), "--split", "val")
    assert (code, printed["pairs"]) == (0, 1)


def test_check_prints_names_as_they_are(tmp_path: Path) -> None:
    """Brackets and colons in names are no markup, in tables as in problems."""
    write_files(tmp_path, "[red]a[.png", ":cat:.png")
    rows = [
        {"file": name, "caption": "[/bold] :dog:", "group": name}
        for name in ("[red]a[.png", ":cat:.png", "[/x].png")
    ]
    write_lines(tmp_path / "captions.jsonl", rows)
    result = CliRunner().invoke(
        dataset, ["check", "--duplicates", str(tmp_path)], obj=Settings(), catch_exceptions=False
    )
    assert result.exit_code == 1
    for name in ("[red]a[.png", ":cat:.png", "[/x].png"):
        assert name in result.output.replace("\n", "")
