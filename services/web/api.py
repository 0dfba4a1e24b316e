"""JSON for browsers, and for other callers without gRPC."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.search.v1 import search_pb2 as search
from cra.services.web import facets
from cra.services.web.backends import Backends
from cra.services.web.http import check_own, while_it_waits
from cra.services.web.links import Links
from cra.services.web.messages import (
    AboutOut,
    ErrorOut,
    FacetsOut,
    FailuresOut,
    ImageStateOut,
    ReleasesOut,
    RetryIn,
    RetryOut,
    SearchIn,
    SearchOut,
    StatusOut,
    UploadOut,
    failure_out,
    hit_out,
    releases_out,
    search_out,
    status_out,
)
from cra.services.web.uploads import Uploads
from cra.shared.adapters.object_store import connect
from cra.shared.domain import ObjectRef
from cra.shared.errors import NotFoundError, PermissionDeniedError
from cra.shared.limits import MAX_IMAGE_BYTES
from cra.shared.settings import Settings

FAILURES: Final = 50
"""On a page."""

_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": ErrorOut},
    "5XX": {"model": ErrorOut},
}


def create_api(settings: Settings, backends: Backends, links: Links) -> APIRouter:
    """Return the routes under `/api`."""
    api = APIRouter(prefix="/api", responses=_ERRORS)
    bucket = settings.buckets[0]
    uploads = Uploads(connect(settings), bucket, settings.max_object_bytes)

    def changes() -> None:
        if not settings.web_changes:
            raise PermissionDeniedError("this page only searches: CRA_WEB_CHANGES is false")

    changing = [Depends(changes), Depends(check_own)]

    @api.get("/about", summary="What this page may do")
    async def about() -> AboutOut:
        return AboutOut(
            changes=settings.web_changes,
            bucket=bucket,
            max_object_bytes=settings.max_object_bytes,
            max_query_image_bytes=MAX_IMAGE_BYTES,
        )

    @api.post("/search", summary="One page of ranked images")
    async def find(asked: SearchIn, request: Request) -> SearchOut:
        response = await while_it_waits(request, backends.gateway.answer(asked.message()))
        return search_out(response, links)

    @api.post("/facets", summary="What the first 200 hits have in common")
    async def count(asked: SearchIn, request: Request) -> FacetsOut:
        message = asked.message()
        message.top_k, message.page_token = facets.LOOKED_AT, ""
        response = await while_it_waits(request, backends.gateway.answer(message))
        return facets.count((hit.bucket, hit.key, hit.metadata) for hit in response.hits)

    @api.get("/releases", summary="Text releases that answer")
    async def releases() -> ReleasesOut:
        return releases_out(await backends.models())

    @api.get("/status", summary="How far the index follows the buckets")
    async def status(request: Request) -> StatusOut:
        return status_out(await while_it_waits(request, backends.ingest.status()))

    @api.get(
        "/failures", summary="What cannot be indexed, and why", dependencies=[Depends(changes)]
    )
    async def failures(request: Request, page_token: str = "") -> FailuresOut:
        asked = ingest.ListFailuresRequest(page_size=FAILURES, page_token=page_token)
        response = await while_it_waits(request, backends.ingest.failures(asked))
        return FailuresOut(
            failures=[
                failure_out(one)
                for one in response.failures
                # Ingest knows no scopes: of others the page does not even tell the names.
                if one.image_id.partition("/")[0] in settings.buckets
            ],
            next_page_token=response.next_page_token,
        )

    @api.post("/failures/retry", summary="Put failures back in line", dependencies=changing)
    async def retry(asked: RetryIn) -> RetryOut:
        message = ingest.RetryFailuresRequest(image_ids=asked.image_ids, all=asked.all)
        response = await backends.ingest.retry(message)
        return RetryOut(retried=response.retried, unknown=list(response.unknown))

    @api.put(
        "/images",
        summary="Put a picture into the bucket",
        description="The body is the picture itself, as it is stored.",
        dependencies=changing,
        status_code=201,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                },
            }
        },
    )
    async def put(
        request: Request,
        name: Annotated[str, Query(description="of the file")],
        folder: str = "uploads",
        caption: str = "",
    ) -> UploadOut:
        size = request.headers.get("content-length", "")
        if size.isdigit():
            uploads.check_size(int(size))
        return await uploads.put(request.stream(), name, folder, caption)

    @api.get(
        "/images/state",
        summary="How far one version of an object is",
        description="NOT_FOUND if it is not in the bucket, or was deleted or overwritten since.",
        dependencies=[Depends(changes)],
    )
    async def state(image_id: str, etag: str, request: Request) -> ImageStateOut:
        ref = ObjectRef.parse(image_id)
        if ref.bucket not in settings.buckets:
            raise NotFoundError(f"{image_id} is in no bucket that is indexed")
        return await while_it_waits(request, _state(backends, links, ref, etag))

    return api


async def _state(backends: Backends, links: Links, ref: ObjectRef, etag: str) -> ImageStateOut:
    """Return whether one version of an object is indexed, has failed, or is still in line.

    Raises:
        NotFoundError: it is none of that, and in the bucket no longer: nothing will become of it.
    """
    image_id = ref.image_id
    question = search.SearchRequest(
        image_id=image_id,
        top_k=1,
        include_query_images=True,
        filter=search.Filter(buckets=[ref.bucket], key_prefix=ref.key),
    )
    try:
        answer = await backends.gateway.answer(question)
    except NotFoundError:
        answer = search.SearchResponse()
    for hit in answer.hits:
        if hit.image_id == image_id and hit.etag == etag:
            return ImageStateOut(state="indexed", hit=hit_out(hit, links))
    listed = await backends.ingest.failures(ingest.ListFailuresRequest(image_ids=[image_id]))
    for failure in listed.failures:
        if failure.etag == etag:
            return ImageStateOut(state="failed", reason=failure.reason, message=failure.message)
    there = await run_in_threadpool(backends.objects.look, ref)
    if there is None:
        raise NotFoundError(f"{image_id} is not in the bucket")
    if there.version.etag != etag:
        raise NotFoundError(f"{image_id} has another ETag: {there.version.etag}")
    return ImageStateOut(state="waiting")
