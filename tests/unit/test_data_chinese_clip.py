"""Chinese CLIP's own format: TSV and JSONL, and the LMDB that its own tool makes of them."""

import base64
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cn_clip.preprocess
import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra.services.training.data import chinese_clip
from cra.services.training.data.chinese_clip import Text, read_texts
from cra.services.training.data.dataset import BadDataError, DataSet
from cra.services.training.data.opening import has_splits, open_dataset
from cra.services.training.data.reading import Columns
from tests.tuning import picture

IMAGES = {number: picture((number, 30, 30), "top", number) for number in (7, 12, 31, 100)}
TEXTS: list[tuple[int, str, list[int]]] = [
    (1, "红色的塔", [7, 12]),
    (2, "白塔", [12]),
    (5, "石桥，“旧”", [31]),
]


def write(folder: Path, split: str, texts: Sequence[tuple[int, str, list[int]]] = TEXTS) -> None:
    """Write a split as TSV (both alphabets of base64) and JSONL."""
    encoders = [base64.urlsafe_b64encode, base64.b64encode]
    (folder / f"{split}_imgs.tsv").write_text(
        "".join(
            f"{number}\t{encoders[place % 2](content).decode()}\n"
            for place, (number, content) in enumerate(IMAGES.items())
        )
    )
    (folder / f"{split}_texts.jsonl").write_text(
        "".join(
            json.dumps({"text_id": i, "text": t, "image_ids": ids}, ensure_ascii=False) + "\n"
            for i, t, ids in texts
        ),
        encoding="utf-8",
    )


def _contents(found: DataSet) -> dict[str, tuple[str, tuple[str, ...], bytes]]:
    return {i.image_id: (i.group, i.captions, i.read()) for i in found.images}


def test_tsv_and_jsonl_are_read(tmp_path: Path) -> None:
    """Each image has the texts that name it; images that share a text are a group.

    An image without a text is searched, and no more.
    """
    write(tmp_path, "valid")
    found = open_dataset(str(tmp_path), Columns(), "valid")
    assert not found.problems
    assert _contents(found) == {
        "7": ("7", ("红色的塔",), IMAGES[7]),
        "12": ("7", ("红色的塔", "白塔"), IMAGES[12]),
        "31": ("31", ("石桥，“旧”",), IMAGES[31]),
        "100": ("100", (), IMAGES[100]),
    }
    assert has_splits(str(tmp_path), Columns())


def test_what_its_own_tool_made_holds_the_same(tmp_path: Path) -> None:
    """cn_clip's build_lmdb_dataset.py runs as it is, and its LMDB loads to the same data set."""
    write(tmp_path, "train")
    before = _contents(open_dataset(str(tmp_path), Columns(), "train"))
    texts = read_texts(tmp_path, "train")
    tool = Path(cn_clip.preprocess.__file__).with_name("build_lmdb_dataset.py")
    subprocess.run(
        [sys.executable, str(tool), "--data_dir", str(tmp_path), "--splits", "train"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    (tmp_path / "train_imgs.tsv").unlink()
    (tmp_path / "train_texts.jsonl").unlink()
    after = open_dataset(str(tmp_path), Columns(), "train")
    assert _contents(after) == before
    assert [(one.text_id, one.text, one.image_ids) for one in read_texts(tmp_path, "train")] == [
        (one.text_id, one.text, one.image_ids) for one in texts
    ]
    assert _contents(open_dataset(str(tmp_path / "lmdb"), Columns(), "train")) == before


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return Path.touch, (self.mark,)


def test_a_pickle_that_wants_more_than_plain_values_is_refused(tmp_path: Path) -> None:
    """LMDB holds pickles: one that would run something is a bad row, and nothing is run."""
    mark = tmp_path / "ran"
    for name, entries in {
        "pairs": {
            b"num_samples": b"2",
            b"0": pickle.dumps((_Evil(mark), 1, "塔")),
            b"1": pickle.dumps((7, 2, "亭")),
        },
        "imgs": {b"num_images": b"1", b"7": base64.b64encode(IMAGES[7])},
    }.items():
        folder = tmp_path / "lmdb" / "train" / name
        folder.mkdir(parents=True)
        with lmdb.open(str(folder), map_size=2**20) as database, database.begin(write=True) as put:
            for key, value in entries.items():
                put.put(key, value)
    found = open_dataset(str(tmp_path), Columns(), "train")
    assert [problem.where for problem in found.problems] == ["train/pairs:0"]
    assert "wants" in found.problems[0].message
    assert _contents(found) == {"7": ("7", ("亭",), IMAGES[7])}
    assert not mark.exists()


def test_bad_lines_are_named(tmp_path: Path) -> None:
    """Lines that are no text, no image, twice there or name no image are reported by line."""
    write(tmp_path, "test")
    with (tmp_path / "test_texts.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": "塔"}\n')
        file.write(json.dumps({"text_id": 9, "text": "塔", "image_ids": [404]}) + "\n")
        file.write(json.dumps({"text_id": 10, "text": "", "image_ids": [7]}) + "\n")
    with (tmp_path / "test_imgs.tsv").open("a") as file:
        file.write("55\n")
        file.write(f"7\t{base64.b64encode(IMAGES[7]).decode()}\n")
    found = open_dataset(str(tmp_path), Columns(), "test")
    assert len(found) == 4
    assert [problem.where for problem in found.problems] == [
        "test_texts.jsonl:4",
        "test_imgs.tsv:5",
        "test_imgs.tsv:6",
        "test_texts.jsonl:5",
        "test_texts.jsonl:6",
    ]


def test_a_folder_of_splits_wants_one_named(tmp_path: Path) -> None:
    """Without a split the error names those that are there."""
    write(tmp_path, "train")
    write(tmp_path, "valid")
    with pytest.raises(BadDataError, match="train, valid"):
        open_dataset(str(tmp_path), Columns())
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
