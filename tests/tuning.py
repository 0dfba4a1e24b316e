"""A small world to tune in: pictures of colours, and captions in words the base never saw."""

import dataclasses
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from cra.services.training.data.dataset import DataSet, Image
from cra.services.training.tuning.interpolation import Choice
from cra.services.training.tuning.settings import TuningSettings
from cra.services.training.tuning.validation import Score
from cra.shared.model.checkpoints import ModelSource, find_model
from tests.checkpoints import make_checkpoint

COLOURS = {
    "丹朱": (200, 30, 30),
    "石绿": (30, 180, 60),
    "霁青": (40, 60, 200),
    "赭黄": (210, 180, 40),
    "玄墨": (20, 20, 20),
    "粉白": (235, 230, 225),
}
PLACES = {"庑殿": "top", "须弥座": "bottom", "鸱吻": "left", "戗脊": "right"}
EVERYDAY = ("一张图", "红色", "一座房子", "蓝天", "有树的街道", "门前有水")

SETTINGS = TuningSettings(
    max_epochs=2, batch_size=16, lr=2e-3, warmup=2, precision="fp32", patience=100, kd_batch_size=4
)


def picture(colour: tuple[int, int, int], where: str, seed: int) -> bytes:
    """Return a grey PNG with noise and a patch of a colour at one side."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(110, 146, (32, 32, 3)).astype(np.uint8)
    half = {
        "top": (slice(0, 16), slice(None)),
        "bottom": (slice(16, 32), slice(None)),
        "left": (slice(None), slice(0, 16)),
        "right": (slice(None), slice(16, 32)),
    }[where]
    pixels[half] = colour
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_dataset(groups: Iterable[int], *, general: bool = True) -> DataSet:
    """Return a data set of 24 pictures for each group; equal captions come in all of them."""
    images = []
    for group in groups:
        for number, (word, colour) in enumerate(COLOURS.items()):
            for side, (name, where) in enumerate(PLACES.items()):
                seed = group * 1000 + number * 10 + side
                content = picture(colour, where, seed)
                images.append(
                    Image(
                        f"{group}-{word}-{name}.png",
                        f"building-{group}-{number}",
                        (f"{word}色的{name}", f"{name}，{word}"),
                        lambda content=content: content,  # type: ignore[misc]
                        (EVERYDAY[number],) if general else (),
                        {"colour": word},
                    )
                )
    return DataSet(tuple(images))


def make_base(folder: Path) -> ModelSource:
    """Write a tiny base model of random weights, and return it."""
    return find_model(str(make_checkpoint(folder)))


def changed(**fields: object) -> TuningSettings:
    """Return the settings of tests with some changed."""
    return dataclasses.replace(SETTINGS, **fields)  # type: ignore[arg-type]


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.scores: list[tuple[int, Score, bool]] = []
        self.done: dict[str, tuple[int, int]] = {}
        self.choice: Choice | None = None

    def features(self, split: str, done: int, total: int) -> None:
        """See `Listener`."""
        self.done[split] = (done, total)

    def step(self, step: int, total: int, loss: float, rate: float) -> None:
        """See `Listener`."""
        self.losses.append(loss)

    def validated(self, step: int, score: Score, *, best: bool) -> None:
        """See `Listener`."""
        self.scores.append((step, score, best))

    def chosen(self, choice: Choice) -> None:
        """See `Listener`."""
        self.choice = choice
