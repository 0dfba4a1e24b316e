"""Runs the gateway."""

from pathlib import Path

import structlog

from cra.search.v1 import search_pb2_grpc as pb_grpc
from cra.services.gateway.keys import KeyRing
from cra.services.gateway.paging import PageTokens
from cra.services.gateway.query import PICTURES, kind_of
from cra.services.gateway.query_cache import QueryCache
from cra.services.gateway.search import SearchEngine
from cra.services.gateway.servicer import SearchServicer
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.server import Server, run_service
from cra.shared.settings import Settings
from cra.shared.telemetry import serve_metrics


def main(settings: Settings) -> None:
    """Serve until SIGTERM, drain."""
    encoder = RemoteEncoder.of(settings)
    moved = settings.other_tower
    other = RemoteEncoder.of(moved) if moved else None
    vectors = MilvusVectorStore(settings)
    engine = SearchEngine(
        encoder,
        vectors,
        S3ObjectStore(settings),
        PageTokens(settings.page_key.get_secret_value()),
        QueryCache(settings.query_cache),
        other,
    )
    serve_metrics(settings.host, settings.gateway_metrics_port)
    keys = KeyRing(Path(settings.api_keys_file)) if settings.api_keys_file else None
    if keys is None:
        structlog.get_logger().warning("anybody may search: CRA_API_KEYS_FILE is not set")
    servicer = SearchServicer(engine, settings.max_calls, keys, expand=settings.expand_queries)
    server = Server(
        settings,
        "cra.search.v1.SearchService",
        settings.gateway_port,
        add=lambda server: pb_grpc.add_SearchServiceServicer_to_server(servicer, server),
        ready=engine.check,
        check=servicer.check,
        longest={"/cra.search.v1.SearchService/Search": settings.max_wait},
        kind=kind_of,
        shares={PICTURES: 0.5},
    )
    server.run()
    if keys:
        keys.close()
    servicer.close()
    engine.close()
    vectors.close()
    encoder.close()
    if other:
        other.close()


if __name__ == "__main__":
    run_service("gateway", main)
