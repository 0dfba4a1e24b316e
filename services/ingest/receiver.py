"""The receiver of bucket events, over HTTP."""

import functools
import hmac
import json
from collections.abc import Callable

import structlog
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cra.services.ingest.events import parse_event
from cra.services.ingest.ledger import Ledger
from cra.services.ingest.metrics import EVENTS
from cra.shared import rpc, tracing
from cra.shared.domain import ObjectRef
from cra.shared.errors import CraError, InvalidArgumentError, UnavailableError
from cra.shared.telemetry import new_id

MAX_BODY = 2**20
"""Bytes. A store sends one record, or a few, at a time."""

MAX_NAMED = 8
"""Objects of an event that its span names."""

_OUTCOMES = {401: "unauthenticated", 400: "malformed", 413: "too_large", 503: "unavailable"}

_log = structlog.get_logger()


def create_receiver(
    ledger: Ledger, buckets: tuple[str, ...], token: str, wake: Callable[[], None]
) -> Starlette:
    """Return the HTTP application.

    `POST /events` answers 200 only when the objects are in line and the broker has the work;
    401 without the bearer token, 400 for what is no event, 413 for too large a body, 503 when
    the broker does not answer, so that the store keeps the event and sends it again. `GET
    /healthz` asks the line, `GET /livez` only the receiver itself.

    Args:
        ledger: the line.
        buckets: whose events count.
        token: the bearer token; if empty, every event is refused.
        wake: asks for the line to be worked off.
    """

    async def events(request: Request) -> Response:
        request_id = new_id()
        rpc.request_id.set(request_id)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        parent = request.headers.get("traceparent", "")
        with tracing.span("POST /events", parent, "SERVER", request_id=request_id) as span:
            response, refs = await take(request)
            span.note(objects=[ref.image_id for ref in refs[:MAX_NAMED]])
            taken = "accepted" if refs else "ignored"
            EVENTS[_OUTCOMES.get(response.status_code, taken)].inc()
            if response.status_code == 503:
                span.fail("UNAVAILABLE")
            return response

    async def take(request: Request) -> tuple[Response, list[ObjectRef]]:
        given = request.headers.get("authorization", "")
        # Older MinIO releases send the token without a scheme.
        if not token or not (
            hmac.compare_digest(given.encode(), f"Bearer {token}".encode())
            or hmac.compare_digest(given.encode(), token.encode())
        ):
            return _answer(401, "the bearer token is missing or wrong"), []
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                return _answer(413, f"an event has at most {MAX_BODY} bytes"), []
        try:
            refs = parse_event(json.loads(body), buckets)
        except (InvalidArgumentError, ValueError, RecursionError) as error:
            return _answer(400, str(error)), []
        try:
            if refs:
                await run_in_threadpool(functools.partial(ledger.add, refs, changed=True))
                await run_in_threadpool(wake)
        except UnavailableError as error:
            _log.warning("event refused", problem=error.message)
            return _answer(503, error.message), refs
        _log.debug("event", objects=[ref.image_id for ref in refs])
        return JSONResponse({"accepted": len(refs)}), refs

    async def livez(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def healthz(_request: Request) -> Response:
        try:
            await run_in_threadpool(ledger.ping)
        except CraError as error:
            return _answer(503, error.message)
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/events", events, methods=["POST"]),
            Route("/healthz", healthz, methods=["GET"]),
            Route("/livez", livez, methods=["GET"]),
        ]
    )


def _answer(status: int, problem: str) -> Response:
    return JSONResponse({"error": problem}, status)
