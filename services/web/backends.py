"""What the page speaks to: the gateway, ingest, the embedding service's list, the object store.

Whatever is asked for a browser is asked from a coroutine; when the browser hangs up, that is
cancelled, and so is the call behind it.
"""

import asyncio
import time
from typing import Any, Final, Self

import grpc
from google.protobuf.message import Message
from starlette.concurrency import run_in_threadpool

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.ingest.v1 import ingest_pb2_grpc as ingest_grpc
from cra.search.v1 import search_pb2 as search
from cra.shared import rpc
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.client import SearchClient
from cra.shared.ports import Models
from cra.shared.server import READINESS_PERIOD
from cra.shared.settings import Settings

INGEST: Final = "cra.ingest.v1.IngestService"

INGEST_WITHIN: Final = 20.0
"""Seconds; counting lists every object."""

MODELS_LAST: Final = 2.0
"""Seconds."""

READY_QUESTION: Final = search.SearchRequest(text="建筑", top_k=1)


class IngestClient:
    """Speaks to the ingest service."""

    def __init__(self, settings: Settings) -> None:
        self._server = f"the ingest service at {settings.ingest_target}"
        token = settings.service_token.get_secret_value()
        self._channel = rpc.open_channel(settings.ingest_target, INGEST, token, settings.client_tls)
        self._stub = ingest_grpc.IngestServiceStub(self._channel)

    async def status(self) -> ingest.GetStatusResponse:
        """Count objects; a count may be five seconds old."""
        response: ingest.GetStatusResponse = await self._call(
            "GetStatus", ingest.GetStatusRequest()
        )
        return response

    async def failures(self, request: ingest.ListFailuresRequest) -> ingest.ListFailuresResponse:
        """Return one page of what cannot be indexed."""
        response: ingest.ListFailuresResponse = await self._call("ListFailures", request)
        return response

    async def retry(self, request: ingest.RetryFailuresRequest) -> ingest.RetryFailuresResponse:
        """Put failed objects back in line.

        Raises:
            UnauthenticatedError: the service token is missing or wrong.
        """
        response: ingest.RetryFailuresResponse = await self._call("RetryFailures", request)
        return response

    async def _call(self, method: str, request: Message) -> Any:
        try:
            with rpc.client_span(INGEST, method):
                return await rpc.answer(getattr(self._stub, method), request, INGEST_WITHIN)
        except grpc.RpcError as error:
            raise rpc.from_rpc_error(error, self._server) from error

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


class Backends:
    """All of them; each connects when first used."""

    def __init__(
        self,
        gateway: SearchClient,
        ingest_client: IngestClient,
        encoder: RemoteEncoder,
        objects: S3ObjectStore,
    ) -> None:
        self.gateway: Final = gateway
        self.ingest: Final = ingest_client
        self.objects: Final = objects
        self._encoder = encoder
        self._models: tuple[float, Models] | None = None
        self._ready = 0.0
        self._checking = asyncio.Lock()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return those that settings name."""
        return cls(
            SearchClient.of(settings),
            IngestClient(settings),
            RemoteEncoder.of(settings),
            S3ObjectStore(settings),
        )

    async def models(self) -> Models:
        """Return the releases that are loaded, as of two seconds ago at most."""
        if self._models is None or self._models[0] < time.monotonic() - MODELS_LAST:
            models = await run_in_threadpool(self._encoder.models)
            self._models = (time.monotonic(), models)
        return self._models[1]

    async def check(self) -> None:
        """Search, unless that was done a moment ago; raise what fails."""
        async with self._checking:
            if self._ready < time.monotonic() - READINESS_PERIOD:
                await self.gateway.answer(READY_QUESTION)
                self._ready = time.monotonic()

    def close(self) -> None:
        """Close all connections."""
        self.gateway.close()
        self.ingest.close()
        self._encoder.close()
