"""The JSON of `/api`, made into the messages of the contract and out of them."""

from datetime import UTC, datetime
from typing import Annotated, Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.search.v1 import search_pb2 as pb
from cra.services.web.encoded import PICTURE, Picture
from cra.services.web.links import Links
from cra.shared.domain import ObjectRef
from cra.shared.errors import InvalidArgumentError
from cra.shared.ports import Models

_KINDS: Final = ("text", "image", "image_id")
"""Of queries, of which the contract's `oneof` takes one."""

_Query = TypeVar("_Query", pb.SearchRequest, pb.Term)


class _Asked(BaseModel):
    # A least length, of whatever size, has pydantic look into every string: half a character, as
    # JSON can hold it, else passes here and is one in no message.
    model_config = ConfigDict(extra="forbid", str_min_length=0)


class TermIn(_Asked):
    """A part of a query: one of `text`, `image` and `image_id`, to add or to subtract."""

    text: str | None = None
    image: Picture | None = Field(None, description=PICTURE)
    image_id: str | None = None
    weight: float = Field(1.0, description="-100 to 100 and not zero; negative: less of it")


class FilterIn(_Asked):
    """What is set must hold all together."""

    buckets: list[str] = []
    key_prefix: str = ""
    metadata: dict[str, list[str]] = Field({}, description="for each name, any of the values")
    ingested_after: AwareDatetime | None = None
    ingested_before: AwareDatetime | None = None


class SearchIn(_Asked):
    """What to look for: at most one of `text`, `image` and `image_id`, and terms."""

    text: str | None = Field(None, description="Chinese text, 1 to 1,000 characters")
    image: Picture | None = Field(None, description=PICTURE)
    image_id: str | None = Field(None, description="an indexed image, `bucket/key`")
    terms: list[TermIn] = Field([], description="at most 16")
    top_k: int = Field(20, ge=1, le=200, description="hits on a page; 1,000 over all pages")
    page_token: str = Field("", description="`next_page_token` of the page before")
    min_score: float | None = Field(None, description="leave out hits with a lower cosine")
    filter: FilterIn = FilterIn()
    text_release: str = Field("", description="the active one if empty")
    include_query_images: bool = False
    min_relevance: float | None = Field(None, description="leave out hits of a lower relevance")
    fold_duplicates: bool = Field(False, description="of near-duplicates only the best is a hit")
    expand: bool | None = Field(
        None, description="look for other names of architecture terms, too; null: as the server"
    )

    def message(self) -> pb.SearchRequest:
        """Return the gateway's request.

        Raises:
            InvalidArgumentError: it, or a term, holds several queries.
        """
        request = pb.SearchRequest(
            terms=[
                _filled(pb.Term(weight=term.weight), term, f"terms[{number}]")
                for number, term in enumerate(self.terms)
            ],
            top_k=self.top_k,
            page_token=self.page_token,
            min_score=self.min_score,
            filter=self._filter(),
            text_release=self.text_release,
            include_query_images=self.include_query_images,
            min_relevance=self.min_relevance,
            fold_duplicates=self.fold_duplicates,
            expand=self.expand,
        )
        return _filled(request, self, "query")

    def _filter(self) -> pb.Filter:
        asked = self.filter
        message = pb.Filter(
            buckets=asked.buckets,
            key_prefix=asked.key_prefix,
            metadata={n: pb.MetadataValues(values=v) for n, v in asked.metadata.items()},
        )
        if asked.ingested_after is not None:
            message.ingested_after.FromDatetime(asked.ingested_after)
        if asked.ingested_before is not None:
            message.ingested_before.FromDatetime(asked.ingested_before)
        return message


class HitOut(BaseModel):
    """One image, as `Hit` of the contract; with signed addresses for a browser."""

    rank: int
    image_id: str
    score: float
    bucket: str
    key: str
    etag: str
    width: int
    height: int
    metadata: dict[str, str]
    ingested_at: datetime
    relevance: float | None = Field(description="0 to 1, alike for every query; null: unknown")
    duplicates: list[str]
    thumbnail: str
    view: str
    original: str


class TimingOut(BaseModel):
    """Seconds inside the gateway."""

    queue: float
    encode: float
    search: float
    total: float


class SearchOut(BaseModel):
    """One page."""

    request_id: str
    hits: list[HitOut]
    next_page_token: str
    text_release: str
    image_tower: str
    truncated: bool
    expanded_texts: list[str]
    timing: TimingOut


class CountOut(BaseModel):
    """How many of the hits that were looked at have a value."""

    value: str
    count: int


class FacetsOut(BaseModel):
    """What the first hits have in common, most frequent first."""

    hits: int = Field(description="how many were looked at, 200 at most")
    metadata: dict[str, list[CountOut]]
    folders: list[CountOut]
    buckets: list[CountOut]


class StatusOut(BaseModel):
    """How far the index follows the buckets; null: cannot be counted now."""

    objects: int
    indexed: int | None
    waiting: int
    failed: int
    unaccounted: int | None
    stale: int | None
    orphaned: int | None
    rate: float = Field(description="objects a second, over the last minute")
    as_of: datetime
    image_tower: str
    down: list[str]
    reconciled_at: datetime | None
    reconcile_stopped: str


class FailureOut(BaseModel):
    """An object that cannot be indexed."""

    image_id: str
    reason: str
    message: str
    etag: str
    attempts: int
    failed_at: datetime


class FailuresOut(BaseModel):
    """One page, by image_id."""

    failures: list[FailureOut]
    next_page_token: str


class RetryIn(_Asked):
    """Which failures to try again."""

    image_ids: list[str] = Field([], max_length=1000)
    all: bool = False


class RetryOut(BaseModel):
    """What became of it."""

    retried: int
    unknown: list[str]


class ReleaseOut(BaseModel):
    """A text release."""

    name: str
    active: bool
    base: bool = Field(description="the model's own text tower")
    state: str
    problem: str


class ReleasesOut(BaseModel):
    """Those that are published."""

    model: str
    image_tower: str
    device: str
    releases: list[ReleaseOut]


class UploadOut(BaseModel):
    """Where a picture was put."""

    image_id: str
    etag: str


class ImageStateOut(BaseModel):
    """How far an object is."""

    state: str = Field(description="`indexed`, `failed` or `waiting`")
    hit: HitOut | None = None
    reason: str = ""
    message: str = ""


class AboutOut(BaseModel):
    """What the page may do."""

    changes: bool
    bucket: str
    max_object_bytes: int
    max_query_image_bytes: int


class ErrorOut(BaseModel):
    """What every error looks like."""

    code: str
    message: str
    field: Annotated[str, Field(description="the field at fault, if one is")] = ""
    retry_after: float | None = Field(None, description="seconds, if a retry may help")


def _filled(message: _Query, asked: SearchIn | TermIn, field: str) -> _Query:
    """Set the query of a request or term; of several, protobuf would keep the last in silence.

    Raises:
        InvalidArgumentError: there are several.
    """
    given = [name for name in _KINDS if getattr(asked, name) is not None]
    if len(given) > 1:
        raise InvalidArgumentError(
            field, f"holds {' and '.join(given)}; one of them is allowed, more go into terms"
        )
    for name in given:
        setattr(message, name, getattr(asked, name))
    return message


def hit_out(hit: pb.Hit, links: Links) -> HitOut:
    """Return a hit with the addresses of its picture."""
    token = links.make(ObjectRef(hit.bucket, hit.key), hit.etag)
    return HitOut(
        rank=hit.rank,
        image_id=hit.image_id,
        score=hit.score,
        bucket=hit.bucket,
        key=hit.key,
        etag=hit.etag,
        width=hit.width,
        height=hit.height,
        metadata=dict(hit.metadata),
        ingested_at=_time(hit.ingested_at),
        relevance=hit.relevance if hit.HasField("relevance") else None,
        duplicates=list(hit.duplicates),
        thumbnail=f"/pictures/thumbnail/{token}",
        view=f"/pictures/view/{token}",
        original=f"/pictures/original/{token}",
    )


def search_out(response: pb.SearchResponse, links: Links) -> SearchOut:
    """Return the gateway's answer."""
    timing = response.timing
    return SearchOut(
        request_id=response.request_id,
        hits=[hit_out(hit, links) for hit in response.hits],
        next_page_token=response.next_page_token,
        text_release=response.text_release,
        image_tower=response.image_tower,
        truncated=response.truncated,
        expanded_texts=list(response.expanded_texts),
        timing=TimingOut(
            queue=_seconds(timing.queue),
            encode=_seconds(timing.encode),
            search=_seconds(timing.search),
            total=_seconds(timing.total),
        ),
    )


def status_out(status: ingest.GetStatusResponse) -> StatusOut:
    """Return ingest's counts."""
    last = status.last_reconcile
    return StatusOut(
        objects=status.objects,
        indexed=_optional(status, "indexed"),
        waiting=status.waiting,
        failed=status.failed,
        unaccounted=_optional(status, "unaccounted"),
        stale=_optional(status, "stale"),
        orphaned=_optional(status, "orphaned"),
        rate=status.rate,
        as_of=_time(status.as_of),
        image_tower=status.image_tower,
        down=list(status.down),
        reconciled_at=_time(last.finished_at) if last.HasField("finished_at") else None,
        reconcile_stopped=last.stopped,
    )


def failure_out(failure: ingest.Failure) -> FailureOut:
    """Return one failure."""
    return FailureOut(
        image_id=failure.image_id,
        reason=failure.reason,
        message=failure.message,
        etag=failure.etag,
        attempts=failure.attempts,
        failed_at=_time(failure.failed_at),
    )


def releases_out(models: Models) -> ReleasesOut:
    """Return the releases that the embedding service knows."""
    tower = models.image_tower
    return ReleasesOut(
        model=tower.name,
        image_tower=tower.fingerprint,
        device=models.device,
        releases=[
            ReleaseOut(
                name=one.name,
                active=one.active,
                base=one.name == models.base_release,
                state=one.state.value,
                problem=one.problem,
            )
            for one in models.releases
        ],
    )


def _optional(message: Message, name: str) -> int | None:
    return int(getattr(message, name)) if message.HasField(name) else None


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
