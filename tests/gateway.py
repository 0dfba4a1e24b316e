"""A gateway of one process, as a real server, in front of what ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cra.search.v1 import search_pb2_grpc as pb_grpc
from cra.services.gateway.servicer import SearchServicer
from cra.shared.server import Server
from cra.shared.settings import Settings


@contextmanager
def serving(engine: Any, max_calls: int = 16, drain_seconds: float = 20.0) -> Iterator[Server]:
    """Serve a `SearchEngine`, or what stands for one, on a free port."""
    servicer = SearchServicer(engine, max_calls)
    server = Server(
        Settings(max_calls=max_calls, drain_seconds=drain_seconds),
        "cra.search.v1.SearchService",
        0,
        lambda server: pb_grpc.add_SearchServiceServicer_to_server(servicer, server),
        lambda: None,
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()
        servicer.close()
