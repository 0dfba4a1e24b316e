"""What is asked of a model: the captions of a data set, and which images are right for each.

As Chinese CLIP counts, each different text is one query, and all images that it describes are
right. Which model is asked changes nothing about that: models are compared on the same queries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from cra.services.training.data.dataset import DataSet, Image
from cra.services.training.evaluation.intervals import Groups
from cra.services.training.metrics import Places, Relevant
from cra.shared.errors import FailedPreconditionError

Kind = Literal["captions", "general"]
KINDS: Final[tuple[Kind, ...]] = ("captions", "general")


@dataclass(frozen=True)
class Category:
    """The queries that describe an image with one value of an attribute."""

    attribute: str
    value: str
    queries: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Queries:
    """Texts to find images by, and images to find texts by."""

    kind: Kind
    texts: tuple[str, ...]
    """The different captions, as they come first in the data set."""
    images_of: Relevant
    """Images that are right for each text."""
    text_groups: Groups
    images: Places
    """Images that have captions of this kind."""
    texts_of: Relevant
    """Texts that are right for each of `images`."""
    image_groups: Groups
    gallery: int
    """Images that are searched, those without captions too."""
    categories: tuple[Category, ...]


def captions_of(image: Image, kind: Kind) -> Sequence[str]:
    """Return the captions of one kind."""
    return image.captions if kind == "captions" else image.general


def has(dataset: DataSet, kind: Kind) -> bool:
    """Tell whether any image has captions of a kind."""
    return any(captions_of(image, kind) for image in dataset.images)


def ask(
    dataset: DataSet, kind: Kind, normalize: Callable[[str], str] = lambda text: text
) -> Queries:
    """Gather the queries of a data set.

    Args:
        dataset: the images that are searched.
        kind: which captions are queries.
        normalize: of the tower's tokenizer. Captions that it makes equal describe the same
            images, but are asked each as it was written.

    Raises:
        FailedPreconditionError: there is no caption of this kind.
    """
    texts: dict[str, int] = {}
    alike: dict[str, list[int]] = {}
    """Texts by what the tower reads."""
    images_by_key: dict[str, list[int]] = {}
    keys_by_image: dict[int, list[str]] = {}
    for place, image in enumerate(dataset.images):
        for text in captions_of(image, kind):
            key = normalize(text)
            if text not in texts:
                texts[text] = len(texts)
                alike.setdefault(key, []).append(texts[text])
            if key not in keys_by_image.setdefault(place, []):
                keys_by_image[place].append(key)
                images_by_key.setdefault(key, []).append(place)
    if not texts:
        raise FailedPreconditionError(f"the data set has nothing under {kind!r}")
    images_of = [images_by_key[normalize(text)] for text in texts]
    texts_of = [[text for key in keys for text in alike[key]] for keys in keys_by_image.values()]
    return Queries(
        kind=kind,
        texts=tuple(texts),
        images_of=Relevant.of(images_of),
        text_groups=Groups.of([[dataset.images[i].group for i in row] for row in images_of]),
        images=np.array(list(keys_by_image)),
        texts_of=Relevant.of(texts_of),
        image_groups=Groups.of([[dataset.images[i].group] for i in keys_by_image]),
        gallery=len(dataset),
        categories=_categories(dataset, images_of),
    )


def _categories(dataset: DataSet, images_of: Sequence[Sequence[int]]) -> tuple[Category, ...]:
    found: dict[tuple[str, str], dict[int, None]] = {}
    for query, places in enumerate(images_of):
        for place in places:
            for attribute, value in dataset.images[place].attributes.items():
                found.setdefault((attribute, value), {})[query] = None
    return tuple(
        Category(attribute, value, tuple(queries))
        for (attribute, value), queries in sorted(found.items())
    )
