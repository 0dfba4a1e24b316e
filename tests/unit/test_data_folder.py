"""Folders with captions.jsonl or captions.csv: what is read, and what is said of bad rows."""

import csv
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cra.services.training.data.dataset import BadDataError, DataSet
from cra.services.training.data.opening import open_dataset
from cra.services.training.data.reading import Columns
from tests.datasets import picture, write_files, write_lines

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=20)
CAPTIONS = TEXTS.map(lambda text: f"塔{text}")
ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.lists(CAPTIONS, min_size=1, max_size=3)), min_size=1, max_size=8
)
"""Image and captions."""


def _problems(folder: Path, columns: Columns | None = None) -> list[str]:
    """Return what is wrong with a folder, whether anything of it can be used or not."""
    try:
        return [*map(str, open_dataset(str(folder), columns or Columns()).problems)]
    except BadDataError as error:
        return [*map(str, error.problems)]


def test_rows_are_images_with_captions_groups_and_categories(tmp_path: Path) -> None:
    """Captions may be one or many, under either name; the image is read from the folder."""
    write_files(tmp_path, "a.png", "塔/b c.png")
    write_lines(
        tmp_path / "captions.jsonl",
        [
            {"file": "a.png", "caption": "歇山顶", "group": "t", "easy": ["房子"], "style": "唐"},
            "",
            {"file": "塔/b c.png", "captions": ["斗栱", "庑殿顶", "斗栱"], "group": 7, "style": ""},
        ],
    )
    columns = Columns(general="easy", attributes=("style", "missing"))
    first, second = open_dataset(str(tmp_path), columns).images
    assert (first.image_id, first.group, first.captions) == ("a.png", "t", ("歇山顶",))
    assert (first.general, first.attributes) == (("房子",), {"style": "唐"})
    assert (second.image_id, second.group) == ("塔/b c.png", "7")
    assert (second.captions, second.general, second.attributes) == (("斗栱", "庑殿顶"), (), {})
    assert [one.read() for one in (first, second)] == [picture(0), picture(1)]
    assert [one.where for one in (first, second)] == ["captions.jsonl:1", "captions.jsonl:3"]


def test_every_bad_row_is_reported_by_line(tmp_path: Path) -> None:
    """Each way to be wrong is told with its line, and the good rows are all there."""
    write_files(tmp_path / "in", "a.png", "b.png")
    write_files(tmp_path, "outside.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "outside.png")
    good = {"file": "a.png", "caption": "塔", "group": "g"}
    rows: list[tuple[Any, str]] = [
        (good, ""),
        ("{", "is no JSON in UTF-8"),
        ("[" * 100_000, "is no JSON in UTF-8"),
        ('{"file": "\udcff"}', "is no JSON in UTF-8"),
        ('["a.png"]', "is no JSON object"),
        ({**good, "file": None}, "file is missing"),
        ({**good, "file": "c.png"}, "there is no file 'c.png'"),
        ({**good, "file": "."}, "there is no file '.'"),
        ({**good, "file": "a\0.png"}, "cannot be found|null"),
        ({**good, "file": "a" * 5000}, "cannot be found"),
        ({**good, "file": "../outside.png"}, "leads out of the folder"),
        ({**good, "file": str(tmp_path / "in" / "a.png")}, "leads out of the folder"),
        ({**good, "file": "link.png"}, "leads out of the folder"),
        ({"file": "a.png", "group": "g"}, "no caption: caption is missing or empty"),
        ({**good, "caption": []}, "no caption: caption is missing or empty"),
        ({**good, "caption": "  "}, "caption: is empty"),
        ({**good, "caption": 7}, "caption is neither a text nor a list of texts"),
        ({**good, "caption": ["塔", None]}, "caption is neither a text nor a list of texts"),
        ({**good, "caption": "塔" * 1001}, "caption: has 1001 characters"),
        ('{"file": "a.png", "group": "g", "caption": "\\ud800塔"}', "is not valid Unicode"),
        ({**good, "group": " "}, "no group: group is missing or empty"),
        ({**good, "group": ["g"]}, "no group: group is missing or empty"),
        ({**good, "group": "h"}, "a.png has group 'h' here and 'g' before"),
        ({**good, "style": ["唐"]}, "style is neither a text nor a number"),
        ({**good, "file": "b.png"}, ""),
    ]
    write_lines(tmp_path / "in" / "captions.jsonl", [row for row, _ in rows])
    dataset = open_dataset(str(tmp_path / "in"), Columns(attributes=("style",)))
    assert [image.image_id for image in dataset.images] == ["a.png", "b.png"]
    expected = [(line, text) for line, (_, text) in enumerate(rows, 1) if text]
    assert len(dataset.problems) == len(expected)
    for problem, (line, text) in zip(dataset.problems, expected, strict=True):
        assert problem.where == f"captions.jsonl:{line}"
        assert any(part in problem.message for part in text.split("|")), problem


def test_stopping_at_the_first_bad_row(tmp_path: Path) -> None:
    """If told to stop, reading ends at the first bad row and names it."""
    write_files(tmp_path, "a.png")
    good = {"file": "a.png", "caption": "塔", "group": "g"}
    write_lines(tmp_path / "captions.jsonl", [good, {**good, "caption": ""}, "{"])
    with pytest.raises(BadDataError, match=r"captions\.jsonl:2") as caught:
        open_dataset(str(tmp_path), Columns(on_error="stop"))
    assert len(caught.value.problems) == 1


def test_without_a_group_there_is_no_split_by_image(tmp_path: Path) -> None:
    """A missing group is an error; the folder stands for it only if that is asked for."""
    write_files(tmp_path, "north/a.png", "north/b.png", "south/hall/c.png", "d.png")
    names = ["north/a.png", "./north/b.png", "south/hall/c.png", "d.png"]
    write_lines(tmp_path / "captions.jsonl", [{"file": f, "caption": "塔"} for f in names])
    assert len(_problems(tmp_path)) == 4
    dataset = open_dataset(str(tmp_path), Columns(group="folder"))
    assert [image.group for image in dataset.images] == ["north", "north", "south/hall"]
    assert [problem.where for problem in dataset.problems] == ["captions.jsonl:4"]


def test_rows_of_one_file_are_one_image(tmp_path: Path) -> None:
    """However a path is written, it is one image; its rows add captions and must agree."""
    write_files(tmp_path, "x/a.png")
    row = {"file": "x/a.png", "caption": "塔", "group": "g", "style": "唐"}
    rows: list[dict[str, Any]] = [
        row,
        {**row, "file": "./x/../x/a.png", "caption": "殿", "style": None},
        {**row, "caption": "阁", "style": "宋"},
    ]
    write_lines(tmp_path / "captions.jsonl", rows)
    dataset = open_dataset(str(tmp_path), Columns(attributes=("style",)))
    (image,) = dataset.images
    assert (image.captions, image.attributes) == (("塔", "殿"), {"style": "唐"})
    assert [*map(str, dataset.problems)] == [
        "captions.jsonl:3: x/a.png has style '宋' here and '唐' before"
    ]


def test_a_category_out_of_an_object(tmp_path: Path) -> None:
    """`facts:roof` is the value under that name, or the one that is largest by `roof=value`."""
    write_files(tmp_path, "a.png", "b.png", "c.png", "d.png")
    facts: list[Any] = [
        {"roof=hip": 0.2, "roof=gable": 0.5, "roofing=x": 9, "wall=red": 0.9},
        {"roof": "盝顶", "roof=hip": 1},
        {"wall=red": 1},
        {"roof": {}},
    ]
    rows = [
        {"file": f"{name}.png", "caption": "塔", "group": "g", "facts": value}
        for name, value in zip("abcd", facts, strict=True)
    ]
    write_lines(tmp_path / "captions.jsonl", rows)
    dataset = open_dataset(str(tmp_path), Columns(attributes=("facts:roof",)))
    found = [image.attributes for image in dataset.images]
    assert found == [{"roof": "gable"}, {"roof": "盝顶"}, {}]
    assert [problem.where for problem in dataset.problems] == ["captions.jsonl:4"]


def test_the_splits_that_a_column_names(tmp_path: Path) -> None:
    """Only rows of the split are read; a group in two splits is torn, and told of in both."""
    write_files(tmp_path, *(f"{name}.png" for name in "abcd"))
    groups, names = ["g", "h", "h", "k"], ["train", "test", "train", ""]
    write_lines(
        tmp_path / "captions.jsonl",
        [
            {"file": f"{f}.png", "caption": "塔", "group": g, "part": s}
            for f, g, s in zip("abcd", groups, names, strict=True)
        ],
    )
    columns = Columns(split="part")
    parts = {name: open_dataset(str(tmp_path), columns, name) for name in ("train", "test")}
    assert [image.image_id for image in parts["train"].images] == ["a.png"]
    assert [image.image_id for image in parts["test"].images] == ["b.png"]
    assert [*map(str, parts["train"].problems)] == [
        "captions.jsonl:3: split 'train', but group 'h' is in 'test' already",
        "captions.jsonl:4: no split: part is missing or empty",
    ]
    with pytest.raises(BadDataError, match="no column that names splits"):
        open_dataset(str(tmp_path), Columns(), "train")


def test_csv_rows_are_named_by_their_first_line(tmp_path: Path) -> None:
    """Line breaks within quotes, blank lines and bad bytes neither shift lines nor end reading."""
    write_files(tmp_path, "a.png", "b.png")
    lines = [
        "\ufefffile,caption,group",
        'a.png,"庑殿顶，',
        '"",正脊""",g',
        "",
        "a.png,殿",
        "a.png,\udcff\udcfe,g",
        'a.png,"塔"楼,g',
        "b.png,阁,g",
        'b.png,"没有结尾,g',
    ]
    write_lines(tmp_path / "captions.csv", lines)
    dataset = open_dataset(str(tmp_path), Columns())
    captions = [image.captions for image in dataset.images]
    assert captions == [('庑殿顶，\n",正脊"',), ("阁",)]
    found = [(problem.where, problem.message.split(":")[0]) for problem in dataset.problems]
    assert found == [
        ("captions.csv:5", "has 2 columns, the head 3"),
        ("captions.csv:6", "is no UTF-8"),
        ("captions.csv:7", "is no CSV"),
        ("captions.csv:9", "is no CSV"),
    ]


def test_a_csv_without_a_column_is_refused_at_its_head(tmp_path: Path) -> None:
    """What every row would lack is told once."""
    write_files(tmp_path, "a.png")
    write_lines(tmp_path / "captions.csv", ["file,file,text,building", "a.png,a.png,塔,g"])
    assert _problems(tmp_path) == [
        "captions.csv:1: has no column 'caption'",
        "captions.csv:1: has no column 'group'",
        "captions.csv:1: has the column 'file' more than once",
    ]
    write_lines(tmp_path / "captions.csv", ["file,text,building", "a.png,塔,g"])
    assert _problems(tmp_path, Columns(caption="text", group="building")) == []


def test_an_empty_index_is_no_data_set(tmp_path: Path) -> None:
    """Nothing to learn from is an error, not an empty success."""
    for name in ("captions.csv", "captions.jsonl"):
        (tmp_path / name).touch()
        with pytest.raises(BadDataError, match="holds no images"):
            open_dataset(str(tmp_path / name), Columns())
    with pytest.raises(BadDataError, match="name the one to read"):
        open_dataset(str(tmp_path), Columns())


@settings(max_examples=60)
@given(rows=ROWS)
def test_jsonl_and_csv_say_the_same(rows: list[tuple[int, list[str]]]) -> None:
    """The same rows in either form are equal data sets, whatever characters captions hold."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_files(Path(name), *(f"{i}.png" for i in range(4)))
        jsonl = write_lines(
            folder / "captions.jsonl",
            [{"file": f"{i}.png", "caption": texts, "group": f"g{i % 2}"} for i, texts in rows],
        )
        with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as lines:
            writer = csv.writer(lines)
            writer.writerow(["file", "caption", "group"])
            writer.writerows([f"{i}.png", text, f"g{i % 2}"] for i, texts in rows for text in texts)
        one, other = (open_dataset(str(f), Columns()) for f in (jsonl, folder / "captions.csv"))
    assert one.images == other.images
    assert not one.problems
    assert not other.problems
    assert one.digest == other.digest
    expected: dict[str, dict[str, None]] = {}
    for i, texts in rows:
        expected.setdefault(f"{i}.png", {}).update(dict.fromkeys(texts))
    assert {i.image_id: list(i.captions) for i in one.images} == {
        name: list(texts) for name, texts in expected.items()
    }


def test_the_digest_changes_with_any_id_group_or_caption() -> None:
    """Two data sets have one digest only if they say the same of the same images."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_files(Path(name), "a.png")
        row = {"file": "a.png", "caption": ["塔", "殿"], "group": "g", "easy": ["房"]}
        write_lines(folder / "captions.jsonl", [row])
        dataset = open_dataset(str(folder), Columns(general="easy"))
    (image,) = dataset.images
    changed = [
        dataclasses.replace(image, image_id="b.png"),
        dataclasses.replace(image, group="h"),
        dataclasses.replace(image, captions=("塔殿",)),
        dataclasses.replace(image, captions=("塔",), general=("殿", "房")),
        dataclasses.replace(image, general=()),
    ]
    digests = {DataSet((one,)).digest for one in (image, *changed)}
    assert len(digests) == 1 + len(changed)
    assert DataSet((dataclasses.replace(image, where="elsewhere:1"),)).digest == dataset.digest
