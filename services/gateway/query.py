"""A search request, checked: what is wrong with it is said here, field by field."""

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from cra.search.v1 import search_pb2 as pb
from cra.shared import rpc
from cra.shared.domain import ObjectRef, SearchFilter
from cra.shared.errors import InvalidArgumentError
from cra.shared.limits import MAX_IMAGE_BYTES
from cra.shared.model.text import check_text

DEFAULT_TOP_K: Final = 20
MAX_TOP_K: Final = 200
MAX_RESULTS: Final = 1000
MAX_TERMS: Final = 16
MAX_WEIGHT: Final = 100.0
MAX_BUCKETS: Final = 64
MAX_BUCKET_NAME: Final = 63
MAX_PREFIX_BYTES: Final = 1024
MAX_METADATA_NAMES: Final = 16
MAX_METADATA_VALUES: Final = 64
MAX_REQUEST_ID: Final = 128

PICTURES: Final = "pictures"
TEXTS: Final = "texts alone"
"""Kinds of requests: pictures take longer."""


@dataclass(frozen=True)
class Term:
    """One signed part of a query."""

    content: str | bytes | ObjectRef
    """A text, an encoded image, or an image of the index."""
    weight: float
    field: str
    """Where it stands in the request, for errors."""


@dataclass(frozen=True)
class Query:
    """A search request within all limits."""

    terms: tuple[Term, ...]
    top_k: int
    min_score: float | None
    where: SearchFilter
    text_release: str
    page_token: str
    include_url: bool
    include_query_images: bool
    min_relevance: float | None
    fold_duplicates: bool
    expand: bool
    digest: bytes
    """Of all that decides the ranking; a page token belongs to one."""


def kind_of(request: pb.SearchRequest) -> str:
    """Tell whether a request, which need not be checked yet, has pictures to be encoded."""
    # Of more terms there may be millions, which are refused unread.
    holders = (request, *request.terms[:MAX_TERMS])
    pictures = any(holder.WhichOneof("query") == "image" for holder in holders)
    return PICTURES if pictures else TEXTS


def parse(request: pb.SearchRequest, scope: tuple[str, ...] = (), *, expand: bool = False) -> Query:
    """Check a request.

    Args:
        request: as it came.
        scope: buckets to which its caller is restricted; empty: to none.
        expand: whether texts are expanded if the request does not say.

    Raises:
        InvalidArgumentError: names the field and its limit.
    """
    if len(request.request_id) > MAX_REQUEST_ID:
        raise InvalidArgumentError(
            "request_id",
            f"has {len(request.request_id)} characters; at most {MAX_REQUEST_ID} are allowed",
        )
    if len(request.terms) > MAX_TERMS:
        raise InvalidArgumentError(
            "terms", f"has {len(request.terms)} entries; at most {MAX_TERMS} are allowed"
        )
    terms = []
    if request.WhichOneof("query"):
        terms.append(_term(request, 1.0, ""))
    for number, term in enumerate(request.terms):
        field = f"terms[{number}]"
        if not term.WhichOneof("query"):
            raise InvalidArgumentError(field, "holds neither text nor image nor image_id")
        weight = term.weight if term.HasField("weight") else 1.0
        if not (0 < abs(weight) <= MAX_WEIGHT):  # also false for NaN
            raise InvalidArgumentError(
                f"{field}.weight",
                f"is {_shortest(weight)}; it must not be zero and lie from -{MAX_WEIGHT:g} to "
                f"{MAX_WEIGHT:g}",
            )
        terms.append(_term(term, weight, f"{field}."))
    if not terms:
        raise InvalidArgumentError("query", "is missing: give text, image, image_id or terms")
    top_k = request.top_k or DEFAULT_TOP_K
    if not 1 <= top_k <= MAX_TOP_K:
        raise InvalidArgumentError("top_k", f"is {top_k}; 1 to {MAX_TOP_K} are allowed")
    min_score = request.min_score if request.HasField("min_score") else None
    if min_score is not None and not -1.0 <= min_score <= 1.0:
        raise InvalidArgumentError("min_score", f"is {_shortest(min_score)}; -1 to 1 are allowed")
    min_relevance = request.min_relevance if request.HasField("min_relevance") else None
    if min_relevance is not None and not 0.0 <= min_relevance <= 1.0:
        raise InvalidArgumentError(
            "min_relevance", f"is {_shortest(min_relevance)}; 0 to 1 are allowed"
        )
    if request.HasField("expand"):
        expand = request.expand
    return Query(
        terms=tuple(terms),
        top_k=top_k,
        min_score=min_score,
        where=_filter(request.filter, scope)
        if request.HasField("filter")
        else SearchFilter(scope=scope),
        text_release=request.text_release,
        page_token=request.page_token,
        include_url=request.include_url,
        include_query_images=request.include_query_images,
        min_relevance=min_relevance,
        fold_duplicates=request.fold_duplicates,
        expand=expand,
        digest=_digest(request, scope, expand=expand),
    )


def _term(holder: pb.SearchRequest | pb.Term, weight: float, prefix: str) -> Term:
    kind = holder.WhichOneof("query")
    field = f"{prefix}{kind}"
    if kind == "text":
        return Term(check_text(holder.text, field), weight, field)
    if kind == "image_id":
        return Term(ObjectRef.parse(holder.image_id, field), weight, field)
    image = holder.image  # a copy, each time
    size = len(image)
    if not 1 <= size <= MAX_IMAGE_BYTES:
        raise InvalidArgumentError(field, f"has {size} bytes; 1 to {MAX_IMAGE_BYTES} are allowed")
    return Term(image, weight, field)


def _filter(given: pb.Filter, scope: tuple[str, ...]) -> SearchFilter:
    for number in rpc.unknown_numbers(given):
        # Of a newer contract: dropped in silence, it would let hits through that it rules out.
        raise InvalidArgumentError(
            "filter", f"holds a condition (field {number}) that is not known here"
        )
    _at_most("filter.buckets", len(given.buckets), MAX_BUCKETS)
    _at_most("filter.metadata", len(given.metadata), MAX_METADATA_NAMES)
    for number, bucket in enumerate(given.buckets):
        if len(bucket) > MAX_BUCKET_NAME:
            raise InvalidArgumentError(
                f"filter.buckets[{number}]",
                f"has {len(bucket)} characters; at most {MAX_BUCKET_NAME} are allowed",
            )
    prefix_bytes = len(given.key_prefix.encode())
    if prefix_bytes > MAX_PREFIX_BYTES:
        raise InvalidArgumentError(
            "filter.key_prefix", f"has {prefix_bytes} bytes; at most {MAX_PREFIX_BYTES} are allowed"
        )
    metadata: dict[str, tuple[str, ...]] = {}
    for name, values in given.metadata.items():
        field = f"filter.metadata[{name!r}]"
        if not values.values:
            raise InvalidArgumentError(field, "has no values; give at least one")
        _at_most(field, len(values.values), MAX_METADATA_VALUES)
        # Names of user metadata are HTTP headers, which have no case.
        if name.lower() in metadata:
            raise InvalidArgumentError(field, "is given twice; names have no case")
        metadata[name.lower()] = tuple(values.values)
    return SearchFilter(
        scope=scope,
        buckets=tuple(given.buckets),
        key_prefix=given.key_prefix,
        metadata=metadata,
        ingested_after=_seconds(given, "ingested_after"),
        ingested_before=_seconds(given, "ingested_before"),
    )


def _shortest(value: float) -> str:
    """Return a `float` of a message as its caller wrote it, not as the double that is nearest."""
    return str(np.float32(value))


def _at_most(field: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidArgumentError(field, f"has {count} entries; at most {most} are allowed")


def _seconds(given: pb.Filter, name: Literal["ingested_after", "ingested_before"]) -> float | None:
    if not given.HasField(name):
        return None
    stamp = getattr(given, name)
    # The years 1 to 9999, which is what a Timestamp can mean.
    if not -62_135_596_800 <= stamp.seconds < 253_402_300_800:
        raise InvalidArgumentError(f"filter.{name}", "is no time between the years 1 and 9999")
    if not 0 <= stamp.nanos < 10**9:
        raise InvalidArgumentError(
            f"filter.{name}.nanos", f"is {stamp.nanos}; 0 to 999999999 are allowed"
        )
    seconds: float = stamp.seconds + stamp.nanos / 1e9
    return seconds


def _digest(request: pb.SearchRequest, scope: tuple[str, ...], *, expand: bool) -> bytes:
    """Digest all that decides which hits come in which order; not the page or its size."""
    bare = pb.SearchRequest()
    bare.CopyFrom(request)
    for field in ("request_id", "page_token", "top_k", "include_url", "text_release"):
        bare.ClearField(field)
    bare.expand = expand  # also where it is the server's default, which may differ on the next one
    digest = hashlib.sha256("\n".join(sorted(scope)).encode() + b"\0")
    digest.update(bare.SerializeToString(deterministic=True))
    return digest.digest()[:16]
