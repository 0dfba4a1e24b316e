"""Runs the embedding service."""

from cra.embedding.v1 import embedding_pb2_grpc as pb_grpc
from cra.services.embedding.releases import Releases
from cra.services.embedding.servicer import EmbeddingServicer
from cra.services.embedding.towers import TowerProcesses
from cra.shared.adapters.release_store import S3ReleaseStore
from cra.shared.adapters.remote_encoder import SERVICE
from cra.shared.server import Server, run_service
from cra.shared.settings import Settings


def main(settings: Settings) -> None:
    """Load the towers, serve until SIGTERM, drain."""
    towers = TowerProcesses(settings)
    releases = Releases(towers, S3ReleaseStore(settings), settings)
    releases.start()
    servicer = EmbeddingServicer(towers, releases, settings)
    server = Server(
        settings,
        SERVICE,
        settings.embedding_port,
        add=lambda server: pb_grpc.add_EmbeddingServiceServicer_to_server(servicer, server),
        ready=servicer.check,
        works=servicer.problem,
        tokens={SERVICE: settings.service_token.get_secret_value()},
    )
    server.run()
    servicer.close()
    releases.close()
    towers.close()


if __name__ == "__main__":
    run_service("embedding", main)
