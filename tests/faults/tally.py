"""What must be where, known by who wrote it, and counts of what is, taken beside the services.

They are taken from the bucket, the index and the failure list themselves.
"""

import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import grpc
import redis
from minio import Minio

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.shared.adapters.vector_store import MilvusVectorStore
from tests.faults.traffic import BUCKET, FOUND, Record, Writer
from tests.servers import wait_until
from tests.stack import Stack

ANCHORS: Final = 30
COUNTS_APART: Final = 1.0
"""Seconds between two counts."""
SAMPLE: Final = 20
"""Objects that are looked for by their own pictures in the end."""


@dataclass
class Sums:
    """What is where, counted beside the services; each list should be as its name says."""

    objects: int = 0
    indexed: int = 0
    """At the current ETag, once."""
    failed: Counter[str] = field(default_factory=Counter)
    """Objects on the failure list at their current ETag, by reason."""
    lost: list[str] = field(default_factory=list)
    """In the bucket, and neither indexed nor on the failure list at their current ETag."""
    unkept: list[str] = field(default_factory=list)
    """Acknowledged by the store, and not there as written; or deleted and there."""
    duplicates: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    """Rows of another version than the object's, or of an object on the failure list."""
    blamed: list[str] = field(default_factory=list)
    """On the failure list with nothing wrong with them."""
    status: str = ""
    """In what GetStatus says otherwise."""

    def problems(self) -> list[str]:
        """Return what does not add up, in words."""
        found = [
            f"{len(keys)} {name}, such as {keys[0]}"
            for name in ("lost", "unkept", "duplicates", "orphans", "stale", "blamed")
            if (keys := getattr(self, name))
        ]
        return [*found, self.status] if self.status else found


class Tally:
    """What was put into a stack, and counts of what became of it.

    Args:
        stack: whose status is compared with the counts.
        bucket: the store, reached directly.
        index: likewise.
        line: Redis, likewise.
    """

    def __init__(
        self, stack: Stack, bucket: Minio, index: MilvusVectorStore, line: redis.Redis
    ) -> None:
        self.stack, self.bucket, self.index, self.redis = stack, bucket, index, line
        self.record = Record()
        self.anchors: dict[str, bytes] = {}
        self.tower = stack.status().image_tower

    def close(self) -> None:
        """Close connections."""
        self.index.close()
        self.redis.close()

    def sums(self) -> Sums:
        """Count everything.

        Raises:
            Exception: in the ways of each SDK, while a part does not answer.
        """
        sums = Sums()
        listed = {
            item.object_name or "": (item.etag or "").strip('"')
            for item in self.bucket.list_objects(BUCKET, recursive=True)
        }
        wanted = {key: content.etag for key, content in self.record.there.items()}
        sums.objects = len(listed)
        sums.unkept = sorted(
            key for key in {*listed, *wanted} if listed.get(key) != wanted.get(key)
        )
        rows = list(self.index.entries(self.tower))
        keys = Counter(row.ref.key for row in rows)
        sums.duplicates = [key for key, count in keys.items() if count > 1]
        sums.orphans = [key for key in keys if key not in listed]
        failures = {failure.image_id: failure for failure in self.failures()}
        current = {
            str(image_id).removeprefix(f"{BUCKET}/"): failure.reason
            for image_id, failure in failures.items()
            if failure.etag == listed.get(image_id.removeprefix(f"{BUCKET}/"))
        }
        sums.failed = Counter(current.values())
        sums.stale = [
            row.ref.key
            for row in rows
            if row.ref.key in current or row.version.etag != listed.get(row.ref.key, "")
        ]
        at_current = {row.ref.key for row in rows if row.version.etag == listed.get(row.ref.key)}
        sums.indexed = len(at_current)
        sums.lost = [key for key in listed if key not in at_current and key not in current]
        sums.blamed = [key for key in current if key in self.record.there and self.good(key)]
        status = self.stack.status()
        said = (status.objects, status.indexed, status.failed)
        left = (status.waiting, status.unaccounted, status.stale, status.orphaned)
        ours = (sums.objects, sums.indexed, sum(sums.failed.values()))
        if said != ours or any(left) or status.down:
            sums.status = (
                f"status says (objects, indexed, failed) {said}, counted are {ours}; waiting, "
                f"unaccounted, stale, orphaned: {left}; down: {list(status.down)}"
            )
        return sums

    def good(self, key: str) -> bool:
        """Tell whether what is there is an image."""
        return self.record.there[key].good

    def failures(self) -> list[ingest.Failure]:
        """Return the failure list."""
        found: list[ingest.Failure] = []
        token = ""
        while True:
            request = ingest.ListFailuresRequest(page_size=1000, page_token=token)
            page = self.stack.ingest.ListFailures(request, timeout=20)
            found += page.failures
            token = page.next_page_token
            if not token:
                return found

    def heal(self, seconds: float) -> tuple[Sums, float, list[str]]:
        """Wait until everything adds up, or so many seconds; return counts, time and problems."""
        began = time.monotonic()
        sums, problems = Sums(), ["nothing could be counted"]

        def healed() -> bool:
            nonlocal sums, problems
            try:
                sums = self.sums()
                problems = sums.problems()
            except Exception as error:  # whatever does not answer yet
                problems = [f"cannot be counted: {error!r}"]
            return not problems

        with contextlib.suppress(AssertionError):
            wait_until(healed, "it adds up", seconds, every=COUNTS_APART)
        return sums, time.monotonic() - began, problems

    def indexed(self) -> set[str]:
        """Return the keys in the index."""
        return {entry.ref.key for entry in self.index.entries(self.tower)}

    def next_reconcile(self) -> str:
        """Wait until the next reconcile has ended; return why it stopped, if it did."""
        asked = time.time()
        found: list[ingest.ReconcileSummary] = []

        def done() -> bool:
            with contextlib.suppress(grpc.RpcError):
                found[:] = [self.stack.status().last_reconcile]
            return bool(found) and found[0].started_at.ToNanoseconds() / 1e9 > asked

        wait_until(done, "the next reconcile", 150, every=COUNTS_APART)
        return found[0].stopped

    def in_mid_batch(self) -> None:
        """Wait until a worker holds objects."""
        wait_until(lambda: int(self.redis.zcard("cra:claimed")) > 0, "a worker is at work")

    def delete_share(self, share: float) -> set[str]:
        """Delete this share of what is there, anchors aside.

        Returns the keys that were indexed, without those in line: a worker looks at them anyway.
        """
        keys = sorted(key for key in self.record.there if key not in self.anchors)
        gone = set(keys[: round(share * len(keys))])
        in_line = {
            str(image_id).removeprefix(f"{BUCKET}/")
            for line in ("cra:waiting", "cra:claimed")
            for image_id in self.redis.zrange(line, 0, -1)
        }
        indexed = (gone & self.indexed()) - in_line
        for key in gone:
            Writer(self.bucket, self.record, 0, 0).delete(key)
        return indexed

    def fill(self) -> None:
        """Put the anchors, which nobody changes, and wait until they are indexed."""
        writer = Writer(self.bucket, self.record, 0, 0)
        for number in range(ANCHORS):
            key = f"anchors/{number}.jpg"
            writer.put(key)
            self.anchors[key] = self.record.there[key].data
        _, _, problems = self.heal(120)
        assert not problems, problems

    def not_found(self) -> list[str]:
        """Look for some of what is there by its own picture; return what is wrong."""
        good = [key for key, content in sorted(self.record.there.items()) if content.good]
        problems = []
        for key in good[:: max(1, len(good) // SAMPLE)]:
            try:
                hits = self.stack.search.search(image=self.record.there[key].data, top_k=5).hits
            except Exception as error:
                return [f"queries fail in the end: {error}"]
            if not any(hit.key == key and hit.score > FOUND for hit in hits):
                problems.append(f"{key} is not found in the end")
        return problems
