"""Very wide and very tall pictures: one vector of the whole against the mean with square crops'."""

import io
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np
from PIL import Image

from cra.services.training.evaluation.exact import Vectors
from cra.services.training.metrics import rank_vectors
from cra.services.training.quality.duplicates import encode
from cra.services.training.quality.world import K, Row, World

PICTURES: Final = 500
RATIO: Final = 3
"""The long side of a picture over its short one."""
_SIDE: Final = 360

Make = Callable[[World, int], Image.Image]


def _strip(world: World, place: int, *, tall: bool) -> Image.Image:
    """Put the picture between two others: a panorama of several buildings, or a stack of them."""
    rng = np.random.default_rng(place)
    others = rng.choice(len(world.pictures), RATIO - 1, replace=False)
    places = rng.permutation([place, *others.tolist()])
    size = (_SIDE, _SIDE * RATIO) if tall else (_SIDE * RATIO, _SIDE)
    strip = Image.new("RGB", size)
    for number, one in enumerate(places):
        with Image.open(world.pictures[one].file) as image:
            square = image.convert("RGB").resize((_SIDE, _SIDE))
        strip.paste(square, (0, number * _SIDE) if tall else (number * _SIDE, 0))
    return strip


def _canvas(world: World, place: int, *, tall: bool) -> Image.Image:
    """Put the picture somewhere on a wide or tall canvas that goes on as its edges do."""
    with Image.open(world.pictures[place].file) as image:
        pixels = np.asarray(image.convert("RGB").resize((_SIDE, _SIDE)))
    before = int(np.random.default_rng(place).integers(0, _SIDE * (RATIO - 1) + 1))
    room = (before, _SIDE * (RATIO - 1) - before)
    pad = (room, (0, 0), (0, 0)) if tall else ((0, 0), room, (0, 0))
    return Image.fromarray(np.pad(pixels, pad, mode="edge"))


KINDS: Final[Mapping[str, Make]] = {
    "three buildings side by side": lambda world, place: _strip(world, place, tall=False),
    "three buildings one over another": lambda world, place: _strip(world, place, tall=True),
    "one building on a wide canvas": lambda world, place: _canvas(world, place, tall=False),
    "one building on a tall canvas": lambda world, place: _canvas(world, place, tall=True),
}


def study(world: World) -> list[Row]:
    """Return rows by kind of picture: each tower on the captions of its own way of speaking."""
    rows = []
    for kind, make in KINDS.items():
        whole_nd, crops_nd = vectors(world, make)
        both_nd = _unit(whole_nd + crops_nd)
        for label, speech in (("base", "plain"), ("tuned", "professional")):
            queries = [one for one in world.captions(speech) if one[0] < PICTURES]
            places = [place for place, _ in queries]
            texts_qd = world.encode(label, [text for _, text in queries])
            off, on, crops = (
                rank_vectors(texts_qd, images_nd, np.array(places)).hits_at_k(K)
                for images_nd in (whole_nd, both_nd, crops_nd)
            )
            name = f"{speech} captions; {kind}"
            rows.append(world.row("crops, with the whole", label, name, places, off, on))
            rows.append(world.row("crops alone", label, name, places, off, crops))
    return rows


def vectors(world: World, make: Make) -> tuple[Vectors, Vectors]:
    """Return the vectors of whole pictures, and the means of their crops'; both [n, d]."""
    images = [make(world, place) for place in range(min(PICTURES, len(world.pictures)))]
    whole_nd = encode(world.image_tower, [_png(image) for image in images])
    crops = [_png(crop) for image in images for crop in squares(image)]
    crops_nd = encode(world.image_tower, crops)
    return whole_nd, _unit(crops_nd.reshape(len(images), RATIO, -1).mean(axis=1))


def squares(image: Image.Image) -> Iterator[Image.Image]:
    """Yield `RATIO` square crops along the long side, which leave nothing out."""
    side, tall = min(image.size), image.height > image.width
    for start in np.linspace(0, max(image.size) - side, RATIO).round().astype(int).tolist():
        box = (0, start, side, start + side) if tall else (start, 0, start + side, side)
        yield image.crop(box)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _unit(vectors_nd: Vectors) -> Vectors:
    lengths: Vectors = np.linalg.norm(vectors_nd, axis=1, keepdims=True)
    return np.asarray(vectors_nd / lengths, dtype=np.float32)
