"""The application: the page's files, pictures, and `/api`."""

import asyncio
import contextvars
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

from cra.services.web.api import create_api
from cra.services.web.backends import Backends
from cra.services.web.http import LOOPBACK, STATIC, Edge, add_errors
from cra.services.web.links import Links
from cra.services.web.thumbnails import BOXES, Thumbnails
from cra.shared import budget
from cra.shared.errors import CraError, NotFoundError
from cra.shared.settings import Settings

FRESH: Final = "no-cache"
"""The page's own files are asked for each time, and not sent again while they are the same."""


def create_app(settings: Settings, backends: Backends) -> FastAPI:
    """Return the HTTP application.

    `GET /healthz` asks only the page itself, `/readyz` has it search.

    Raises:
        FailedPreconditionError: the folder of thumbnails cannot be written.
    """
    links = Links(settings.web_key.get_secret_value(), settings.url_seconds)
    made = None if settings.web_thumbnails else tempfile.TemporaryDirectory(prefix="cra-")
    thumbnails = Thumbnails(
        backends.objects,
        Path(made.name if made else settings.web_thumbnails),
        settings.web_thumbnails_bytes,
        settings.max_object_bytes,
    )
    # Few at a time, apart from everything else: decoding takes whole cores, and memory.
    pool = ThreadPoolExecutor(min(4, budget.cores()), thread_name_prefix="thumbnails")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        pool.shutdown()
        if made:
            made.cleanup()

    app = FastAPI(
        title="CRA",
        version="1",
        summary="Finds architecture images by Chinese text.",
        lifespan=lifespan,
        openapi_url="/api/openapi.json",
        # They would fetch scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    add_errors(app)
    # The outermost comes last.
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=5)
    hosts = settings.web_hosts or (() if settings.host in LOOPBACK else None)
    app.add_middleware(Edge, hosts=hosts)
    app.include_router(create_api(settings, backends, links))

    @app.get("/pictures/{kind}/{token}", include_in_schema=False)
    async def pictures(kind: str, token: str, request: Request) -> Response:
        ref, etag, until = links.read(token)
        if kind == "original":
            return RedirectResponse(backends.objects.signed_url(ref), 307)
        if kind not in BOXES:
            raise NotFoundError(f"there is no kind {kind!r} of pictures")
        headers = {
            "Cache-Control": f"private, max-age={max(0, until - int(time.time()))}, immutable",
            "ETag": f'"{etag}-{kind}"',
        }
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        loop = asyncio.get_running_loop()
        # With the ids of the request, which logs and traces of what is done there name.
        inside = contextvars.copy_context().run
        picture = await loop.run_in_executor(pool, inside, thumbnails.get, kind, ref, etag)
        return Response(picture, media_type="image/webp", headers=headers)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        try:
            await backends.check()
        except CraError as error:
            return JSONResponse({"status": "not ready", "problem": error.message}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": FRESH})

    app.mount("/static", _Static(directory=STATIC))
    return app


class _Static(StaticFiles):
    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = FRESH
        return response
