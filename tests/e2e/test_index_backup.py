"""An index that is lost comes back from its file, or from the bucket alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cra.services.cli import index_file
from cra.shared.adapters.vector_store import MilvusVectorStore, collection_name
from cra.shared.domain import ImageRecord
from tests.checkpoints import make_checkpoint
from tests.e2e.test_stack import photograph
from tests.servers import wait_until
from tests.stack import Stack, local_stack

COUNT = 40
QUERIES = ("红墙", "飞檐下的大门", "石桥")
WRITTEN = "cra_ingest_lag_seconds_count"
OVERWRITTEN, DELETED, ADDED = range(3), range(3, 7), range(COUNT, COUNT + 5)


class Index:
    """The index of a running stack, seen from behind."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.store = MilvusVectorStore(stack.settings)
        self.tower = stack.status().image_tower

    def lose(self) -> None:
        """Drop the collection, as if its Milvus were made anew."""
        self.store._call("drop_collection", collection_name(self.tower))

    def records(self) -> dict[str, ImageRecord]:
        """Return every record, by key."""
        return {one.record.ref.key: one.record for one in self.store.images(self.tower)}

    def answers(self) -> list[dict[str, float]]:
        """Return the score of every image for some queries."""
        found = [self.stack.search.search(query, top_k=200).hits for query in QUERIES]
        return [{hit.key: hit.score for hit in hits} for hits in found]

    def answers_as(self, before: list[dict[str, float]]) -> None:
        """Wait until it answers as before; vectors are made in other batches than they were."""
        expected = [pytest.approx(scores, abs=1e-3) for scores in before]
        wait_until(lambda: self.answers() == expected, "it answers as before")

    def embedded(self) -> int:
        """Return how many images the worker has written since it started."""
        page = self.stack.metrics()["worker_metrics_port"]
        (line,) = [
            one for one in page.splitlines() if one.startswith("cra_ingest_lag_seconds_count")
        ]
        return int(float(line.split()[-1]))

    def cra(self, *arguments: str) -> dict[str, Any]:
        """Run `cra … --json` and return what it says."""
        done = self.stack.cra(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said


@pytest.fixture(params=["lite", pytest.param("server", marks=pytest.mark.slow)])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Index]:
    """A stack whose index follows some pictures, and which reconciles only when it is told to."""
    if request.param == "server":
        pytest.importorskip("milvus", reason="the Milvus server's wheel does not install here")
    model = make_checkpoint(tmp_path / "model")
    changes = {"RECONCILE_SECONDS": "86400"}
    with local_stack(tmp_path / "data", model, request.param, **changes) as stack:
        for number in range(COUNT):
            stack.put(f"{number}.jpg", photograph(number), {"number": str(number)})
        wait_until(stack.settled, "all are indexed", 60)
        yield Index(stack)


def test_a_lost_index_comes_back(index: Index, tmp_path: Path) -> None:
    """From its file, with only what changed since embedded; then from the bucket alone.

    Each time status adds up and every query is answered as before the loss. Break: `ingested_at`
    or the version is not saved.
    """
    stack, file = index.stack, str(tmp_path / "index.jsonl.gz")
    assert index.cra("index", "save", file)["images"] == COUNT
    for number in (*OVERWRITTEN, *ADDED):
        stack.put(f"{number}.jpg", photograph(1000 + number))
    for number in DELETED:
        stack.bucket.remove_object("images", f"{number}.jpg")
    wait_until(stack.settled, "the changes are indexed", 60)
    for number in (*OVERWRITTEN, *ADDED):
        stack.follows(photograph(1000 + number), f"{number}.jpg")
    records = index.records()
    wait_until(lambda: index.answers()[0].keys() == records.keys(), "none of the deleted is found")
    answers = index.answers()
    unchanged = [
        record for record in records.values() if int(record.ref.key[:-4]) in range(7, COUNT)
    ]
    assert len(unchanged) == COUNT - len(OVERWRITTEN) - len(DELETED)

    index.lose()
    loaded = index.cra("index", "load", file)
    assert (loaded["images"], loaded["written"]) == (COUNT, COUNT)
    before = index.embedded()
    status = stack.status()
    assert status.stale == len(OVERWRITTEN)
    assert status.orphaned == len(DELETED)
    assert status.unaccounted == len(OVERWRITTEN) + len(ADDED)
    said = index.cra("reconcile")["summary"]
    wait_until(stack.settled, "what changed is indexed", 60)
    assert [int(said[name]) for name in ("missing", "stale", "orphaned")] == [5, 3, 4]
    assert index.embedded() - before == len(OVERWRITTEN) + len(ADDED)
    restored = index.records()
    assert restored.keys() == records.keys()
    assert [restored[one.ref.key] for one in unchanged] == unchanged  # `ingested_at` included
    index.answers_as(answers)

    # Loaded once more over what is newer, it brings back what is deleted, and only that.
    assert index.cra("index", "load", file)["written"] == len(DELETED)
    assert index.cra("reconcile")["summary"]["stale"] == "0"
    wait_until(stack.settled, "what is deleted is gone again", 60)
    index.answers_as(answers)

    index.lose()
    before = index.embedded()
    assert int(index.cra("reconcile")["summary"]["missing"]) == len(records)
    wait_until(stack.settled, "it is filled from the bucket", 60)
    assert index.embedded() - before == len(records)
    assert index.records().keys() == records.keys()
    index.answers_as(answers)


def test_a_file_of_another_model_is_refused(index: Index, tmp_path: Path) -> None:
    """What embedding does not serve is not loaded unless it is named; the index stays as it is.

    Break: no `_check_tower`.
    """
    file = tmp_path / "index.jsonl.gz"
    index.cra("index", "save", str(file))
    with file.open("rb") as raw:
        header = index_file.read_header(raw)
        images = list(index_file.read(raw))
    assert header.image_tower == index.tower
    with file.open("wb") as raw:
        index_file.write(raw, header.model_copy(update={"image_tower": "f00d"}), images)
    done = index.stack.cra("index", "load", str(file))
    assert done.returncode == 1
    assert f"embedding serves {index.tower}" in " ".join(done.stderr.split())
    assert index.store.dimension("f00d") is None
    assert index.cra("index", "load", str(file), "--image-tower", "f00d")["written"] == COUNT
    assert index.store.count("f00d") == COUNT
    assert index.stack.settled()
