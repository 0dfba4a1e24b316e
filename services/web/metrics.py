"""What the search page counts: its requests, and the thumbnails that it keeps."""

from collections.abc import MutableMapping
from typing import Any, Final

from prometheus_client import Counter, Gauge, Histogram

from cra.shared.metrics import BUCKETS, OTHER

IN_FLIGHT: Final = Gauge("cra_http_requests_in_flight", "Requests that have begun and not ended")
THUMBNAILS: Final = Counter(
    "cra_thumbnails", "Pictures that were asked for, by whether a thumbnail was kept", ["result"]
)
KEPT: Final = THUMBNAILS.labels("hit")
MADE: Final = THUMBNAILS.labels("miss")
MAKING_SECONDS: Final = Histogram(
    "cra_thumbnail_seconds", "Time to fetch a picture and make it small", buckets=BUCKETS
)
THUMBNAILS_BYTES: Final = Gauge("cra_thumbnails_bytes", "Size of the thumbnails that are kept")
_REQUESTS: Final = Counter(
    "cra_http_requests", "Requests that have ended, by status", ["method", "route", "code"]
)
_SECONDS: Final = Histogram(
    "cra_http_request_seconds",
    "Time of a request from its first byte to the last of its answer",
    ["method", "route"],
    buckets=BUCKETS,
)
_METHODS: Final = {"GET", "HEAD", "POST", "PUT"}


def name_of(scope: MutableMapping[str, Any]) -> tuple[str, str]:
    """Return the labels of a request, method and route, once it has been routed.

    Both are of a few: callers must not decide how many labels there are.
    """
    method = scope["method"] if scope["method"] in _METHODS else OTHER
    route = scope.get("route")
    if route is not None:
        return method, route.path
    return method, "/static" if scope["path"].startswith("/static/") else OTHER


def note_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count a request that has ended; labels are of `name_of`."""
    _REQUESTS.labels(method, route, str(status)).inc()
    _SECONDS.labels(method, route).observe(seconds)
