"""Both towers on a GPU. Skipped, and said so, where torch sees none."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from cra.shared.model.checkpoints import find_model
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.runtime import Runtime
from cra.shared.model.text_tower import TextTower
from tests.checkpoints import make_checkpoint
from tests.unit.reference import TOLERANCE

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="THE GPU PATH IS NOT TESTED: torch sees no CUDA device"
)

TEXTS = ["红", "飞檐下的红色大门", "塔" * 60]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return make_checkpoint(tmp_path_factory.mktemp("model"))


def test_it_is_what_auto_comes_to() -> None:
    """Where there is CUDA, `auto` takes it, with torch and in half the bits."""
    runtime = Runtime.choose(engine="auto")
    assert (runtime.engine, runtime.device) == ("torch", "cuda")
    assert runtime.precision in {"bf16", "fp16"}


def test_fp32_is_the_reference(folder: Path) -> None:
    """In fp32 both towers give the vectors that they give on CPU."""
    source = find_model(str(folder))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    found, flags = TextTower(source, "cuda", "fp32").encode(TEXTS)
    expected, cut = TextTower(source, "cpu", "fp32").encode(TEXTS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=10 * TOLERANCE)
    assert flags == cut
    there, here = ImageTower(source, "cuda", "fp32"), ImageTower(source, "cpu", "fp32")
    np.testing.assert_allclose(
        there.encode(pixels), here.encode(pixels), rtol=0, atol=10 * TOLERANCE
    )


def test_autocast_keeps_the_direction(folder: Path) -> None:
    """At the precision that `auto` comes to, vectors keep a cosine of 0.999."""
    source = find_model(str(folder))
    found, _ = TextTower(source, "cuda").encode(TEXTS)
    expected, _ = TextTower(source, "cpu").encode(TEXTS)
    assert (found * expected).sum(axis=1).min() >= 0.999


def test_callers_side_by_side(folder: Path) -> None:
    """Threads with streams of their own each have their own answers."""
    tower = ImageTower(find_model(str(folder)), "cuda")
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3)).astype(np.uint8)
    alone = tower.encode(images)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            parts = list(pool.map(tower.encode, np.split(images, 4)))
            np.testing.assert_allclose(np.concatenate(parts), alone, rtol=0, atol=1e-2)
