"""HTTP's edge: errors as JSON, headers of every answer, limits, and callers that hang up."""

import asyncio
import time
import urllib.parse
from collections.abc import Coroutine
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cra.services.web import metrics
from cra.services.web.messages import ErrorOut
from cra.services.web.uploads import TooLargeError
from cra.shared import errors, rpc, tracing
from cra.shared.telemetry import new_id

STATIC: Final = Path(__file__).parent / "static"
"""The page's own files."""

MAX_BODY: Final = 16 * 2**20
"""Bytes of JSON: a picture of 10 MiB in base64, and some more."""

TOO_MUCH: Final = f"body: a request has at most {MAX_BODY} bytes"

OWN_HEADER: Final = "x-cra-request"
"""Calls that change something need it. A page of another origin cannot send it: a browser would ask
first, and nothing here says yes."""

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

_TRACED: Final = ("/api/", "/pictures/")
"""Paths whose requests are traced: not the page's own files, nor checks of readiness."""

HUNG_UP: Final = 499
"""What is noted of an answer that nobody waits for."""

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)

_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

STATUS: Final[dict[type[errors.CraError], int]] = {
    errors.InvalidArgumentError: 400,
    errors.NotFoundError: 404,
    errors.FailedPreconditionError: 409,
    errors.AbortedError: 409,
    TooLargeError: 413,
    errors.ResourceExhaustedError: 429,
    errors.UnavailableError: 503,
    errors.DeadlineExceededError: 504,
    errors.UnauthenticatedError: 401,
    errors.PermissionDeniedError: 403,
}
"""The table from domain errors to HTTP, beside that to gRPC in `rpc`."""

_log = structlog.get_logger()

T = TypeVar("T")


class Edge:
    """Wraps the application: a request id, headers of every answer, and a limit for bodies.

    It counts requests, and traces those of `/api` and for pictures.

    The body of a request is bounded while it streams, whatever it says of its length; uploads have
    a limit of their own.

    Args:
        app: what is wrapped.
        hosts: names that are answered to, beside loopback's; None: any. A page elsewhere whose
            name is made to mean this machine has another, and would else be of one origin with us.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] | None) -> None:
        self._app = app
        self._hosts = None if hosts is None else {*LOOPBACK, *(one.lower() for one in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id()
        rpc.request_id.set(request_id)
        given = Headers(scope=scope)
        if scope["path"].startswith(_TRACED):
            parent = given.get("traceparent", "")
            span = tracing.span(scope["method"], parent, "SERVER", request_id=request_id)
        else:
            span = tracing.Scope()
            tracing.mute()
        began, status = time.perf_counter(), HTTPStatus.INTERNAL_SERVER_ERROR.value
        metrics.IN_FLIGHT.inc()

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            with span, structlog.contextvars.bound_contextvars(request_id=request_id):
                try:
                    await self._pass_on(scope, receive, noted, given, request_id)
                finally:
                    method, route = metrics.name_of(scope)
                    span.rename(f"{method} {route}")
                    span.note(**{"http.response.status_code": status})
                    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                        span.fail(str(status))
        finally:
            metrics.note_request(method, route, status, time.perf_counter() - began)
            metrics.IN_FLIGHT.dec()

    async def _pass_on(
        self, scope: Scope, receive: Receive, send: Send, given: Headers, request_id: str
    ) -> None:
        left = MAX_BODY if scope["method"] != "PUT" else None

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            if left is not None and message["type"] == "http.request":
                left -= len(message.get("body", b""))
                if left < 0:
                    raise HTTPException(413, TOO_MUCH)
            return message

        async def extended(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if self._hosts is not None and _host(given.get("host", "")) not in self._hosts:
            refusal = _answer(403, "PERMISSION_DENIED", "this host is not in CRA_WEB_HOSTS")
            await refusal(scope, receive, extended)
            return
        size = given.get("content-length", "")
        if left is not None and size.isdigit() and int(size) > MAX_BODY:
            refusal = _answer(413, "INVALID_ARGUMENT", TOO_MUCH, field="body")
            await refusal(scope, receive, extended)
            return
        await self._app(scope, bounded, extended)


def _host(header: str) -> str:
    try:
        return urllib.parse.urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def check_own(request: Request) -> None:
    """Raise PermissionDeniedError for a changing call that a page of another origin could make."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    if OWN_HEADER not in request.headers or site not in {"same-origin", "none"}:
        raise errors.PermissionDeniedError(f"calls that change something need {OWN_HEADER}: 1")


async def while_it_waits(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what comes of some work, and cancel it if the caller hangs up.

    Raises:
        ClientDisconnect: it has hung up.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hangs_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hangs_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def add_errors(app: FastAPI) -> None:
    """Have every error be answered as `ErrorOut`; what is not there, as a page to a browser."""

    async def domain(request: Request, error: Exception) -> Response:
        assert isinstance(error, errors.CraError)  # noqa: S101  for the type checker
        status = STATUS.get(type(error), 500)
        code = rpc.code_of(error).name
        if isinstance(error, TooLargeError):
            code = "INVALID_ARGUMENT"
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.warning("failed", problem=error.message)
        if status == HTTPStatus.NOT_FOUND and _shows_pages(request):
            return FileResponse(STATIC / "missing.html", status)
        return _answer(
            status,
            code,
            error.message,
            field=getattr(error, "field", ""),
            retry_after=getattr(error, "retry_after", None),
        )

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101  for the type checker
        first = error.errors()[0]
        field, problem = _path(first["loc"]), first["msg"]
        if first["type"] == "json_invalid":
            # Where it is broken stands in place of a field.
            field, problem = "body", f"is no JSON: {first['ctx']['error']} at {first['loc'][-1]}"
        elif field == "body" and isinstance(first.get("input"), bytes):
            # Asked for, since a page elsewhere may send any other without a question.
            problem = "is taken for JSON with the header Content-Type: application/json alone"
        elif first["type"] == "string_unicode":
            problem = "is not valid Unicode"
        return _answer(400, "INVALID_ARGUMENT", f"{field}: {problem}", field=field)

    async def http(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 500)
        if status == HTTPStatus.NOT_FOUND and _shows_pages(request):
            return FileResponse(STATIC / "missing.html", status)
        code = "NOT_FOUND" if status == HTTPStatus.NOT_FOUND else "INVALID_ARGUMENT"
        # A body that is too large, or that is not even text.
        field = "body" if status in {400, 413} else ""
        return _answer(status, code, str(getattr(error, "detail", error)), field=field)

    async def gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=HUNG_UP)

    async def unknown(_request: Request, error: Exception) -> Response:
        _log.error("failed", problem=repr(error))
        return _answer(500, "INTERNAL", "something went wrong here; the log says what")

    app.add_exception_handler(errors.CraError, domain)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, unknown)


def _shows_pages(request: Request) -> bool:
    """Tell whether somebody who reads waits for the answer, and no program."""
    wanted = "text/html" in request.headers.get("accept", "")
    return wanted and not request.url.path.startswith("/api/")


def _path(location: tuple[int | str, ...]) -> str:
    """Return where a field stands, as the gateway would say it: `terms[0].weight`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in {"body", "query"} or path:
            path += f".{part}" if path else part
    return path or "body"


def _answer(
    status: int, code: str, message: str, field: str = "", retry_after: float | None = None
) -> JSONResponse:
    error = ErrorOut(code=code, message=message, field=field, retry_after=retry_after)
    headers = {"Retry-After": str(max(1, round(retry_after)))} if retry_after else None
    return JSONResponse(error.model_dump(), status, headers)
