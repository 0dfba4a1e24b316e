"""What a model is worth: recall by the exact matrix of all cosines, in both directions.

Shapes in this file: q texts, n images of the gallery, d embedding dimension, m measures.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cra.services.training.data.dataset import DataSet
from cra.services.training.evaluation import intervals
from cra.services.training.evaluation.intervals import Difference, Estimate, Groups
from cra.services.training.evaluation.queries import Kind, Queries, ask
from cra.services.training.metrics import (
    Places,
    Ranking,
    Relevant,
    Values,
    chance,
    rank_vectors,
)
from cra.shared.model.text_tower import TextTower

Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]
"""Returns unit vectors of texts, shape [q, d]."""
Progress = Callable[[int], None]
"""Called with how many are done so far."""
Ceiling = Callable[[Queries, int], float]
"""Returns the best recall at k that anyone could reach on queries for images."""

KS: Final = (1, 5, 10, 20)
BY_CATEGORY: Final = 20
"""Recall by category is at this k."""
MRR: Final = "MRR"
_TEXTS_AT_ONCE: Final = 64
_SCORES_AT_ONCE: Final = 2**24


@dataclass(frozen=True)
class Direction:
    """How well queries find candidates: shares from 0 to 1, by k, and ranks from 1."""

    queries: int
    candidates: int
    groups: int
    recall: Mapping[int, Estimate]
    chance: Mapping[int, float]
    """Recall of a random order."""
    ceiling: Mapping[int, float] | None
    """The best possible recall, if anyone knows it."""
    mean_reciprocal_rank: Estimate
    median_rank: Estimate


@dataclass(frozen=True)
class CategoryRecall:
    """Recall at 20 of the texts that describe images with one value of an attribute."""

    attribute: str
    value: str
    queries: int
    recall: Estimate
    chance: float


@dataclass(frozen=True)
class Evaluation:
    """One model on one kind of captions."""

    model: str
    kind: Kind
    text_to_image: Direction
    image_to_text: Direction
    categories: tuple[CategoryRecall, ...]


@dataclass(frozen=True)
class Comparison:
    """A second model against a first, by measure (`R@1` ..., `MRR`): second less first."""

    kind: Kind
    first: str
    second: str
    text_to_image: Mapping[str, Difference]
    image_to_text: Mapping[str, Difference]


@dataclass(frozen=True, eq=False)
class Answers:
    """How a model answered queries."""

    texts_qd: Vectors
    to_images: Ranking
    """Of each text's first right image."""
    to_texts: Ranking
    """Of the first right text of each image that has one."""


def evaluate(
    images_nd: Vectors,
    dataset: DataSet,
    encode: Encode,
    kind: Kind = "captions",
    *,
    model: str = "",
    normalize: Callable[[str], str] = lambda text: text,
    ceiling: Ceiling | None = None,
    resamples: int = intervals.RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Measure a model on a data set.

    Args:
        images_nd: unit vectors of the data set's images.
        dataset: n images; those without captions are searched too.
        encode: the text tower.
        kind: which captions are asked.
        model: its name.
        normalize: of the tower's tokenizer; see `ask`.
        ceiling: what nobody can beat, if that is known.
        resamples: of the groups, for the intervals.
        seed: of the intervals.

    Raises:
        FailedPreconditionError: there is no caption of this kind.
        ValueError: vectors and images are not of the same number.
    """
    queries = ask(dataset, kind, normalize)
    answers = answer(queries, images_nd, encode(queries.texts))
    return summarise(model, queries, answers, ceiling, resamples, seed)


def answer(
    queries: Queries, images_nd: Vectors, texts_qd: Vectors, progress: Progress | None = None
) -> Answers:
    """Rank all images for each text, and all texts for each image that has one.

    Args:
        queries: what is asked.
        images_nd: unit vectors of the gallery.
        texts_qd: unit vectors of the texts.
        progress: of both directions together, in queries.

    Raises:
        ValueError: vectors and images are not of the same number.
    """
    if len(images_nd) != queries.gallery:
        raise ValueError(f"{len(images_nd)} vectors of {queries.gallery} images")
    count = len(texts_qd)
    later = None if progress is None else lambda done: progress(count + done)
    to_images = rank_vectors(texts_qd, images_nd, queries.images_of, progress)
    to_texts = rank_vectors(images_nd[queries.images], texts_qd, queries.texts_of, later)
    return Answers(texts_qd, to_images, to_texts)


def summarise(
    model: str,
    queries: Queries,
    answers: Answers,
    ceiling: Ceiling | None = None,
    resamples: int = intervals.RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Turn answers into figures with their intervals."""

    def direction(
        ranking: Ranking, relevant: Relevant, groups: Groups, candidates: int
    ) -> Direction:
        *recalls, mrr = intervals.means(measures(ranking), groups, None, resamples, seed)
        return Direction(
            queries=len(ranking),
            candidates=candidates,
            groups=groups.count,
            recall=dict(zip(KS, recalls, strict=True)),
            chance={k: chance(k, candidates, relevant.counts_q) for k in KS},
            ceiling=None,
            mean_reciprocal_rank=mrr,
            median_rank=intervals.median(ranking.ranks(), groups, resamples, seed),
        )

    to_images = direction(
        answers.to_images, queries.images_of, queries.text_groups, queries.gallery
    )
    to_texts = direction(
        answers.to_texts, queries.texts_of, queries.image_groups, len(queries.texts)
    )
    if ceiling is not None:
        best = {k: ceiling(queries, k) for k in KS}
        to_images = dataclasses.replace(to_images, ceiling=best)
    categories = _categories(queries, answers.to_images, resamples, seed)
    return Evaluation(model, queries.kind, to_images, to_texts, categories)


def compare(
    queries: Queries,
    first: tuple[str, Answers],
    second: tuple[str, Answers],
    resamples: int = intervals.RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two models, each its name and its answers to the same queries."""

    def apart(before: Ranking, after: Ranking, groups: Groups) -> dict[str, Difference]:
        found = intervals.differences(measures(before), measures(after), groups, resamples, seed)
        return dict(zip([*(f"R@{k}" for k in KS), MRR], found, strict=True))

    return Comparison(
        queries.kind,
        first[0],
        second[0],
        apart(first[1].to_images, second[1].to_images, queries.text_groups),
        apart(first[1].to_texts, second[1].to_texts, queries.image_groups),
    )


def measures(ranking: Ranking) -> Values:
    """Return of each query its hits at all of `KS` and its reciprocal rank. Shape [q, m]."""
    return np.stack([*(ranking.hits_at_k(k) for k in KS), ranking.reciprocal_ranks()], axis=1)


def encode_texts(
    tower: TextTower, texts: Sequence[str], progress: Progress | None = None
) -> Vectors:
    """Encode texts in batches, each different one once; unit vectors of shape [q, d]."""
    different = sorted(set(texts), key=lambda text: (len(text), text))
    parts = []
    for start in range(0, len(different), _TEXTS_AT_ONCE):
        parts.append(tower.encode(different[start : start + _TEXTS_AT_ONCE])[0])
        if progress is not None:
            progress(min(start + _TEXTS_AT_ONCE, len(different)))
    vectors = np.concatenate(parts)
    places = {text: place for place, text in enumerate(different)}
    return vectors[[places[text] for text in texts]]


def best(
    queries_qd: Vectors, items_nd: Vectors, k: int, order_n: Places | None = None
) -> list[Places]:
    """Return the k best candidates of each query, the best first.

    Args:
        queries_qd: q unit vectors.
        items_nd: n unit vectors.
        k: how many.
        order_n: of equals the one with the smallest number here comes first; by place if None.
    """
    order_n = np.arange(len(items_nd)) if order_n is None else order_n
    k = min(k, len(items_nd))
    step = max(1, _SCORES_AT_ONCE // len(items_nd))
    found = []
    for start in range(0, len(queries_qd), step):
        scores_qn = queries_qd[start : start + step] @ items_nd.T
        least_q = -np.partition(-scores_qn, k - 1, axis=1)[:, k - 1]
        for scores_n, least in zip(scores_qn, least_q, strict=True):
            chosen = np.flatnonzero(scores_n >= least)
            found.append(chosen[np.lexsort((order_n[chosen], -scores_n[chosen]))[:k]])
    return found


def _categories(
    queries: Queries, ranking: Ranking, resamples: int, seed: int
) -> tuple[CategoryRecall, ...]:
    if not queries.categories:
        return ()
    counted_qm = np.zeros((len(ranking), len(queries.categories)))
    for column, category in enumerate(queries.categories):
        counted_qm[list(category.queries), column] = 1.0
    hits_qm = np.broadcast_to(ranking.hits_at_k(BY_CATEGORY)[:, None], counted_qm.shape)
    found = intervals.means(hits_qm, queries.text_groups, counted_qm, resamples, seed)
    counts_q = queries.images_of.counts_q
    return tuple(
        CategoryRecall(
            category.attribute,
            category.value,
            len(category.queries),
            recall,
            chance(BY_CATEGORY, queries.gallery, counts_q[list(category.queries)]),
        )
        for category, recall in zip(queries.categories, found, strict=True)
    )
