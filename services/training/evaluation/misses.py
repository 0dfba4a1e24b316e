"""The worst misses: queries whose right image came last, and what came instead."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps

from cra.services.training.data.dataset import DataSet
from cra.services.training.evaluation.exact import Answers, Vectors, best
from cra.services.training.evaluation.queries import Queries

SHOWN: Final = 5
"""Images that came instead."""
_SIDE: Final = 176
"""Pixels of a thumbnail's longer side."""


@dataclass(frozen=True)
class Shown:
    """An image in a model's answer."""

    place: int
    """In the data set."""
    image_id: str
    score: float
    """Cosine."""
    right: bool


@dataclass(frozen=True)
class Side:
    """One model's answer."""

    model: str
    rank: float
    """Of the first right image, from 1; among equals the mean."""
    instead: tuple[Shown, ...]
    """The best images, the best first."""


@dataclass(frozen=True)
class Miss:
    """A query that was answered badly."""

    text: str
    right: Shown
    """The right image that the model under evaluation likes best."""
    sides: tuple[Side, ...]
    """Of each model."""


def worst(
    queries: Queries,
    dataset: DataSet,
    images_nd: Vectors,
    models: Sequence[tuple[str, Answers]],
    count: int,
) -> list[Miss]:
    """Return the queries with the highest ranks by the last model, at most one of each group.

    Args:
        queries: what was asked.
        dataset: the gallery.
        images_nd: its unit vectors.
        models: names and answers.
        count: how many at most; what came first is no miss.
    """
    ranks_q = models[-1][1].to_images.ranks()
    chosen: list[int] = []
    groups: set[int] = set()
    for query in map(int, np.argsort(-ranks_q, kind="stable")):
        if len(chosen) == count or ranks_q[query] <= 1:
            break
        group = int(queries.text_groups.groups_q[query])
        if group not in groups:
            groups.add(group)
            chosen.append(query)
    return [_miss(query, queries, dataset, images_nd, models) for query in chosen]


def thumbnails(dataset: DataSet, places: Iterable[int]) -> dict[int, str]:
    """Return small pictures of images as data URIs, by place."""
    return {place: _thumbnail(dataset.images[place].read()) for place in sorted(set(places))}


def places_of(misses: Iterable[Miss]) -> set[int]:
    """Return the images that are shown."""
    return {
        shown.place
        for miss in misses
        for shown in (miss.right, *(one for side in miss.sides for one in side.instead))
    }


def _miss(
    query: int,
    queries: Queries,
    dataset: DataSet,
    images_nd: Vectors,
    models: Sequence[tuple[str, Answers]],
) -> Miss:
    right = queries.images_of.row(query)

    def shown(place: int, answers: Answers) -> Shown:
        score = float(images_nd[place] @ answers.texts_qd[query])
        return Shown(place, dataset.images[place].image_id, score, bool(np.isin(place, right)))

    last = models[-1][1]
    nearest = int(right[np.argmax(images_nd[right] @ last.texts_qd[query])])
    sides = []
    for name, answers in models:
        (found,) = best(answers.texts_qd[query : query + 1], images_nd, SHOWN)
        rank = float(answers.to_images.ranks()[query])
        sides.append(Side(name, rank, tuple(shown(int(place), answers) for place in found)))
    return Miss(queries.texts[query], shown(nearest, last), tuple(sides))


def _thumbnail(encoded: bytes) -> str:
    with PillowImage.open(io.BytesIO(encoded)) as image:
        image.draft("RGB", (2 * _SIDE, 2 * _SIDE))
        small = ImageOps.exif_transpose(image).convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
