"""A bucket, an index and a ledger that tests ingest with: real ones; only the model is a fake."""

import contextlib
import io
import uuid
from collections.abc import Iterator

import redis
from minio import Minio
from minio.deleteobjects import DeleteObject

from cra.services.ingest import tasks
from cra.services.ingest.ledger import Ledger
from cra.services.ingest.reconcile import Reconciler
from cra.services.ingest.sync import Outcome, Synchronizer
from cra.shared.adapters.object_store import S3ObjectStore, connect, encode_metadata
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.domain import ObjectRef
from cra.shared.model.pixels import prepare
from cra.shared.settings import Settings
from tests.fakes import COLOURS, ColourEncoder, picture, vector_of

A, B, C = (ObjectRef("images", key) for key in ("a.png", "目录/b b.png", "c.png"))
RED, GREEN, BLUE = COLOURS["红"], COLOURS["绿"], COLOURS["蓝"]


class World:
    """A bucket, an index and a ledger, all empty."""

    def __init__(self, s3: Settings, vectors: MilvusVectorStore, redis_url: str) -> None:
        self.client: Minio = connect(s3)
        self.objects = S3ObjectStore(s3)
        self.vectors = vectors
        self.encoder = ColourEncoder(uuid.uuid4().hex[:16])
        self.redis_url = redis_url
        self.ledger = Ledger(redis_url, 60)
        self.settings = s3
        self.synchronizer = self.make_synchronizer(self.encoder)
        self.woken = 0
        self.reconciler = Reconciler(
            self.objects, vectors, self.encoder, self.ledger, ("images",), 0.1, self.wake
        )
        self.clear()

    def make_synchronizer(
        self, encoder: ColourEncoder, most: int = 10**6, objects: S3ObjectStore | None = None
    ) -> Synchronizer:
        """Return one on this world's stores."""
        return Synchronizer(objects or self.objects, self.vectors, encoder, most, ("images",))

    def wake(self) -> None:
        """Count how often the workers were called."""
        self.woken += 1

    def clear(self) -> None:
        """Empty the bucket."""
        keys = [
            DeleteObject(item.object_name or "")
            for item in self.client.list_objects("images", recursive=True)
        ]
        assert list(self.client.remove_objects("images", keys)) == []

    def put(self, ref: ObjectRef, content: bytes, metadata: dict[str, str] | None = None) -> None:
        """Put an object."""
        self.client.put_object(
            ref.bucket,
            ref.key,
            io.BytesIO(content),
            len(content),
            metadata=encode_metadata(metadata or {}),
        )

    def remove(self, ref: ObjectRef) -> None:
        """Remove an object."""
        self.client.remove_object(ref.bucket, ref.key)

    def sync(self, *refs: ObjectRef) -> Outcome:
        """Sync and return what became of it."""
        return self.synchronizer.sync(refs)

    def drain(self) -> None:
        """Work off the line."""
        while tasks.drain(self.ledger, self.synchronizer, self.objects, self.settings, seconds=5):
            pass

    def index(self) -> set[ObjectRef]:
        """Return what is in the index."""
        return {entry.ref for entry in self.vectors.entries(self.encoder.fingerprint)}

    def holds(self, ref: ObjectRef, colour: tuple[int, int, int]) -> bool:
        """Tell whether the index holds the vector of this colour for this object."""
        (found,) = self.vectors.fetch(self.encoder.fingerprint, [ref])
        expected = vector_of(prepare(picture(colour), self.encoder.preprocessing).pixels)
        return bool(found.vector @ expected > 0.9999)


@contextlib.contextmanager
def empty(s3: Settings, vectors: MilvusVectorStore, redis_url: str) -> Iterator[World]:
    """Return a world on these servers, with nothing in it."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        yield World(s3, vectors, redis_url)
