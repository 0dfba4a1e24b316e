"""Near-duplicates: which copies lie above a bound, which other pictures, and what folding brings.

Shapes in this file: n pictures, m images of a gallery with copies, d embedding dimension.
"""

import io
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from PIL import Image, ImageEnhance

from cra.services.training.evaluation.exact import Vectors, best
from cra.services.training.quality.world import K, Row, World
from cra.shared import duplicates
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.pixels import prepare

PICTURES: Final = 500
BOUNDS: Final = (0.9, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)
QUERIES: Final = 1500
_DEEPER: Final = 8


def _crop(image: Image.Image, share: float) -> Image.Image:
    """Cut a share of the width and height off, half of it on each side."""
    width, height = image.size
    x, y = width * share / 2, height * share / 2
    return image.crop((round(x), round(y), round(width - x), round(height - y)))


def _thumbnail(image: Image.Image) -> Image.Image:
    return image.resize((120, 120 * image.height // image.width))


COPIES: Final[Mapping[str, tuple[Callable[[Image.Image], Image.Image], int]]] = {
    "JPEG again, quality 75": (lambda image: image, 75),
    "JPEG again, quality 30": (lambda image: image, 30),
    "half the size": (lambda image: image.resize((image.width // 2, image.height // 2)), 85),
    "a thumbnail of 120 pixels": (_thumbnail, 85),
    "2 % cropped": (lambda image: _crop(image, 0.02), 85),
    "5 % cropped": (lambda image: _crop(image, 0.05), 85),
    "10 % cropped": (lambda image: _crop(image, 0.1), 85),
    "20 % cropped": (lambda image: _crop(image, 0.2), 85),
    "10 % brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.1), 85),
    "grey": (lambda image: image.convert("L").convert("RGB"), 85),
}  # fmt: skip
IN_GALLERY: Final = ("JPEG again, quality 75", "half the size", "5 % cropped")


def bounds(world: World) -> list[tuple[str, list[float]]]:
    """Return for each kind of pairs the share that has a cosine of at least each bound."""
    originals_nd = world.images_nd[:PICTURES]
    rows = []
    for name in COPIES:
        cosines = (copies_of(world, name) * originals_nd).sum(axis=1)
        rows.append((name, _above(cosines)))
    cosines_nn = originals_nd @ world.images_nd.T
    buildings = np.array([picture.building for picture in world.pictures])
    others_nn = buildings[:PICTURES, None] != buildings[None]
    same = [
        float(cosines_nn[place, other])
        for place in range(PICTURES)
        for other in np.flatnonzero(buildings == buildings[place])
        if other != place
    ]
    rows.append(("other picture: another view of the building", _above(np.array(same))))
    nearest = np.where(others_nn, cosines_nn, -1.0).max(axis=1)
    rows.append(("other picture: the nearest of another building", _above(nearest)))
    rows.append(("other picture: any of another building", _above(cosines_nn[others_nn])))
    return rows


def study(world: World) -> list[Row]:
    """Return rows of a gallery in which a quarter of the pictures have three copies each."""
    copied = range(PICTURES)
    gallery_md = np.concatenate(
        [world.images_nd, *(copies_of(world, name)[list(copied)] for name in IN_GALLERY)]
    )
    sources_m = np.array([*range(len(world.images_nd)), *list(copied) * len(IN_GALLERY)])
    captions = world.captions("professional")
    chosen = np.random.default_rng(0).permutation(len(captions))[:QUERIES]
    queries = [captions[place] for place in chosen]
    texts_qd = world.encode("tuned", [text for _, text in queries])
    different, found = np.zeros((2, len(queries))), np.zeros((2, len(queries)))
    for row, ranked in enumerate(best(texts_qd, gallery_md, K * _DEEPER)):
        folded = [group[0] for group in duplicates.fold(gallery_md[ranked])][:K]
        for column, shown in enumerate((ranked[:K], ranked[folded])):
            sources = set(sources_m[shown].tolist())
            different[column, row] = len(sources)
            found[column, row] = queries[row][0] in sources
    places = [place for place, _ in queries]
    name = "professional captions; a quarter of the pictures has three copies"
    measure = f"share of {K} hits that are different pictures"
    feature = "near-duplicates folded"
    return [
        world.row(feature, "tuned", name, places, found[0], found[1]),
        world.row(feature, "tuned", name, places, different[0] / K, different[1] / K, measure),
    ]


def copies_of(world: World, name: str) -> Vectors:
    """Return the vectors of one kind of copies of the first pictures. Shape [n, d]."""
    change, quality = COPIES[name]
    encoded = []
    for picture in world.pictures[:PICTURES]:
        buffer = io.BytesIO()
        with Image.open(picture.file) as image:
            change(image.convert("RGB")).save(buffer, "JPEG", quality=quality)
        encoded.append(buffer.getvalue())
    return encode(world.image_tower, encoded)


def encode(tower: ImageTower, images: list[bytes]) -> Vectors:
    """Encode images as they are served; unit vectors of shape [n, d]."""
    parts = []
    for start in range(0, len(images), 64):
        pixels = [prepare(one, tower.preprocessing).pixels for one in images[start : start + 64]]
        parts.append(tower.encode(np.stack(pixels)))
    return np.concatenate(parts)


def _above(cosines: Vectors) -> list[float]:
    return [float((cosines >= bound).mean()) for bound in BOUNDS]
