"""Features of frozen towers: each image is encoded once, and never again.

They lie in append-only files, one for each view, in a folder named by the tower's fingerprint.
A record is the SHA-256 of the encoded image, a CRC, and its unit vector; so images are found
again whatever data set they come in, and an interrupted run goes on where it was.

Shapes in this file: n images, v views, s input size, d embedding dimension.
"""

import contextlib
import fcntl
import hashlib
import io
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageOps

from cra.services.training.data.dataset import Image
from cra.shared.errors import NotFoundError
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.pixels import BadImageError, prepare
from cra.shared.model.text_tower import TextTower

Features = npt.NDArray[np.float32]

_BATCH: Final = 32
_TEXTS_AT_ONCE: Final = 64
_SMALLEST_CROP: Final = 0.7
"""Least share of each side that an augmented view shows."""


def load(
    images: Sequence[Image],
    tower: ImageTower,
    cache: Path,
    views: int = 1,
    progress: Callable[[int], None] | None = None,
    workers: int = 2,
    bad: dict[int, BadImageError] | None = None,
) -> Features:
    """Return the features of images, those that are not in the cache yet made first.

    Args:
        images: n images.
        tower: the frozen tower.
        cache: folder of all towers' features.
        views: how many of each image. The first is the image itself, as it is served; others are
            crops of it, mirrored half of the time, always the same.
        progress: called with the number of images (times views) done so far.
        workers: threads that read and decode.
        bad: if given, images that cannot be read or decoded are noted in it by their place, and
            their vectors are zero.

    Returns:
        unit vectors, float32 of shape [v, n, d].

    Raises:
        BadImageError: an image cannot be read or decoded, and `bad` is not given; its id is in the
            message.
        ValueError: `views` is not positive.
    """
    if views < 1:
        raise ValueError(f"views is {views}; it must be positive")
    folder = cache / tower.image_tower
    folder.mkdir(parents=True, exist_ok=True)
    found = np.zeros((views, len(images), tower.dimension), np.float32)
    for view in range(views):
        with _Store(folder / f"view-{view}.bin", tower.dimension) as store:
            _fill(found[view], images, tower, store, view, progress, workers, bad)
    return found


def load_texts(texts: Sequence[str], tower: TextTower, cache: Path) -> Features:
    """Return the vectors that a text tower gives to texts, from the cache where it has them.

    Args:
        texts: n texts; those of like length should stand together.
        tower: whose vectors are wanted, such as the base's.
        cache: folder of all towers' features.

    Returns:
        unit vectors, float32 of shape [n, d].
    """
    folder = cache / tower.release
    folder.mkdir(parents=True, exist_ok=True)
    keys = [hashlib.sha256(text.encode()).digest() for text in texts]
    with _Store(folder / "texts.bin", tower.dimension) as store:
        new = [place for place, key in enumerate(keys) if key not in store.vectors]
        for start in range(0, len(new), _TEXTS_AT_ONCE):
            batch = new[start : start + _TEXTS_AT_ONCE]
            vectors, _ = tower.encode([texts[place] for place in batch])
            store.append([keys[place] for place in batch], vectors)
        return np.stack([store.vectors[key] for key in keys])


def _fill(
    found_nd: Features,
    images: Sequence[Image],
    tower: ImageTower,
    store: "_Store",
    view: int,
    progress: Callable[[int], None] | None,
    workers: int,
    bad: dict[int, BadImageError] | None,
) -> None:
    done = view * len(images)

    def one(place: int) -> tuple[int, bytes, npt.NDArray[np.uint8] | None]:
        image = images[place]
        try:
            encoded = image.read()
            key = hashlib.sha256(encoded).digest()
            if key in store.vectors:
                return place, key, None
            return place, key, _pixels(encoded, tower, view, key)
        except BadImageError as error:
            problem = error
        except (OSError, NotFoundError) as error:
            problem = BadImageError("unreadable", str(error))
        if bad is None:
            raise BadImageError(problem.reason, f"{image.image_id}: {problem.message}") from problem
        bad[place] = problem
        return place, b"", None

    with ThreadPoolExecutor(workers, "decode") as pool:
        for start in range(0, len(images), _BATCH):
            places = range(start, min(start + _BATCH, len(images)))
            batch = list(pool.map(one, places))
            new = {key: pixels for _, key, pixels in batch if pixels is not None}
            if new:
                store.append(list(new), tower.encode(np.stack(list(new.values()))))
            for place, key, _ in batch:
                if key:
                    found_nd[place] = store.vectors[key]
            if progress is not None:
                progress(done + start + len(batch))


def _pixels(encoded: bytes, tower: ImageTower, view: int, key: bytes) -> npt.NDArray[np.uint8]:
    """Prepare an image; view 0 exactly as it is served."""
    prepared = prepare(encoded, tower.preprocessing).pixels
    if view == 0:
        return prepared
    rng = np.random.default_rng([view, *key])
    with PillowImage.open(io.BytesIO(encoded)) as whole:
        upright = ImageOps.exif_transpose(whole).convert("RGB")
    share = rng.uniform(_SMALLEST_CROP, 1.0, 2)
    corner = rng.uniform(0.0, 1.0 - share)
    size = np.array(upright.size)
    left, top, right, bottom = np.concatenate([corner * size, (corner + share) * size]).tolist()
    side = tower.preprocessing.input_size
    crop = upright.resize(
        (side, side), PillowImage.Resampling.BICUBIC, box=(left, top, right, bottom)
    )
    pixels = np.asarray(crop, dtype=np.uint8)
    return np.ascontiguousarray(pixels[:, ::-1]) if rng.random() < 0.5 else pixels


class _Store(contextlib.AbstractContextManager["_Store"]):
    """One file of records; open in one process at a time, others wait."""

    def __init__(self, path: Path, dimension: int) -> None:
        self._path = path
        self._record = np.dtype([("key", "V32"), ("check", "<u4"), ("vector", "<f4", (dimension,))])
        self.vectors: dict[bytes, Features] = {}

    def __enter__(self) -> "_Store":
        self._file: BinaryIO = self._path.open("a+b")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.seek(0)
        content = self._file.read()
        whole = len(content) - len(content) % self._record.itemsize
        # What an interrupted write left is cut off.
        self._file.truncate(whole)
        for record in np.frombuffer(content[:whole], self._record):
            # A damaged record counts as none: it is made again, and never learnt from.
            if zlib.crc32(record["key"].tobytes() + record["vector"].tobytes()) == record["check"]:
                self.vectors[record["key"].tobytes()] = record["vector"]
        return self

    def append(self, keys: Sequence[bytes], vectors_nd: Features) -> None:
        """Write records and remember them."""
        records = np.empty(len(keys), self._record)
        for record, key, vector in zip(records, keys, vectors_nd, strict=True):
            record["key"] = np.void(key)
            record["vector"] = vector
            record["check"] = zlib.crc32(key + record["vector"].tobytes())
            self.vectors[key] = vector
        self._file.write(records.tobytes())
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()
