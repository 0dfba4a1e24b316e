"""Runs the embedding service."""

from typing import Final

from cra.embedding.v1 import embedding_pb2_grpc as pb_grpc
from cra.services.embedding.metrics import MODEL
from cra.services.embedding.releases import Releases
from cra.services.embedding.servicer import EmbeddingServicer
from cra.services.embedding.towers import TowerProcesses
from cra.shared.adapters.release_store import S3ReleaseStore
from cra.shared.adapters.remote_encoder import SERVICE
from cra.shared.server import Server, run_service
from cra.shared.settings import Settings
from cra.shared.telemetry import serve_metrics

GATEWAYS: Final = 4
"""How many times as many calls as another server it takes at once: several gateways, and workers
too, share it, and what it is asked for waits in lines of its own."""


def main(settings: Settings) -> None:
    """Load the towers, serve until SIGTERM, drain."""
    serve_metrics(settings.host, settings.embedding_metrics_port)
    towers = TowerProcesses(settings)
    releases = Releases(towers, S3ReleaseStore(settings), settings)
    releases.start()
    info = towers.info
    MODEL.info(
        {
            "model": info.name,
            "image_tower": info.image_tower,
            "engine": info.engine,
            "device": info.device,
            "precision": info.precision,
        }
    )
    servicer = EmbeddingServicer(towers, releases, settings)
    server = Server(
        settings,
        SERVICE,
        settings.embedding_port,
        add=lambda server: pb_grpc.add_EmbeddingServiceServicer_to_server(servicer, server),
        ready=servicer.check,
        works=servicer.problem,
        max_calls=GATEWAYS * settings.max_calls,
        tokens={SERVICE: settings.service_token.get_secret_value()},
    )
    server.run()
    servicer.close()
    releases.close()
    towers.close()


if __name__ == "__main__":
    run_service("embedding", main)
