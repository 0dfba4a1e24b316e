"""Chinese CLIP's own format: TSV and JSONL, and the LMDB that its own tool makes of them."""

import base64
import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cra.services.training.data import chinese_clip
from cra.services.training.data.chinese_clip import Text, read_texts
from cra.services.training.data.dataset import BadDataError, DataSet
from cra.services.training.data.opening import check_images, has_splits, open_dataset
from cra.services.training.data.reading import Columns
from tests.datasets import build_lmdb, picture, write_chinese_clip, write_lines

IMAGES = {str(number): picture(number) for number in (7, 31, 12, 100)}
TEXTS: list[tuple[int, str, list[int]]] = [
    (1, "红色的塔", [7, 12]),
    (2, "白塔", [12]),
    (5, "石桥，“旧”", [31]),
]


def _contents(found: DataSet) -> dict[str, tuple[str, tuple[str, ...], bytes]]:
    return {i.image_id: (i.group, i.captions, i.read()) for i in found.images}


def _write_lmdb(folder: Path, **databases: dict[bytes, bytes]) -> None:
    """Write databases as Chinese CLIP's tool lays them out."""
    for name, entries in databases.items():
        place = folder / "lmdb" / "train" / name
        place.mkdir(parents=True)
        with lmdb.open(str(place), map_size=2**20) as database, database.begin(write=True) as put:
            for key, value in entries.items():
                put.put(key, value)


@pytest.mark.parametrize("url_safe", [True, False])
def test_tsv_and_jsonl_are_read(tmp_path: Path, url_safe: bool) -> None:
    """Each image has the texts that name it; images that share a text are a group.

    An image without a text is searched, and no more. Either alphabet of base64 is understood.
    """
    write_chinese_clip(tmp_path, "valid", IMAGES, TEXTS, url_safe=url_safe)
    found = open_dataset(str(tmp_path), Columns(), "valid")
    assert not found.problems
    assert _contents(found) == {
        "7": ("7", ("红色的塔",), IMAGES["7"]),
        "12": ("7", ("红色的塔", "白塔"), IMAGES["12"]),
        "31": ("31", ("石桥，“旧”",), IMAGES["31"]),
        "100": ("100", (), IMAGES["100"]),
    }
    assert {image.image_id: image.where for image in found.images}["31"] == "valid_imgs.tsv:2"
    assert has_splits(str(tmp_path), Columns())


def test_what_its_own_tool_made_holds_the_same(tmp_path: Path) -> None:
    """cn_clip's build_lmdb_dataset.py runs as it is, and its LMDB loads to an equal data set."""
    write_chinese_clip(tmp_path, "train", IMAGES, TEXTS)
    before = open_dataset(str(tmp_path), Columns(), "train")
    contents = _contents(before)
    texts = read_texts(tmp_path, "train")
    build_lmdb(tmp_path, "train")
    (tmp_path / "train_imgs.tsv").unlink()
    for location in (tmp_path, tmp_path / "lmdb"):
        after = open_dataset(str(location), Columns(), "train")
        assert after == before
        assert after.digest == before.digest
        assert _contents(after) == contents
        assert read_texts(location, "train") == texts
    assert [(one.text_id, one.text, [*map(int, one.image_ids)]) for one in texts] == TEXTS


@settings(max_examples=60)
@given(
    contents=st.dictionaries(
        st.integers(0, 10**18).map(str), st.binary(min_size=1, max_size=200), min_size=1, max_size=8
    ),
    ending=st.sampled_from(["\n", "\r\n", "\n\n"]),
    padded=st.booleans(),
)
def test_images_are_found_again_in_the_tsv(
    contents: dict[str, bytes], ending: str, padded: bool
) -> None:
    """Each image is read from its own place in the file, whatever the lines before it are like."""
    with tempfile.TemporaryDirectory() as name:
        lines = []
        for image_id, content in contents.items():
            text = base64.urlsafe_b64encode(content).decode()
            lines.append(f"{image_id}\t{text if padded else text.rstrip('=')}{ending}")
        (Path(name) / "a_imgs.tsv").write_bytes("".join(lines).encode())
        first = next(iter(contents))
        row = {"text_id": 0, "text": "塔", "image_ids": [int(first)]}
        write_lines(Path(name) / "a_texts.jsonl", [row])
        found = open_dataset(name, Columns(), "a")
        assert not found.problems
        assert {image.image_id: image.read() for image in found.images} == contents
        assert [image.image_id for image in found.images] == sorted(contents)


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_pickle_that_wants_more_than_plain_values_is_refused(tmp_path: Path) -> None:
    """LMDB holds pickles: one that would run something or take all memory is a bad row.

    Nothing is run, whatever the protocol, and good rows beside it are read.
    """
    mark = tmp_path / "ran"
    pickles = {
        pickle.dumps((_Evil(mark), 1, "塔"), protocol=0): "holds the operations",
        pickle.dumps((_Evil(mark), 1, "塔")): "holds the operations",
        b"\x80\x02cos\nsystem\n(U\x01:tR.": "holds the operations",
        b"\x80\x04Nr\xff\xff\xff\x7f.": "holds the operations LONG_BINPUT, NONE",
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".": "not enough data|expected",
        pickle.dumps((7, 1, "塔" * 50_000)): "it has 150",
        pickle.dumps((7, 1, "塔"))[:-3]: "exhausted",
        pickle.dumps((7, "1", "塔")): "something else",
        pickle.dumps((7, 1, 1)): "something else",
        b"": "exhausted",
    }
    good = pickle.dumps((7, 2, "亭"), protocol=3)
    pairs = {str(number).encode(): value for number, value in enumerate([*pickles, good])}
    _write_lmdb(
        tmp_path,
        pairs={**pairs, b"num_samples": str(len(pairs)).encode()},
        imgs={b"num_images": b"1", b"7": base64.b64encode(IMAGES["7"])},
    )
    found = open_dataset(str(tmp_path), Columns(), "train")
    assert _contents(found) == {"7": ("7", ("亭",), IMAGES["7"])}
    assert [one.where for one in found.problems] == [f"train/pairs:{i}" for i in range(10)]
    for problem, expected in zip(found.problems, pickles.values(), strict=True):
        assert any(part in problem.message for part in expected.split("|")), problem
    assert not mark.exists()


def test_databases_that_were_not_finished_are_refused(tmp_path: Path) -> None:
    """LMDB without its count, cut short, or that is none, is an error that names it."""
    images = {b"num_images": b"1", b"7": base64.b64encode(IMAGES["7"])}
    _write_lmdb(tmp_path, pairs={b"0": pickle.dumps((7, 2, "亭"))}, imgs=images)
    with pytest.raises(BadDataError, match="pairs: was not finished"):
        open_dataset(str(tmp_path), Columns(), "train")
    file = tmp_path / "lmdb" / "train" / "imgs" / "data.mdb"
    content = file.read_bytes()
    file.write_bytes(content[:-4096])
    with pytest.raises(BadDataError, match=r"imgs: .*cut short"):
        open_dataset(str(tmp_path), Columns(), "train")
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(BadDataError, match=r"imgs: .*MDB_INVALID"):
        open_dataset(str(tmp_path), Columns(), "train")


def test_pairs_of_a_database_that_contradict_each_other(tmp_path: Path) -> None:
    """A text id that stands for two texts is reported, and the first text is kept."""
    rows: list[tuple[int, int, str]] = [(7, 1, "塔"), (12, 1, "塔"), (7, 1, "亭"), (8, 3, "阁")]
    _write_lmdb(
        tmp_path,
        pairs={
            **{str(i).encode(): pickle.dumps(row) for i, row in enumerate(rows)},
            b"num_samples": b"4",
        },
        imgs={number.encode(): base64.b64encode(c) for number, c in IMAGES.items()},
    )
    assert [(one.text_id, one.text, one.image_ids) for one in read_texts(tmp_path, "train")] == [
        (1, "塔", ("7", "12"))
    ]
    assert [*map(str, open_dataset(str(tmp_path), Columns(), "train").problems)] == [
        "train/pairs:2: text_id 1 has another text before",
        "train/pairs:3: image_ids: there is no image 8",
    ]


def test_bad_lines_are_named(tmp_path: Path) -> None:
    """Whatever is wrong with a line is reported by its place, and its neighbours are read."""
    write_chinese_clip(tmp_path, "test", IMAGES, TEXTS)
    good = {"text_id": 9, "text": "塔", "image_ids": [7]}
    texts: list[tuple[object, str]] = [
        ("{", "is no JSON"),
        ("[]", "is no object with text_id"),
        ({"text": "塔"}, "is no object with text_id"),
        ({**good, "text_id": "nine"}, "is no object with text_id"),
        ({**good, "text_id": True}, "is no object with text_id"),
        ({**good, "text": ["塔"]}, "is no object with text_id"),
        ({**good, "image_ids": "7"}, "is no object with text_id"),
        ({**good, "image_ids": [7.0]}, "is no object with text_id"),
        ({**good, "image_ids": [7, 404, 405]}, "there is no image 404, 405"),
        ({**good, "image_ids": []}, "names no image"),
        ({**good, "text": ""}, "text: is empty"),
        ({**good, "text": "塔" * 1001}, "1001 characters"),
        ({**good, "text_id": 5}, "text_id 5 is there already"),
    ]
    with (tmp_path / "test_texts.jsonl").open("a", encoding="utf-8") as file:
        for row, _ in texts:
            file.write((row if isinstance(row, str) else json.dumps(row)) + "\n")
    with (tmp_path / "test_imgs.tsv").open("ab") as lines:
        lines.write(b"55\n\t\n56\t\n57\tno base64!\n7\taaaa\n\xff\taaaa\n")
    found = open_dataset(str(tmp_path), Columns(), "test")
    write_chinese_clip(tmp_path, "clean", IMAGES, TEXTS)
    assert found.images == open_dataset(str(tmp_path), Columns(), "clean").images
    images = [problem for problem in found.problems if "imgs" in problem.where]
    assert [(one.where, one.message) for one in images] == [
        ("test_imgs.tsv:5", "is no image id, tab and base64"),
        ("test_imgs.tsv:6", "is no image id, tab and base64"),
        ("test_imgs.tsv:7", "image 56 is no base64"),
        ("test_imgs.tsv:8", "image 57 is no base64"),
        ("test_imgs.tsv:9", "image 7 is there already"),
        ("test_imgs.tsv:10", "is no image id, tab and base64"),
    ]
    others = {one.where: one.message for one in found.problems if one not in images}
    assert list(others) == [f"test_texts.jsonl:{line}" for line in range(4, 4 + len(texts))]
    for message, (_, expected) in zip(others.values(), texts, strict=True):
        assert expected in message
    with pytest.raises(BadDataError, match=r"test_imgs\.tsv:5"):
        open_dataset(str(tmp_path), Columns(on_error="stop"), "test")


def test_an_image_that_is_none_is_named_by_its_line(tmp_path: Path) -> None:
    """Base64 of something else, or cut short, is found when all images are decoded."""
    images = {**IMAGES, "8": b"no image", "9": IMAGES["7"][:60]}
    write_chinese_clip(tmp_path, "a", images, TEXTS)
    with (tmp_path / "a_imgs.tsv").open("ab") as lines:
        lines.write(b"10\taaaaa\n")
    problems = check_images(open_dataset(str(tmp_path), Columns(), "a").images)
    assert {problem.where for problem in problems} == {f"a_imgs.tsv:{line}" for line in (5, 6, 7)}
    assert any("it is no base64" in problem.message for problem in problems)


def test_a_folder_of_splits_wants_one_named(tmp_path: Path) -> None:
    """Without a split, or with an unknown one, the error names those that are there."""
    write_chinese_clip(tmp_path, "train", IMAGES, TEXTS)
    write_chinese_clip(tmp_path, "valid", IMAGES, TEXTS)
    for split in ("", "test"):
        with pytest.raises(BadDataError, match="train, valid"):
            open_dataset(str(tmp_path), Columns(), split)
    (tmp_path / "valid_imgs.tsv").unlink()
    with pytest.raises(BadDataError, match=r"valid_imgs\.tsv: is missing"):
        open_dataset(str(tmp_path), Columns(), "valid")


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=12))
def test_groups_are_what_hangs_together(texts: list[list[int]]) -> None:
    """Two images are in one group exactly if a chain of shared texts joins them."""
    rows = [
        Text(number, f"第{number}句", tuple(map(str, ids)), "") for number, ids in enumerate(texts)
    ]
    groups = chinese_clip._components(rows)
    reach = {str(i): {str(i)} for ids in texts for i in ids}
    for _ in range(10):
        for row in rows:
            together = set().union(*(reach[one] for one in row.image_ids))
            for one in together:
                reach[one] |= together
    for one, others in reach.items():
        assert {other for other in reach if groups[other] == groups[one]} == others
