"""What the hits of a query have in common: values of their metadata, folders and buckets."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from cra.services.web.messages import CountOut, FacetsOut

LOOKED_AT: Final = 200
"""Hits: as many as a page of the gateway may have."""

SHOWN: Final = 8
"""Values of one name, folders and buckets."""

NAMES: Final = 8
"""Of metadata."""

REPEATED: Final = 2.0
"""Hits a value, on average: a name with fewer, such as a caption, tells pictures apart and does
not group them."""


def count(hits: Iterable[tuple[str, str, Mapping[str, str]]]) -> FacetsOut:
    """Count over hits.

    Args:
        hits: bucket, key and metadata of each.
    """
    looked_at = 0
    metadata: dict[str, Counter[str]] = {}
    folders: Counter[str] = Counter()
    buckets: Counter[str] = Counter()
    for bucket, key, values in hits:
        looked_at += 1
        buckets[bucket] += 1
        folder, slash, _ = key.rpartition("/")
        if slash:
            folders[f"{folder}/"] += 1
        for name, value in values.items():
            metadata.setdefault(name, Counter())[value] += 1
    grouping = {
        name: counter
        for name, counter in metadata.items()
        if counter.total() >= REPEATED * len(counter)
    }
    names = sorted(grouping, key=lambda name: (-grouping[name].total(), name))[:NAMES]
    return FacetsOut(
        hits=looked_at,
        metadata={name: _most(grouping[name]) for name in sorted(names)},
        folders=_most(folders),
        buckets=_most(buckets),
    )


def _most(counter: Counter[str]) -> list[CountOut]:
    ordered = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    return [CountOut(value=value, count=number) for value, number in ordered[:SHOWN]]
