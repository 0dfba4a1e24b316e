"""Folders with captions.jsonl or captions.csv: what is read, and what is said of bad rows."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cra.services.training.buildings.dataset import write_dataset
from cra.services.training.data.dataset import BadDataError, DataSet
from cra.services.training.data.opening import check_images, open_dataset, without
from cra.services.training.data.reading import Columns
from tests.tuning import picture

PICTURE = picture((200, 30, 30), "top", 0)
TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)


def _folder(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PICTURE)
    return folder


def _jsonl(folder: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _csv(folder: Path, *rows: list[str]) -> Path:
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def _captions(found: DataSet) -> dict[str, tuple[str, ...]]:
    return {image.image_id: image.captions for image in found.images}


def test_rows_of_one_image_are_joined(tmp_path: Path) -> None:
    """A list of captions, one caption a row, and several rows of one image are all the same."""
    _folder(tmp_path, "a.png", "sub/b.png")
    _jsonl(
        tmp_path,
        {"file": "a.png", "captions": ["红塔", "木塔"], "group": "one"},
        {"file": "sub/b.png", "caption": "白塔", "group": 2},
        "",
        {"file": "a.png", "caption": "佛塔", "group": "one"},
    )
    found = open_dataset(str(tmp_path), Columns())
    assert not found.problems
    assert _captions(found) == {"a.png": ("红塔", "木塔", "佛塔"), "sub/b.png": ("白塔",)}
    assert [image.group for image in found.images] == ["one", "2"]
    assert found.images[0].read() == PICTURE
    assert list(found.pairs()) == [(0, "红塔"), (0, "木塔"), (0, "佛塔"), (1, "白塔")]


def test_csv_holds_the_same(tmp_path: Path) -> None:
    """CSV as spreadsheets write it: a byte order mark, quotes, line breaks inside a field."""
    _folder(tmp_path, "a.png", "b.png")
    _csv(
        tmp_path,
        ["file", "caption", "group", "city"],
        ["a.png", '红塔,"旧"\n二层', "one", "西安"],
        ["b.png", "白塔", "two", ""],
        ["a.png", "木塔", "one", "西安"],
    )
    index = tmp_path / "captions.csv"
    index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes())
    found = open_dataset(str(index), Columns(attributes=("city",)))
    assert _captions(found) == {"a.png": ('红塔,"旧"\n二层', "木塔"), "b.png": ("白塔",)}
    assert found.images[0].attributes == {"city": "西安"}


def test_every_bad_row_is_named_by_its_line(tmp_path: Path) -> None:
    """Told to go on, reading leaves bad rows out and lists each with file and line."""
    _folder(tmp_path, "good.png", "other.png")
    _jsonl(
        tmp_path,
        {"file": "good.png", "caption": "塔", "group": "g"},
        "{not json",
        "[1]",
        {"caption": "塔", "group": "g"},
        {"file": "missing.png", "caption": "塔", "group": "g"},
        {"file": "../../etc/passwd", "caption": "塔", "group": "g"},
        {"file": "other.png", "caption": "塔"},
        {"file": "other.png", "group": "g"},
        {"file": "other.png", "caption": " ", "group": "g"},
        {"file": "other.png", "caption": "塔" * 1001, "group": "g"},
        {"file": "other.png", "caption": 7, "group": "g"},
        {"file": "good.png", "caption": "亭", "group": "another"},
    )
    found = open_dataset(str(tmp_path), Columns())
    assert _captions(found) == {"good.png": ("塔",)}
    expected = {
        2: "JSON",
        3: "object",
        4: "file is missing",
        5: "no file 'missing.png'",
        6: "out of the folder",
        7: "no group",
        8: "no caption",
        9: "is empty",
        10: "at most 1000",
        11: "neither a text",
        12: "'another' here and 'g' before",
    }
    assert [problem.where for problem in found.problems] == [
        f"captions.jsonl:{line}" for line in expected
    ]
    for problem, words in zip(found.problems, expected.values(), strict=True):
        assert words in problem.message


def test_told_to_stop_it_stops_at_the_first(tmp_path: Path) -> None:
    """The first bad row ends the reading, and is named."""
    _jsonl(_folder(tmp_path, "a.png"), {"file": "a.png", "caption": "塔", "group": "g"}, "{", "{")
    with pytest.raises(BadDataError, match=r"captions\.jsonl:2") as caught:
        open_dataset(str(tmp_path), Columns(on_error="stop"))
    assert len(caught.value.problems) == 1


def test_bad_rows_of_a_csv(tmp_path: Path) -> None:
    """A row with too many or too few fields is named by its line, after fields of two lines."""
    _folder(tmp_path, "a.png")
    _csv(
        tmp_path,
        ["file", "caption", "group"],
        ["a.png", "两\n行", "g"],
        ["a.png", "塔"],
        ["a.png", "塔", "g", "more"],
    )
    found = open_dataset(str(tmp_path), Columns())
    assert [problem.where for problem in found.problems] == ["captions.csv:4", "captions.csv:5"]
    _csv(tmp_path, ["image", "caption"], ["a.png", "塔"])
    with pytest.raises(BadDataError, match="no column 'file'"):
        open_dataset(str(tmp_path), Columns())


def test_a_csv_that_is_not_utf8_says_so(tmp_path: Path) -> None:
    """A spreadsheet saved in GBK is refused with the reason, not read as nonsense."""
    _folder(tmp_path, "a.png")
    (tmp_path / "captions.csv").write_bytes("file,caption,group\na.png,塔,g\n".encode("gbk"))
    with pytest.raises(BadDataError, match="UTF-8"):
        open_dataset(str(tmp_path), Columns())


def test_columns_and_splits_are_chosen(tmp_path: Path) -> None:
    """Other names of columns, everyday captions, folders as groups, one split of several."""
    _folder(tmp_path, "hall/a.png", "hall/b.png", "gate/c.png")
    _jsonl(
        tmp_path,
        {"file": "hall/a.png", "zh": "庑殿顶", "plain": ["四面坡"], "part": "train"},
        {"file": "hall/b.png", "zh": "歇山顶", "part": "valid"},
        {"file": "gate/c.png", "zh": "券门", "part": "train"},
    )
    columns = Columns(caption="zh", general="plain", group="folder", split="part")
    found = open_dataset(str(tmp_path), columns, "train")
    assert [(image.group, image.general) for image in found.images] == [
        ("hall", ("四面坡",)),
        ("gate", ()),
    ]


def test_the_generators_own_index_is_read(tmp_path: Path) -> None:
    """Rendered buildings come in as any folder does; the largest roof is their category."""
    write_dataset(tmp_path, "test", 6)
    columns = Columns("professional", "plain", "building", ("facts:roof",))
    found = open_dataset(str(tmp_path), columns)
    assert len(found) == 6
    assert len({image.group for image in found.images}) == 3
    assert all(image.general for image in found.images)
    assert any(image.attributes["facts:roof"] for image in found.images)
    assert check_images(found.images) == []


def test_images_that_cannot_be_decoded_are_found(tmp_path: Path) -> None:
    """Decoding is a step of its own: bad images are named, and the rest goes on without them."""
    _jsonl(
        _folder(tmp_path, "a.png", "b.png"),
        {"file": "a.png", "caption": "塔", "group": "g"},
        {"file": "b.png", "caption": "亭", "group": "g"},
    )
    (tmp_path / "b.png").write_bytes(PICTURE[:40])
    found = open_dataset(str(tmp_path), Columns())
    problems = check_images(found.images)
    assert [problem.where for problem in problems] == ["b.png"]
    assert [image.image_id for image in without(found, problems).images] == ["a.png"]


@pytest.mark.parametrize("what", ["nothing", "file", "empty"])
def test_what_is_no_data_set_is_refused(tmp_path: Path, what: str) -> None:
    """The error says which formats there are."""
    location = tmp_path / what
    if what == "file":
        location.write_text("{}")
    if what == "empty":
        location.mkdir()
    with pytest.raises(BadDataError, match="is no data set"):
        open_dataset(str(location), Columns())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(rows=st.lists(st.tuples(st.sampled_from(["a.png", "b.png"]), TEXT), min_size=1, max_size=8))
def test_both_formats_hold_any_caption(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    """Whatever a caption is made of, JSONL and CSV give it back, each once, in order."""
    _folder(tmp_path, "a.png", "b.png")
    expected: dict[str, tuple[str, ...]] = {}
    for name, text in rows:
        expected[name] = tuple(dict.fromkeys((*expected.get(name, ()), text)))
    _jsonl(tmp_path, *({"file": n, "caption": t, "group": "g"} for n, t in rows))
    assert _captions(open_dataset(str(tmp_path / "captions.jsonl"), Columns())) == expected
    _csv(tmp_path, ["file", "caption", "group"], *([n, t, "g"] for n, t in rows))
    assert _captions(open_dataset(str(tmp_path / "captions.csv"), Columns())) == expected
