"""What the service is worth: recall through the live gateway, and what the index loses.

The same queries are answered twice: by the exact matrix, and by the gateway. Both order equal
scores by image_id, so that what differs is the index (and the precision of the towers it was
filled by), and nothing else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from cra.search.v1 import search_pb2 as pb
from cra.services.training.evaluation import intervals
from cra.services.training.evaluation.exact import KS, Progress, Vectors, best
from cra.services.training.evaluation.intervals import Difference, Estimate
from cra.services.training.evaluation.queries import Kind, Queries
from cra.services.training.metrics import Places, Values
from cra.shared.client import SearchClient
from cra.shared.errors import (
    FailedPreconditionError,
    NotFoundError,
)

DEPTH: Final = max(KS)
"""Hits that are asked for."""
_THREADS: Final = 8
_NOISE: Final = 1e-5
"""Cosines of one pair, computed here and there, differ by less."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class LiveEvaluation:
    """One release behind the gateway, on one kind of captions; shares from 0 to 1, by k."""

    model: str
    kind: Kind
    queries: int
    gallery: int
    exact: Mapping[int, Estimate]
    """Recall of the exact matrix, equal scores in the order of image ids."""
    live: Mapping[int, Estimate]
    index_loss: Mapping[int, Difference]
    """Exact recall less live recall."""
    overlap: float
    """Share of the exact best 20 that the index returns; what scores the same will do."""


class LiveGallery:
    """The images of a data set behind a gateway.

    Args:
        client: of the gateway.
        image_ids: of the data set's images.
        prefix: goes before each of them to make the `bucket/key` of the index. Searches are
            restricted to what begins with it.

    Raises:
        FailedPreconditionError: the prefix names no bucket.
    """

    def __init__(self, client: SearchClient, image_ids: Sequence[str], prefix: str = "") -> None:
        self._client = client
        self._ids = [prefix + image_id for image_id in image_ids]
        self._places = {image_id: place for place, image_id in enumerate(self._ids)}
        buckets = {image_id.partition("/")[0] for image_id in self._ids}
        bucket, slash, key_prefix = prefix.partition("/")
        if any("/" not in image_id for image_id in self._ids) or (bucket and not slash):
            raise FailedPreconditionError(
                f"{self._ids[0]!r} is no `bucket/key`; a prefix such as images/eval/ makes it one"
            )
        self._where = pb.Filter(buckets=sorted(buckets), key_prefix=key_prefix)
        order = sorted(range(len(self._ids)), key=self._ids.__getitem__)
        self.order_n: Places = np.empty(len(order), np.int64)
        """Place of each image in the order of image ids."""
        self.order_n[order] = np.arange(len(order))

    def check(self, progress: Progress | None = None) -> None:
        """Look for every image in the index.

        Raises:
            FailedPreconditionError: some are missing; names how many, and the first.
        """

        def is_there(image_id: str) -> bool:
            try:
                self._client.call(pb.SearchRequest(image_id=image_id, top_k=1))
            except NotFoundError:
                return False
            return True

        found = list(_all(is_there, self._ids, progress))
        missing = [one for one, there in zip(self._ids, found, strict=True) if not there]
        if missing:
            raise FailedPreconditionError(
                f"{len(missing)} of {len(self._ids)} images are not in the index, such as "
                f"{missing[0]}; put them there and wait until `cra status` shows them indexed"
            )

    def search(
        self,
        texts: Sequence[str],
        release: str,
        image_tower: str,
        progress: Progress | None = None,
    ) -> list[Places]:
        """Return the places of the hits of each text, the best first.

        Raises:
            NotFoundError: the gateway does not have the release.
            FailedPreconditionError: the gateway serves another image tower, or the index holds
                images below the prefix that the data set lacks.
        """

        def one(text: str) -> Places:
            request = pb.SearchRequest(
                text=text, top_k=DEPTH, filter=self._where, text_release=release
            )
            response = self._client.call(request)
            if response.image_tower != image_tower:
                raise FailedPreconditionError(
                    f"the gateway searches vectors of image tower {response.image_tower}, "
                    f"the model's is {image_tower}"
                )
            strangers = [h.image_id for h in response.hits if h.image_id not in self._places]
            if strangers:
                raise FailedPreconditionError(
                    f"the index holds {strangers[0]}, which is not in the data set; the images of "
                    "an evaluation need a prefix of their own"
                )
            return np.array([self._places[hit.image_id] for hit in response.hits], np.int64)

        return list(_all(one, texts, progress))


def measure(
    model: str,
    queries: Queries,
    images_nd: Vectors,
    texts_qd: Vectors,
    found: Sequence[Places],
    order_n: Places,
    resamples: int = intervals.RESAMPLES,
    seed: int = 0,
) -> LiveEvaluation:
    """Set what the gateway found beside the exact matrix.

    Args:
        model: the release.
        queries: what was asked.
        images_nd: unit vectors of the gallery.
        texts_qd: unit vectors of the texts.
        found: places of the gateway's hits of each text, the best first.
        order_n: see `LiveGallery.order_n`.
        resamples: of the groups, for the intervals.
        seed: of the intervals.
    """
    expected = best(texts_qd, images_nd, DEPTH, order_n)
    exact_qm, live_qm = _hits(queries, expected), _hits(queries, found)
    groups = queries.text_groups
    return LiveEvaluation(
        model=model,
        kind=queries.kind,
        queries=len(queries.texts),
        gallery=queries.gallery,
        exact=_by_k(intervals.means(exact_qm, groups, None, resamples, seed)),
        live=_by_k(intervals.means(live_qm, groups, None, resamples, seed)),
        index_loss=_by_k(intervals.differences(live_qm, exact_qm, groups, resamples, seed)),
        overlap=_overlap(images_nd, texts_qd, expected, found),
    )


def _hits(queries: Queries, found: Sequence[Places]) -> Values:
    """Return for each query and k whether a right image is among the first k. Shape [q, m]."""
    hits_qm = np.zeros((len(found), len(KS)))
    for query, places in enumerate(found):
        right = np.flatnonzero(np.isin(places, queries.images_of.row(query)))
        if right.size:
            hits_qm[query] = [right[0] < k for k in KS]
    return hits_qm


def _overlap(
    images_nd: Vectors, texts_qd: Vectors, expected: Sequence[Places], found: Sequence[Places]
) -> float:
    shares = []
    for text_d, wanted, got in zip(texts_qd, expected, found, strict=True):
        least = (images_nd[wanted] @ text_d).min() - _NOISE
        shares.append((images_nd[got] @ text_d >= least).sum() / len(wanted))
    return float(np.minimum(shares, 1.0).mean())


def _by_k(found: Sequence[_Result]) -> dict[int, _Result]:
    return dict(zip(KS, found, strict=True))


def _all(
    one: Callable[[_Item], _Result], items: Sequence[_Item], progress: Progress | None
) -> Iterator[_Result]:
    """Call `one` for each item, some at a time; stop at the first error."""
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for done, result in enumerate(pool.map(one, items), start=1):
                if progress is not None:
                    progress(done)
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
