"""One Chinese query encoded, against cn_clip called as its README shows; and int8 against bf16."""

import statistics
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from cn_clip import clip
from cn_clip.clip.model import CLIP

from cra.shared import budget
from cra.shared.model.openvino_towers import OpenVinoImageTower, OpenVinoTextTower
from cra.shared.model.runtime import Precision, Runtime
from tests.bench.measure import Comparison, busy_neighbour, compare, times
from tests.bench.model import Queries, converted, reference

AT_LEAST = {22: 5.5, 8: 8.0}
WITH_NEIGHBOUR = 10.0
COSINE = 0.999
"""To the vector of cn_clip, at least."""
CALLS = 20
"""Of each rival in a round, whose median counts."""
TEXTS_TOGETHER = 8
IMAGES_TOGETHER = 16


def tower(precision: Precision = "auto") -> OpenVinoTextTower:
    """Return our text tower, as the service runs it."""
    return OpenVinoTextTower(converted(), _runtime(precision), budget.cores())


def _runtime(precision: Precision) -> Runtime:
    runtime = Runtime.choose("cpu", precision, engine="auto")
    assert runtime.engine == "openvino"
    return runtime


def run(rounds: int) -> list[Comparison]:
    """Compare at two lengths, with free cores and beside a busy neighbour; and int8 with bf16."""
    ours, theirs, queries = tower(), reference(), Queries()
    torch.set_num_threads(budget.cores())
    found = []
    for tokens, at_least in AT_LEAST.items():
        title = f"a query of {tokens} tokens"
        texts = [queries(tokens) for _ in range(8)]
        likeness = (ours.encode(texts)[0] * _encode(theirs, texts)).sum(axis=1)
        notes = {"precision": str(ours.runtime.precision)}
        found.append(_compare(title, ours, theirs, tokens, rounds, at_least, notes))
        smallest = float(likeness.min())
        found.append(
            Comparison(
                f"1 - cosine to fp32 of {title} (the smallest of {len(texts)}: {smallest:.5f})",
                [max(1 - smallest, 1e-6)],
                [1 - COSINE],
                f"1 - {COSINE}",
                "",
                1.0,
            )
        )
    with busy_neighbour():
        title = "a query of 22 tokens, a core taken by another process"
        found.append(_compare(title, ours, theirs, 22, rounds, WITH_NEIGHBOUR, {}))
    return [*found, *_int8(ours, rounds)]


def _int8(usual: OpenVinoTextTower, rounds: int) -> Iterator[Comparison]:
    """Compare int8, which is used where it is asked for, with what `auto` comes to."""
    int8_text, queries = tower("int8"), Queries(8)
    against = f"the same in {usual.runtime.precision}"

    def encode(chosen: OpenVinoTextTower, tokens: int, count: int) -> None:
        for _ in range(CALLS // count):
            chosen.encode([queries(tokens) for _ in range(count)])

    for tokens, count in ((22, 1), (8, 1), (22, TEXTS_TOGETHER)):
        texts = [queries(tokens) for _ in range(8)]
        alike = (int8_text.encode(texts)[0] * usual.encode(texts)[0]).sum(axis=1).min()
        yield compare(
            f"{CALLS // count * count} queries of {tokens} tokens in int8, {count} at a time",
            partial(encode, int8_text, tokens, count),
            partial(encode, usual, tokens, count),
            rounds,
            against=against,
            notes={"smallest cosine of 8 vectors to the other's": f"{alike:.5f}"},
        )
    cores = budget.cores()
    int8_images, usual_images = (
        OpenVinoImageTower(converted(), _runtime(one), cores)
        for one in ("int8", usual.runtime.precision)
    )
    side = int8_images.preprocessing.input_size
    pixels = np.random.default_rng(0).integers(
        0, 256, (IMAGES_TOGETHER, side, side, 3), dtype=np.uint8
    )
    alike = (int8_images.encode(pixels) * usual_images.encode(pixels)).sum(axis=1).min()
    yield compare(
        f"{IMAGES_TOGETHER} prepared images in int8",
        partial(_encode_images, int8_images, pixels),
        partial(_encode_images, usual_images, pixels),
        rounds,
        against=against,
        notes={"smallest cosine to the other's": f"{alike:.5f}"},
    )


def _encode_images(tower: OpenVinoImageTower, pixels: npt.NDArray[np.uint8]) -> None:
    tower.encode(pixels)


def _compare(
    title: str,
    ours: OpenVinoTextTower,
    theirs: CLIP,
    tokens: int,
    rounds: int,
    at_least: float,
    notes: dict[str, str],
) -> Comparison:
    queries = Queries(tokens)
    mine: list[float] = []
    other: list[float] = []
    for _ in range(rounds):
        mine.append(statistics.median(times(lambda: ours.encode([queries(tokens)]), CALLS)))
        other.append(statistics.median(times(lambda: _encode(theirs, [queries(tokens)]), CALLS)))
    against = "cn_clip as its README calls it: fp32, 52 tokens"
    return Comparison(title, mine, other, against, "ms", at_least, notes)


def _encode(model: CLIP, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        features = model.encode_text(clip.tokenize(list(texts)))
        return np.asarray((features / features.norm(dim=-1, keepdim=True)).numpy())
