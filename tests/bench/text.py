"""One Chinese query encoded, against cn_clip called as its README shows."""

import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from cn_clip import clip
from cn_clip.clip.model import CLIP

from cra.shared import budget
from cra.shared.model.openvino_towers import OpenVinoTextTower
from cra.shared.model.runtime import Runtime
from tests.bench.measure import Comparison, busy_neighbour, times
from tests.bench.model import Queries, converted, reference

AT_LEAST = {22: 5.5, 8: 8.0}
WITH_NEIGHBOUR = 10.0
CALLS = 20
"""Of each rival in a round, whose median counts."""


def tower() -> OpenVinoTextTower:
    """Return our text tower, as the service runs it."""
    runtime = Runtime.choose("cpu", engine="auto")
    assert runtime.engine == "openvino"
    return OpenVinoTextTower(converted(), runtime, budget.cores())


def run(rounds: int) -> list[Comparison]:
    """Compare at two lengths on free cores, and at one beside a busy neighbour."""
    ours, theirs, queries = tower(), reference(), Queries()
    torch.set_num_threads(budget.cores())
    found = []
    for tokens, at_least in AT_LEAST.items():
        title = f"a query of {tokens} tokens"
        texts = [queries(tokens) for _ in range(8)]
        likeness = (ours.encode(texts)[0] * _encode(theirs, texts)).sum(axis=1)
        notes = {
            "smallest cosine of 8 vectors to fp32": f"{likeness.min():.5f}",
            "precision": ours.runtime.precision,
        }
        found.append(_compare(title, ours, theirs, tokens, rounds, at_least, notes))
    with busy_neighbour():
        title = "a query of 22 tokens, a core taken by another process"
        found.append(_compare(title, ours, theirs, 22, rounds, WITH_NEIGHBOUR, {}))
    return found


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
