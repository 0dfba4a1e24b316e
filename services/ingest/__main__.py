"""Runs the ingest service: its gRPC calls and the receiver of bucket events."""

import http.client
import socket
import threading
from typing import Final

import uvicorn
from prometheus_client import REGISTRY

from cra.ingest.v1 import ingest_pb2_grpc as pb_grpc
from cra.services.ingest import tasks
from cra.services.ingest.ledger import Ledger
from cra.services.ingest.metrics import Counting, StateMetrics
from cra.services.ingest.receiver import create_receiver
from cra.services.ingest.reconcile import Reconciler
from cra.services.ingest.servicer import CHANGING, SERVICE, IngestServicer
from cra.services.ingest.sync import check_parts
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.errors import FailedPreconditionError
from cra.shared.server import Server, run_service
from cra.shared.settings import Settings
from cra.shared.telemetry import serve_metrics

RECEIVER_WITHIN: Final = 3.0
"""Seconds in which the receiver of events has to say that it lives."""


def main(settings: Settings) -> None:
    """Serve until SIGTERM, drain."""
    app = tasks.create_app(settings)
    ledger = Ledger(settings.redis_url.get_secret_value(), settings.lease_seconds)
    objects = S3ObjectStore(settings)
    vectors = MilvusVectorStore(settings)
    encoder = RemoteEncoder.of(settings)

    def wake() -> None:
        tasks.wake(app, ledger)

    reconciler = Reconciler(
        objects,
        vectors,
        encoder,
        ledger,
        settings.buckets,
        settings.max_deletion_share,
        wake,
    )
    servicer = IngestServicer(ledger, reconciler, settings.buckets, wake)
    counting = Counting(servicer.count, settings.count_seconds)
    if settings.ingest_metrics_port:
        REGISTRY.register(StateMetrics(ledger, servicer.last_count))
        serve_metrics(settings.host, settings.ingest_metrics_port)
        counting.start()

    def ready() -> None:
        ledger.ping()
        check_parts(objects, vectors, encoder)

    receiver = uvicorn.Server(
        uvicorn.Config(
            create_receiver(
                ledger, settings.buckets, settings.event_token.get_secret_value(), wake
            ),
            log_config=None,
            access_log=False,
        )
    )
    # Bound here, so that a port that is taken ends the service at once.
    listener = _listen(settings)
    thread = threading.Thread(target=receiver.run, args=([listener],), name="events")

    def receives() -> str:
        if not thread.is_alive():
            return "the receiver of events has died"
        # Over its socket: only so is its loop seen to turn.
        host, port = listener.getsockname()[:2]
        connection = http.client.HTTPConnection(host, port, timeout=RECEIVER_WITHIN)
        try:
            connection.request("GET", "/livez")
            connection.getresponse()
        except OSError as error:
            return f"the receiver of events does not answer: {error}"
        finally:
            connection.close()
        return ""

    server = Server(
        settings,
        SERVICE,
        settings.ingest_port,
        add=lambda server: pb_grpc.add_IngestServiceServicer_to_server(servicer, server),
        ready=ready,
        works=receives,
        tokens=dict.fromkeys(CHANGING, settings.service_token.get_secret_value()),
    )
    thread.start()
    server.run()
    receiver.should_exit = True
    thread.join()
    counting.close()
    vectors.close()
    encoder.close()


def _listen(settings: Settings) -> socket.socket:
    if settings.events_fd:
        try:
            return socket.socket(fileno=settings.events_fd)
        except OSError as error:
            raise FailedPreconditionError(
                f"CRA_EVENTS_FD={settings.events_fd} is no socket: {error.strerror}"
            ) from error
    try:
        return socket.create_server((settings.host, settings.events_port))
    except OSError as error:
        raise FailedPreconditionError(
            f"cannot listen on {settings.host}:{settings.events_port}: {error.strerror}"
        ) from error


if __name__ == "__main__":
    run_service("ingest", main)
