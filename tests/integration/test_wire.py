"""What somebody who listens between the services gets to see."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cra.search.v1 import search_pb2_grpc as pb_grpc
from cra.services.gateway.paging import PageTokens
from cra.services.gateway.query_cache import QueryCache
from cra.services.gateway.search import SearchEngine
from cra.services.gateway.servicer import SearchServicer
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.client import SearchClient
from cra.shared.server import Server
from cra.shared.settings import Settings
from tests import embedding
from tests.certificates import Authority
from tests.fakes import COLOURS, picture

TEXT = "雪中的红色木塔，飞檐翘角"


class Listener:
    """A relay on loopback to another port that keeps every byte of both directions."""

    def __init__(self, port: int) -> None:
        self.heard = bytearray()
        self._upstream = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Cut every connection and take no more."""
        for one in (self._socket, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream))
                self._open += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.heard += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def listened(
    milvus_uri: str, s3: Settings, **tls: str
) -> Iterator[tuple[SearchClient, Listener, Listener]]:
    """Run embedding and gateway; yield a client, and who listens before each of the two."""
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(embedding.running(**tls))
        inner = stack.enter_context(contextlib.closing(Listener(service.server.port)))
        settings = Settings(
            embedding_target=f"dns:///127.0.0.1:{inner.port}",
            milvus_uri=milvus_uri,
            drain_seconds=5,
            **tls,  # type: ignore[arg-type]
        )
        encoder = stack.enter_context(contextlib.closing(RemoteEncoder.of(settings)))
        vectors = stack.enter_context(contextlib.closing(MilvusVectorStore(settings)))
        engine = SearchEngine(encoder, vectors, S3ObjectStore(s3), PageTokens("key"), QueryCache(0))
        engine.check()  # makes the collection
        servicer = stack.enter_context(contextlib.closing(SearchServicer(engine, 4)))
        server = Server(
            settings,
            "cra.search.v1.SearchService",
            0,
            lambda server: pb_grpc.add_SearchServiceServicer_to_server(servicer, server),
            engine.check,
        )
        server.start()
        stack.callback(server.stop)
        outer = stack.enter_context(contextlib.closing(Listener(server.port)))
        seen: Any = settings.model_copy(update={"gateway_target": f"dns:///127.0.0.1:{outer.port}"})
        client = stack.enter_context(SearchClient.of(seen, timeout=20))
        yield client, outer, inner


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "TLS"])
def test_with_tls_nobody_reads_a_query(
    tls: bool, milvus_lite: str, s3: Settings, tmp_path: Path
) -> None:
    """Between client and gateway, and gateway and embedding, TLS shows no byte of the query.

    Without TLS the text and the picture are heard on both hops, so this can fail.
    Break: `insecure_channel` and `add_insecure_port` whatever the settings.
    """
    ours = Authority(tmp_path)
    image = picture(COLOURS["绿"], (40, 30))
    settings = {**ours.server(), **ours.client()} if tls else {}
    with listened(milvus_lite, s3, **settings) as (client, *listeners):
        assert client.search(TEXT).text_release == "colours-1"
        client.search(image=image)
        for listener in listeners:
            assert len(listener.heard) > 1000
            for part in (TEXT.encode(), TEXT[:2].encode(), image, image[:32]):
                assert (part in listener.heard) is not tls
