"""Both towers on CUDA, autocast and pinned memory, against cn_clip in fp32 on the same device."""

import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from cn_clip import clip

from cra.shared.model.checkpoints import find_model
from cra.shared.model.encoders import Vectors, unit
from cra.shared.model.image_tower import ImageTower, normalize_pixels
from cra.shared.model.text_tower import TextTower
from tests.bench.measure import Comparison, times
from tests.bench.model import Queries, model, reference

TEXTS = (1, 32, 256)
IMAGES = (1, 16, 64, 256)


class NoDeviceError(Exception):
    """There is nothing to measure on."""


def run(rounds: int) -> list[Comparison]:
    """Compare at several batch sizes.

    Raises:
        NoDeviceError: there is no CUDA.
    """
    if not torch.cuda.is_available():
        raise NoDeviceError("torch sees no CUDA device")
    source = find_model(str(model()))
    text_tower, image_tower = TextTower(source, "cuda"), ImageTower(source, "cuda")
    theirs, queries = reference().cuda(), Queries()
    name = torch.cuda.get_device_name()
    found = []

    def compare(
        title: str, count: int, ours: Callable[[], Vectors], rival: Callable[[], Vectors]
    ) -> None:
        mine, other = [], []
        cosine = (ours() * unit(rival())).sum(axis=1).min()
        for _ in range(rounds):
            mine.append(statistics.median(times(ours, 20)) / count)
            other.append(statistics.median(times(rival, 20)) / count)
        notes = {
            "device": name,
            "precision": text_tower.runtime.precision,
            "smallest cosine to it": f"{cosine:.5f}",
        }
        found.append(Comparison(title, mine, other, "cn_clip in fp32 on it", "ms", None, notes))

    def our_texts(texts: list[str]) -> Vectors:
        return text_tower.encode(texts)[0]

    def their_texts(texts: list[str]) -> Vectors:
        with torch.no_grad():
            return np.asarray(theirs.encode_text(clip.tokenize(texts).cuda()).cpu())

    def their_images(pixels: npt.NDArray[np.uint8]) -> Vectors:
        given = torch.from_numpy(pixels).cuda()
        with torch.no_grad():
            return np.asarray(theirs.encode_image(normalize_pixels(given)).cpu())

    for count in TEXTS:
        texts = [queries() for _ in range(count)]
        compare(
            f"a text of 22 tokens on CUDA, in batches of {count}",
            count,
            partial(our_texts, texts),
            partial(their_texts, texts),
        )
    for count in IMAGES:
        pixels = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3)).astype(np.uint8)
        compare(
            f"a prepared image on CUDA, in batches of {count}",
            count,
            partial(image_tower.encode, pixels),
            partial(their_images, pixels),
        )
    return found
