"""The search page over real HTTP, on a real gateway, ingest and stores, with a fake model."""

import contextlib
import io
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import redis
import uvicorn
from minio import Minio
from pydantic import SecretStr

from cra.ingest.v1 import ingest_pb2_grpc as ingest_grpc
from cra.search.v1 import search_pb2_grpc as search_grpc
from cra.services.gateway.keys import KeyRing
from cra.services.gateway.paging import PageTokens
from cra.services.gateway.query_cache import QueryCache
from cra.services.gateway.search import SearchEngine
from cra.services.gateway.servicer import SearchServicer
from cra.services.ingest import tasks
from cra.services.ingest.ledger import Ledger
from cra.services.ingest.reconcile import Reconciler
from cra.services.ingest.servicer import CHANGING, IngestServicer
from cra.services.ingest.sync import Synchronizer
from cra.services.web.app import create_app
from cra.services.web.backends import INGEST, Backends, IngestClient
from cra.shared.adapters.object_store import S3ObjectStore, connect, encode_metadata
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.api_keys import ApiKey, change_keys, digest_of, new_key
from cra.shared.client import SERVICE, SearchClient
from cra.shared.server import Server
from cra.shared.settings import Settings
from tests.fakes import ColourEncoder
from tests.servers import free_ports, wait_until

OWN = {"X-CRA-Request": "1"}


@dataclass
class Page:
    """A page and what stands behind it.

    Attributes:
        url: where it is.
        client: over HTTP, for callers that are no browser.
        settings: its own.
        store: the bucket, with all rights.
        encoder: the model.
    """

    url: str
    client: httpx.Client
    settings: Settings
    store: Minio
    encoder: ColourEncoder
    ledger: Ledger
    synchronizer: Synchronizer
    reconciler: Reconciler
    objects: S3ObjectStore

    def put(self, key: str, content: bytes, metadata: dict[str, str] | None = None) -> None:
        """Put an object into the bucket."""
        headers = encode_metadata(metadata or {})
        self.store.put_object("images", key, io.BytesIO(content), len(content), metadata=headers)

    def work(self) -> None:
        """Index what is in the bucket and not in the index."""
        for _ in self.reconciler.reconcile(allow_mass_deletion=True):
            pass
        tasks.drain(self.ledger, self.synchronizer, self.objects, self.settings)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Have the index follow the bucket meanwhile."""
        stop = threading.Event()

        def loop() -> None:
            while not stop.wait(0.2):
                self.work()

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def search(self, **asked: object) -> httpx.Response:
        """Search as a browser does."""
        return self.client.post("/api/search", json=asked)


@contextlib.contextmanager
def serving(
    s3: Settings, milvus: str, redis_url: str, folder: Path, **changes: object
) -> Iterator[Page]:
    """Run a page on an empty bucket and index, behind a gateway that asks for an API key.

    Args:
        s3: an object store.
        milvus: its URI.
        redis_url: of a server that nobody else uses meanwhile.
        folder: of files of its own.
        changes: of its settings.
    """
    key, token = new_key(), "tests-service-token"
    change_keys(folder / "keys.json", lambda _: [ApiKey(name="page", sha256=digest_of(key))])
    with redis.Redis.from_url(redis_url) as line:
        line.flushdb()
    store = connect(s3)
    for item in store.list_objects("images", recursive=True):
        store.remove_object("images", item.object_name or "")
    encoder = ColourEncoder(uuid.uuid4().hex[:16])
    with contextlib.ExitStack() as stack:
        vectors = stack.enter_context(
            contextlib.closing(MilvusVectorStore(Settings(milvus_uri=milvus)))
        )
        objects, ledger = S3ObjectStore(s3), Ledger(redis_url, 60)
        engine = SearchEngine(encoder, vectors, objects, PageTokens("key"), QueryCache(100))
        engine.check()
        ring = stack.enter_context(contextlib.closing(KeyRing(folder / "keys.json")))
        searcher = stack.enter_context(contextlib.closing(SearchServicer(engine, 16, ring)))
        reconciler = Reconciler(objects, vectors, encoder, ledger, ("images",), 1.0, lambda: None)
        follower = IngestServicer(ledger, reconciler, ("images",), lambda: None)
        gateway = Server(
            Settings(max_calls=16, drain_seconds=1),
            SERVICE,
            0,
            lambda server: search_grpc.add_SearchServiceServicer_to_server(searcher, server),
            engine.check,
            check=searcher.check,
        )
        ingest = Server(
            Settings(drain_seconds=1),
            INGEST,
            0,
            lambda server: ingest_grpc.add_IngestServiceServicer_to_server(follower, server),
            ledger.ping,
            tokens=dict.fromkeys(CHANGING, token),
        )
        for server in (gateway, ingest):
            server.start()
            stack.callback(server.stop)
        settings = s3.model_copy(
            update={
                "gateway_target": f"dns:///127.0.0.1:{gateway.port}",
                "ingest_target": f"dns:///127.0.0.1:{ingest.port}",
                "api_key": SecretStr(key),
                "service_token": SecretStr(token),
                "web_thumbnails": str(folder / "thumbnails"),
                **changes,
            }
        )
        backends = Backends(
            SearchClient.of(settings),
            IngestClient(settings),
            encoder,  # type: ignore[arg-type]  # fulfils the port
            S3ObjectStore(settings),
        )
        stack.callback(backends.gateway.close)
        stack.callback(backends.ingest.close)
        url = stack.enter_context(_http(settings, backends))
        client = stack.enter_context(httpx.Client(base_url=url, timeout=20))
        yield Page(
            url,
            client,
            settings,
            store,
            encoder,
            ledger,
            Synchronizer(objects, vectors, encoder, settings.max_object_bytes, ("images",)),
            reconciler,
            objects,
        )


@contextlib.contextmanager
def _http(settings: Settings, backends: Backends) -> Iterator[str]:
    (port,) = free_ports(1)
    config = uvicorn.Config(
        create_app(settings, backends),
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, "the page listens")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
