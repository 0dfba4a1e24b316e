"""`cra index save` and `cra index load`, on Milvus Lite."""

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cra.services.cli import index, index_file
from cra.services.cli.group import cra
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.domain import ImageRecord, IndexedImage, ObjectRef, Version
from cra.shared.errors import UnavailableError
from tests.fakes import ColourEncoder

DIMENSION = 8
COUNT = 25


class Desk:
    """An index, a file, and the command line."""

    def __init__(self, store: MilvusVectorStore, milvus: str, folder: Path) -> None:
        self.store = store
        self.milvus = milvus
        self.file = folder / "index.jsonl.gz"
        self.tower = self.make_index()

    def make_index(self) -> str:
        """Make an index of some images; return its image tower."""
        tower = uuid.uuid4().hex[:16]
        self.store.ensure_collection(tower, DIMENSION)
        self.store.upsert(tower, [image(number) for number in range(COUNT)])
        return tower

    def cra(self, *arguments: str) -> Result:
        """Run `cra index`."""
        env = {"CRA_MILVUS_URI": self.milvus, "COLUMNS": "200"}
        return CliRunner().invoke(cra, ["index", *arguments, "--image-tower", self.tower], env=env)

    def save(self) -> dict[str, Any]:
        """Save the index."""
        return said(self.cra("save", str(self.file), "--json"))

    def load(self) -> dict[str, Any]:
        """Load it."""
        return said(self.cra("load", str(self.file), "--json"))

    def content(self) -> dict[str, tuple[ImageRecord, bytes]]:
        """Return what is in the index, by key."""
        return {
            one.record.ref.key: (one.record, one.vector.tobytes())
            for one in self.store.images(self.tower)
        }

    def lose(self) -> None:
        """Lose the index, as if its Milvus were made anew."""
        self.store._call("drop_collection", f"cra2_{self.tower}")


def image(number: int, ingested_at: float = 1000.0, etag: str = "old") -> IndexedImage:
    """Return some image; the vector tells its number and its version."""
    record = ImageRecord(
        ref=ObjectRef("images", f'目录/{number}".jpg'),
        version=Version(etag, 1_700_000_000),
        metadata_digest="0" * 16,
        metadata={"city": "西安"},
        width=640,
        height=480,
        ingested_at=ingested_at,
    )
    rng = np.random.default_rng((number, len(etag)))
    vector = rng.standard_normal(DIMENSION).astype(np.float32)
    return IndexedImage(record, vector / np.float32(np.linalg.norm(vector)))


def said(done: Result) -> dict[str, Any]:
    """Return what a command says with --json."""
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def desk(vectors: MilvusVectorStore, milvus_lite: str, tmp_path: Path) -> Desk:
    """An index of its own."""
    return Desk(vectors, milvus_lite, tmp_path)


def test_a_lost_index_comes_back_as_it_was(desk: Desk) -> None:
    """Saved, lost and loaded: every record and vector is there again, to the bit.

    Break: leave the metadata out of what is written.
    """
    before = desk.content()
    assert desk.save()["images"] == COUNT == len(before)
    desk.lose()
    loaded = desk.load()
    assert (loaded["images"], loaded["written"], loaded["kept"]) == (COUNT, COUNT, 0)
    assert desk.content() == before
    again = desk.cra("load", str(desk.file))
    assert f"{COUNT} images of" in again.stdout
    assert f"0 written, {COUNT} there already" in again.stdout
    assert "cra reconcile" in again.stderr


def test_what_is_newer_stays(desk: Desk) -> None:
    """What was indexed after the file was saved is kept; what is older or lacks is written.

    Break: upsert every image of the file.
    """
    desk.store.upsert(desk.tower, [image(3, 2000.0)])
    desk.save()
    at_save = desk.content()
    newer, older = image(1, 3000.0, "overwritten"), image(3, 1000.0, "older")
    new = image(COUNT, 3000.0)
    desk.store.upsert(desk.tower, [newer, older, new])
    desk.store.delete(desk.tower, [image(2).record.ref])
    loaded = desk.load()
    assert (loaded["written"], loaded["kept"]) == (2, COUNT - 2)
    expected = dict(at_save)
    for one in (newer, new):
        expected[one.record.ref.key] = (one.record, one.vector.tobytes())
    assert desk.content() == expected


def test_a_load_goes_on_where_it_was_cut(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage in the middle ends it with exit code 3; the same command writes the rest.

    Break: exit code 1 for every error, or write what is there already once more.
    """
    desk.save()
    before = desk.content()
    desk.lose()
    monkeypatch.setattr(index, "BATCH", 10)
    written: list[int] = []
    upsert = MilvusVectorStore.upsert

    def failing(self: MilvusVectorStore, tower: str, images: Sequence[IndexedImage]) -> None:
        if len(written) == 1:
            raise UnavailableError("Milvus does not answer")
        written.append(len(images))
        upsert(self, tower, images)

    with monkeypatch.context() as patch:
        patch.setattr(MilvusVectorStore, "upsert", failing)
        cut = desk.cra("load", str(desk.file))
    assert (cut.exit_code, written) == (3, [10])
    assert len(desk.content()) == 10
    assert desk.load()["written"] == COUNT - 10
    assert desk.content() == before


def test_a_bad_file_is_refused_before_anything_is_written(desk: Desk) -> None:
    """Torn in its last byte, changed in its middle, or no such file: no collection is made.

    Break: load while it is checked.
    """
    desk.save()
    whole = desk.file.read_bytes()
    desk.lose()
    middle = len(whole) // 2
    for content in (
        whole[:-1],
        whole[:middle],
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        whole + whole,
        b"bucket,key\n",
        b"",
    ):
        desk.file.write_bytes(content)
        done = desk.cra("load", str(desk.file))
        assert done.exit_code == 1
        assert str(desk.file) in done.stderr
        assert desk.store.dimension(desk.tower) is None
    desk.file.write_bytes(whole)
    assert desk.load()["written"] == COUNT


def test_vectors_of_two_towers_do_not_mix(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another tower than is named or served, or of other dimensions, is refused.

    The message names both towers, and how to load it all the same. Break: no `_check_tower`.
    """
    desk.save()
    ours, desk.tower = desk.tower, desk.make_index()
    before = desk.content()
    named = desk.cra("load", str(desk.file))
    assert named.exit_code == 1
    assert f"{ours}, not {desk.tower}" in named.stderr
    tower = ColourEncoder().models().image_tower
    monkeypatch.setattr(index, "_served", lambda _: tower)
    env = {"CRA_MILVUS_URI": desk.milvus}
    served = CliRunner().invoke(cra, ["index", "load", str(desk.file)], env=env)
    assert served.exit_code == 1
    assert tower.fingerprint in served.stderr
    assert f"--image-tower {ours}" in served.stderr
    assert desk.content() == before
    desk.tower = ours
    desk.lose()
    desk.store.ensure_collection(ours, DIMENSION + 1)
    dimension = desk.cra("load", str(desk.file))
    assert dimension.exit_code == 1
    assert f"{DIMENSION} dimensions, those of the index {DIMENSION + 1}" in dimension.stderr
    assert desk.store.count(ours) == 0


def test_a_save_that_fails_leaves_the_last_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Milvus that fails in the middle, an empty index, a lost one: the file of before stays.

    And nothing else is left beside it. Break: write into the file itself.
    """
    desk.save()
    whole = desk.file.read_bytes()
    images = MilvusVectorStore.images

    def failing(self: MilvusVectorStore, tower: str) -> Iterator[IndexedImage]:
        yield next(images(self, tower))
        raise UnavailableError("Milvus does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(MilvusVectorStore, "images", failing)
        assert desk.cra("save", str(desk.file)).exit_code == 3
    desk.lose()
    lost = desk.cra("save", str(desk.file))
    desk.store.ensure_collection(desk.tower, DIMENSION)
    empty = desk.cra("save", str(desk.file))
    for done in (lost, empty):
        assert (done.exit_code, "is empty" in done.stderr) == (1, True)
    assert desk.cra("save", str(desk.file.parent / "none" / "index.gz")).exit_code == 1
    assert [file.name for file in desk.file.parent.iterdir()] == [desk.file.name]
    assert desk.file.read_bytes() == whole
    with desk.file.open("rb") as raw:
        assert len(list(index_file.read(raw))) == COUNT


def test_no_device_is_replaced(desk: Desk) -> None:
    """What is there and no regular file is the command line's fault; a link's target is replaced.

    Break: `Path.replace` of whatever is there, which as root takes away /dev/null.
    """
    pipe, link = desk.file.parent / "pipe", desk.file.parent / "link"
    os.mkfifo(pipe)
    assert desk.cra("save", str(pipe)).exit_code == 2
    assert pipe.is_fifo()
    link.symlink_to(desk.file)
    assert desk.cra("save", str(link)).exit_code == 0
    assert link.is_symlink()
    assert desk.load()["images"] == COUNT


@pytest.mark.parametrize("fingerprint", ["", "F00D", "a b", "0" * 65, "cra2_f00d"])
def test_a_fingerprint_is_hex(fingerprint: str, tmp_path: Path) -> None:
    """Anything else is refused as the command line's fault, before anyone is asked.

    Break: `--image-tower` of type str.
    """
    arguments = ["index", "save", str(tmp_path / "a"), "--image-tower", fingerprint]
    assert CliRunner().invoke(cra, arguments).exit_code == 2
