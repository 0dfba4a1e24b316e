"""Vectors of texts that were asked for before.

A release never changes, so what it made of a text holds for good: an entry is never out of date,
only pushed out by others. Texts that the release's normaliser makes equal share one.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cachetools import LRUCache
from prometheus_client import Counter, Gauge

from cra.shared.domain import Vector
from cra.shared.model.text import NORMALIZERS
from cra.shared.ports import EncodedTexts, EncodeTiming, TextReleaseInfo

_TEXTS: Final = Counter(
    "cra_query_cache_texts", "Texts of queries, by whether their vector was kept", ["result"]
)
_HITS, _MISSES = _TEXTS.labels("hit"), _TEXTS.labels("miss")
_SIZE: Final = Gauge("cra_query_cache_entries", "Vectors of texts that are kept")


@dataclass(frozen=True)
class _Entry:
    vector: Vector
    truncated: bool
    image_tower: str


class QueryCache:
    """Remembers what a release made of a text.

    Args:
        size: most entries; 0 to remember nothing.
    """

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()
        self._entries: LRUCache[tuple[str, str, str], _Entry] = LRUCache(size)

    def embed(
        self,
        texts: Sequence[str],
        release: TextReleaseInfo,
        image_tower: str,
        encode: Callable[[Sequence[str]], EncodedTexts],
    ) -> EncodedTexts:
        """Return the vectors of texts; those that are not known are encoded, all or none.

        Args:
            texts: of one query.
            release: that is to encode them.
            image_tower: of it; models with different ones may have their own text towers under
                one name.
            encode: does it. An answer by another release or image tower is passed on and not
                remembered.
        """
        keys = [(image_tower, *_key(text, release)) for text in texts]
        with self._lock:
            known = [self._entries.get(key) for key in keys]
        if all(known):
            _HITS.inc(len(texts))
            found = [entry for entry in known if entry is not None]
            return EncodedTexts(
                [entry.vector for entry in found],
                [entry.truncated for entry in found],
                release.name,
                found[0].image_tower,
                EncodeTiming(),
            )
        _MISSES.inc(len(texts))
        answer = encode(texts)
        if (answer.text_release, answer.image_tower) == (release.name, image_tower):
            with self._lock:
                if self._entries.maxsize:
                    for key, vector, cut in zip(
                        keys, answer.vectors, answer.truncated, strict=True
                    ):
                        self._entries[key] = _Entry(vector, cut, answer.image_tower)
                _SIZE.set(len(self._entries))
        return answer


def _key(text: str, release: TextReleaseInfo) -> tuple[str, str]:
    normalize = NORMALIZERS.get(release.normalizer)
    # A normaliser that is newer than this gateway: what is written alike is alike at least.
    return release.name, normalize(text) if normalize else text
