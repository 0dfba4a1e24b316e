"""What the gateway counts beside its calls: searches, whether by a call or in a stream."""

from typing import Final

from prometheus_client import Counter, Histogram

from cra.shared.metrics import BUCKETS

SEARCHES: Final = Counter(
    "cra_searches", "Searches answered, each one of a stream too, by status code", ["code"]
)
_STAGES: Final = Histogram(
    "cra_search_stage_seconds",
    "Time of a search by stage: waiting for a tower, encoding, searching Milvus, and in total",
    ["stage"],
    buckets=BUCKETS,
)
_QUEUE, _ENCODE, _SEARCH, _TOTAL = map(_STAGES.labels, ("queue", "encode", "search", "total"))
_OK: Final = SEARCHES.labels("OK")


def note_search(queue: float, encode: float, search: float, total: float) -> None:
    """Count a search that was answered, with the seconds of its stages."""
    _OK.inc()
    if encode:  # not where the vector was known
        _QUEUE.observe(queue)
        _ENCODE.observe(encode)
    _SEARCH.observe(search)
    _TOTAL.observe(total)
