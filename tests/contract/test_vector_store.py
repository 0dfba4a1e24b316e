"""The contract of the vector store port, on both kinds of Milvus."""

import contextlib
import itertools
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.domain import ImageRecord, IndexedImage, ObjectRef, SearchFilter, Vector, Version
from cra.shared.errors import FailedPreconditionError, UnavailableError
from cra.shared.ports import VectorStore
from cra.shared.settings import Settings
from tests.hostile import HOSTILE
from tests.servers import free_ports, milvus_process, wait_until

DIMENSION = 8
AWKWARD_KEYS = [
    "普通.jpg",
    'a"b.jpg',
    "a'b.jpg",
    "back\\slash.jpg",
    "per%cent_under.jpg",
    "with space+plus.jpg",
    '" or id != "',
    "emoji🏯.jpg",
    "new\nline.jpg",
    "x" * 1024,
]


@pytest.fixture(scope="module")
def store(any_milvus: str) -> Iterator[MilvusVectorStore]:
    """A vector store on each kind of Milvus."""
    with contextlib.closing(MilvusVectorStore(Settings(milvus_uri=any_milvus))) as store:
        yield store


@pytest.fixture
def tower(store: VectorStore) -> str:
    """A fresh, empty collection."""
    fingerprint = uuid.uuid4().hex[:16]
    store.ensure_collection(fingerprint, DIMENSION)
    return fingerprint


def unit(*values: float) -> Vector:
    """Return a unit vector that begins with these values."""
    vector = np.zeros(DIMENSION, np.float32)
    vector[: len(values)] = values
    return vector / np.float32(np.linalg.norm(vector))


def image(key: str, vector: Vector, bucket: str = "images", **changes: object) -> IndexedImage:
    """Return an image with some record."""
    fields: dict[str, object] = {
        "version": Version("etag", 1000),
        "metadata_digest": "0" * 16,
        "metadata": {"标题": '红"墙', "style": "唐"},
        "width": 640,
        "height": 480,
        "ingested_at": 1_700_000_000.5,
    }
    record = ImageRecord(ref=ObjectRef(bucket, key), **{**fields, **changes})  # type: ignore[arg-type]
    return IndexedImage(record, vector)


def found(store: VectorStore, tower: str, where: SearchFilter, limit: int = 100) -> set[str]:
    """Return the keys that a search finds, once all writes can be seen."""
    hits = store.search(tower, unit(1.0), limit, where)
    return {hit.record.ref.key for hit in hits}


def see(store: VectorStore, tower: str, count: int) -> None:
    """Wait until a search sees `count` images: searches may lag by a second."""
    wait_until(
        lambda: len(store.search(tower, unit(1.0), 1000, SearchFilter())) == count,
        f"{count} images are searchable",
    )


def test_search_orders_by_cosine_then_image_id(store: VectorStore, tower: str) -> None:
    """Hits come by falling cosine, equal ones by image_id, each with its whole record."""
    images = [image("b", unit(1, 1)), image("a", unit(1, 1)), image("c", unit(1)),
              image("d", unit(-1))]  # fmt: skip
    store.upsert(tower, images)
    see(store, tower, 4)
    hits = store.search(tower, unit(1.0), 10, SearchFilter())
    assert [hit.record.ref.key for hit in hits] == ["c", "a", "b", "d"]
    assert [hit.score for hit in hits] == pytest.approx([1, 0.5**0.5, 0.5**0.5, -1], abs=1e-5)
    assert hits[1].record == images[1].record


def test_images_are_counted_at_once(store: VectorStore, tower: str) -> None:
    """A count holds every finished write and deletion; without a collection there is none.

    Break: count with consistency Bounded (seen on the server).
    """
    assert store.count(tower) == 0
    store.upsert(tower, [image(key, unit(1.0)) for key in "abc"])
    assert store.count(tower) == 3
    store.upsert(tower, [image("a", unit(2.0))])
    store.delete(tower, [ObjectRef("images", "b")])
    assert store.count(tower) == 2
    with pytest.raises(FailedPreconditionError, match="no collection"):
        store.count("0" * 16)


def test_search_returns_vectors_when_asked(store: VectorStore, tower: str) -> None:
    """Each hit has its own vector if that is asked for, and none if not."""
    vectors = {"a": unit(1, 2), "b": unit(1, 0, 3)}
    store.upsert(tower, [image(key, vector) for key, vector in vectors.items()])
    see(store, tower, 2)
    hits = store.search(tower, unit(1.0), 10, SearchFilter(), with_vectors=True)
    assert len(hits) == 2
    for hit in hits:
        assert hit.vector == pytest.approx(vectors[hit.record.ref.key], abs=1e-6)
        assert hit.vector is not None
        assert hit.vector.dtype == np.float32
    hits = store.search(tower, unit(1.0), 10, SearchFilter())
    assert [hit.vector for hit in hits] == [None, None]


def test_sample_is_a_fixed_part(store: VectorStore, tower: str) -> None:
    """All of a small collection; of a larger one always the same part, as large as was asked."""
    rng = np.random.default_rng(0)
    vectors = [unit(*rng.standard_normal(DIMENSION)) for _ in range(300)]
    store.upsert(tower, [image(f"{n}", vector) for n, vector in enumerate(vectors[:40])])
    see(store, tower, 40)

    def sample(most: int) -> set[tuple[float, ...]]:
        found = store.sample(tower, most)
        assert found.dtype == np.float32
        assert found.shape[1] == DIMENSION
        rows = {tuple(row) for row in found.round(4).tolist()}
        assert len(rows) == len(found)
        return rows

    everything = {tuple(vector.round(4).tolist()) for vector in vectors}
    assert len(sample(100)) == 40
    store.upsert(tower, [image(f"{n}", vector) for n, vector in enumerate(vectors)])
    see(store, tower, 300)
    some = sample(100)
    assert 34 <= len(some) <= 110
    assert some < everything
    assert sample(100) == some
    assert sample(200) > some


def test_sample_stays_in_its_scope(store: VectorStore, tower: str) -> None:
    """Of the buckets of a scope alone, however many images others have."""
    own = [image(f"{n}", unit(1, n), bucket="own") for n in range(60)]
    others = [image(f"{n}", unit(-1, n), bucket="other") for n in range(100)]
    store.upsert(tower, [*own, *others])
    see(store, tower, 160)
    assert len(store.sample(tower, 100, ("own",))) == 60
    found = store.sample(tower, 30, ("own",))
    assert 10 <= len(found) <= 45
    assert (found[:, 0] > 0).all()
    assert len(store.sample(tower, 1000, ("own", "other"))) == 160
    assert len(store.sample(tower, 1000, ("nobody",))) == 0


def test_upsert_replaces(store: VectorStore, tower: str) -> None:
    """Writing an image again leaves one entry: the new one."""
    store.upsert(tower, [image("a", unit(1))])
    store.upsert(tower, [image("a", unit(0, 1), version=Version("new", 2000))])
    (record,) = store.records(tower, [ObjectRef("images", "a")])
    assert record.version == Version("new", 2000)
    assert len(list(store.entries(tower))) == 1
    see(store, tower, 1)
    (fetched,) = store.fetch(tower, [ObjectRef("images", "a")])
    assert fetched.vector == pytest.approx(unit(0, 1), abs=1e-6)


def test_any_key_is_found_and_removed_alone(store: VectorStore, tower: str) -> None:
    """A key of any characters is stored as it is, filtered by prefix, and removed by itself."""
    store.upsert(tower, [image(key, unit(1)) for key in AWKWARD_KEYS])
    refs = {key: ObjectRef("images", key) for key in AWKWARD_KEYS}
    records = store.records(tower, list(refs.values()))
    assert {record.ref for record in records} == set(refs.values())
    see(store, tower, len(AWKWARD_KEYS))
    for key in AWKWARD_KEYS:
        assert found(store, tower, SearchFilter(key_prefix=key)) == {key}
    while refs:
        _, ref = refs.popitem()
        store.delete(tower, [ref])
        assert {entry.ref for entry in store.entries(tower)} == set(refs.values())


def test_filters_hold_together(store: VectorStore, tower: str) -> None:
    """Buckets, prefix, metadata and times each restrict, and all that are set must hold."""
    store.upsert(
        tower,
        [
            image("唐/1", unit(1), metadata={"style": "唐"}, ingested_at=100.0),
            image("唐/2", unit(1), metadata={"style": "宋"}, ingested_at=200.0),
            image("宋/1", unit(1), metadata={"style": "宋", "city": "唐"}, ingested_at=300.0),
            image("唐/1", unit(1), bucket="other", metadata={}, ingested_at=400.0),
        ],
    )
    see(store, tower, 4)

    def ids(where: SearchFilter) -> set[str]:
        return {h.record.ref.image_id for h in store.search(tower, unit(1.0), 10, where)}

    assert ids(SearchFilter(buckets=("images",))) == {"images/唐/1", "images/唐/2", "images/宋/1"}
    assert ids(SearchFilter(key_prefix="唐/")) == {"images/唐/1", "images/唐/2", "other/唐/1"}
    assert ids(SearchFilter(metadata={"style": ("唐",)})) == {"images/唐/1"}
    assert ids(SearchFilter(metadata={"style": ("唐", "宋")}, key_prefix="宋")) == {"images/宋/1"}
    assert ids(SearchFilter(metadata={"style": ("宋",), "city": ("唐",)})) == {"images/宋/1"}
    assert ids(SearchFilter(ingested_after=200.0, ingested_before=400.0)) == {
        "images/唐/2",
        "images/宋/1",
    }
    assert ids(SearchFilter(buckets=("none",))) == set()
    # A scope restricts what is asked for, and what is asked for never widens it.
    assert ids(SearchFilter(scope=("other",))) == {"other/唐/1"}
    assert ids(SearchFilter(scope=("other",), key_prefix="唐/")) == {"other/唐/1"}
    assert ids(SearchFilter(scope=("other",), buckets=("images",))) == set()
    assert ids(SearchFilter(scope=("other",), buckets=("images", "other"))) == {"other/唐/1"}


def test_no_value_breaks_out_of_a_filter(store: VectorStore, tower: str) -> None:
    """A string filters for exactly itself, as bucket, prefix, and name and value of metadata.

    Each hostile string stands in all four places of one image. Fails when `_hex` or `tag` returns
    its text as it is.
    """
    images = [
        image(f"{text}/key", unit(1), bucket=text, metadata={text: text, "name": text})
        for text in HOSTILE
    ]
    store.upsert(tower, images)
    see(store, tower, len(HOSTILE))

    def buckets(where: SearchFilter) -> set[str]:
        return {hit.record.ref.bucket for hit in store.search(tower, unit(1.0), 1000, where)}

    for text in HOSTILE:
        assert buckets(SearchFilter(buckets=(text,))) == {text}
        assert buckets(SearchFilter(key_prefix=f"{text}/")) == {text}
        assert buckets(SearchFilter(metadata={"name": (text,)})) == {text}
        assert buckets(SearchFilter(metadata={text: (text,)})) == {text}
        assert buckets(SearchFilter(metadata={text: ("name",), "name": (text,)})) == set()
    assert buckets(SearchFilter(buckets=tuple(HOSTILE))) == set(HOSTILE)
    assert buckets(SearchFilter(metadata={"name": tuple(HOSTILE)})) == set(HOSTILE)


def test_no_name_breaks_out_of_a_key(store: VectorStore, tower: str) -> None:
    """An image is looked up, fetched and deleted by its name alone, whatever bucket and key hold.

    Fails when `_by_key` pastes image_ids in the primary keys' place.
    """
    refs = [ObjectRef(text, other) for text, other in itertools.pairwise(HOSTILE)]
    store.upsert(tower, [image(ref.key, unit(1), bucket=ref.bucket) for ref in refs])
    assert {record.ref for record in store.records(tower, refs)} == set(refs)
    see(store, tower, len(refs))
    for ref in refs:
        (record,) = store.records(tower, [ref])
        (fetched,) = store.fetch(tower, [ref])
        assert record.ref == fetched.record.ref == ref
    for number, ref in enumerate(refs):
        store.delete(tower, [ref])
        if number % 6 == 0:
            left = {entry.ref for entry in store.entries(tower)}
            assert left == set(refs[number + 1 :])
    assert list(store.entries(tower)) == []


def test_search_returns_as_many_as_asked(store: VectorStore, tower: str) -> None:
    """A thousand results come when there are as many, and the nearest are among them."""
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(1500, DIMENSION)).astype(np.float32)
    vectors = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    images = [image(f"{n:04}", vector) for n, vector in enumerate(vectors)]
    for start in range(0, 1500, 500):
        store.upsert(tower, images[start : start + 500])
    wait_until(lambda: len(list(store.entries(tower))) == 1500, "all are written")
    wait_until(
        lambda: len(store.search(tower, unit(1.0), 1016, SearchFilter())) == 1016, "searchable"
    )
    best = {f"{n:04}" for n in np.argsort(-vectors @ unit(1.0))[:100]}
    hits = store.search(tower, unit(1.0), 1016, SearchFilter())
    assert len(best & {hit.record.ref.key for hit in hits[:100]}) >= 98


def test_every_image_is_read_with_its_vector(store: VectorStore, tower: str) -> None:
    """All images come once, as they were written last, whole records and vectors to the bit.

    They are more than the reader takes at once, and not those that were deleted. Break: no `count`
    before the iterator, or only its first part.
    """
    rng = np.random.default_rng(0)
    keys = [f"{n:04}.jpg" for n in range(2500)]
    expected = {key: image(key, unit(*rng.standard_normal(DIMENSION))) for key in keys}
    for start in range(0, 2500, 500):
        store.upsert(tower, [expected[key] for key in keys[start : start + 500]])
    for key in keys[:200]:
        vector = unit(*rng.standard_normal(DIMENSION))
        expected[key] = image(key, vector, version=Version("new", 2000), metadata={}, width=1)
    store.upsert(tower, [expected[key] for key in keys[:200]])
    store.delete(tower, [expected.pop(key).record.ref for key in keys[-100:]])
    assert store.count(tower) == 2400
    found = list(store.images(tower))
    assert len(found) == 2400
    for one in found:
        wanted = expected.pop(one.record.ref.key)
        assert one.record == wanted.record
        assert one.vector.dtype == np.float32
        assert one.vector.tobytes() == wanted.vector.tobytes()
    refs = [ObjectRef("images", key) for key in keys[:1000]]
    assert {record.ref for record in store.records(tower, refs)} == set(refs)


def test_a_collection_tells_its_dimension(store: VectorStore, tower: str) -> None:
    """An empty one has a dimension and nothing in it; one that was never made has none.

    Break: make it where it is looked for.
    """
    assert store.dimension(tower) == DIMENSION
    assert store.count(tower) == 0
    assert list(store.images(tower)) == []
    assert store.dimension("nevermade") is None


def test_unknown_collection_is_a_failed_precondition(store: VectorStore) -> None:
    """What asks for a collection that was never made is told so, instead of finding nothing."""
    with pytest.raises(FailedPreconditionError):
        store.search("nevermade", unit(1.0), 1, SearchFilter())
    with pytest.raises(FailedPreconditionError):
        store.count("nevermade")
    with pytest.raises(FailedPreconditionError):
        next(store.images("nevermade"))


def test_deleting_what_is_not_there_is_no_error(store: VectorStore, tower: str) -> None:
    """Deletes are idempotent."""
    store.delete(tower, [ObjectRef("images", "nothing")])
    assert list(store.entries(tower)) == []


def test_down_is_unavailable() -> None:
    """A database that does not answer raises UnavailableError, never an empty result."""
    (port,) = free_ports(1)
    store = MilvusVectorStore(Settings(milvus_uri=f"http://127.0.0.1:{port}", milvus_timeout=1))
    with pytest.raises(UnavailableError):
        store.search("any", unit(1.0), 1, SearchFilter())


def test_hanging_is_unavailable_within_the_timeout(tmp_path: Path) -> None:
    """A database that stops in the middle is named by every call, each as late as is set."""
    with milvus_process(tmp_path, "lite") as (uri, process):
        settings = Settings(milvus_uri=uri, milvus_timeout=1)
        with contextlib.closing(MilvusVectorStore(settings)) as store:
            store.ensure_collection("f00d", DIMENSION)
            store.upsert("f00d", [image(f"{n}", unit(1.0)) for n in range(1001)])
            entries = store.entries("f00d")
            next(entries)
            os.kill(process, signal.SIGSTOP)
            calls: list[Callable[[], object]] = [
                lambda: list(entries),
                lambda: store.ensure_collection("f00d", DIMENSION),
                lambda: store.upsert("f00d", [image("a", unit(1.0))]),
                lambda: store.delete("f00d", [ObjectRef("images", "a")]),
                lambda: store.search("f00d", unit(1.0), 1, SearchFilter()),
                lambda: store.fetch("f00d", [ObjectRef("images", "a")]),
                lambda: store.records("f00d", [ObjectRef("images", "a")]),
                lambda: list(store.entries("f00d")),
                lambda: list(store.images("f00d")),
                lambda: store.count("f00d"),
                lambda: store.dimension("f00d"),
            ]
            for call in calls:
                began = time.monotonic()
                with pytest.raises(UnavailableError, match="Milvus does not answer"):
                    call()
                assert time.monotonic() - began < 10
