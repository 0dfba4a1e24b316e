"""The tables of the miniature, as Markdown."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from cra.services.training.evaluation.intervals import Difference, Estimate, Groups, means
from cra.services.training.evaluation.intervals import differences as paired
from cra.services.training.metrics import Values
from cra.services.training.miniature.study import KS, SPEECHES, HeldOut, Outcome
from cra.shared.releases import Release

PAPER: Final = {"Chinese CLIP as it is": 44.92, "text tower tuned (LiT)": 74.61}
"""R@20 in per cent that the paper reports, on its own set of photographs."""


def miniature(
    test: HeldOut,
    base: Outcome,
    tuned: Sequence[Outcome],
    releases: Sequence[Release],
    minutes: float,
    threads: int,
) -> str:
    """Return the page of the miniature.

    Args:
        test: what was asked.
        base: of the base model.
        tuned: of each seed.
        releases: of each seed.
        minutes: that all of it took, rendering included where that was still to do.
        threads: of the processor.
    """
    parts = [_header(test, releases)]
    for speech in SPEECHES:
        parts.append(_speech(test, base, tuned, speech))
    gain = [_difference(test, base, tuned, speech)[-1] for speech in SPEECHES]
    share = np.mean([one.recall("professional", 20) for one in tuned])
    share /= test.ceiling["professional"][20]
    rise = PAPER["text tower tuned (LiT)"] - PAPER["Chinese CLIP as it is"]
    parts.append(
        f"""## In short

- professional captions, R@20: {points(gain[0])} over the base, {100 * share:.0f} % of the
  ceiling
- plain captions, R@20: {points(gain[1])}

The paper reports R@20 of {PAPER["Chinese CLIP as it is"]} % for Chinese CLIP as it is and of
{PAPER["text tower tuned (LiT)"]} % after tuning, {rise:.1f} points more, on photographs that cannot
be had here. Other data, another model: the miniature shows that the method does what the paper says
of it, not that the figures are the same.

Measured on {datetime.date.today().isoformat()}: {len(tuned)} seeds in {minutes:.1f} minutes on
{threads} thread{"s" if threads > 1 else ""}.
"""
    )
    return "\n".join(parts)


def percent(share: float) -> str:
    """Return a share as per cent."""
    return f"{100 * share:.1f}"


def with_interval(one: Estimate) -> str:
    """Return a share in per cent, with its interval if there is one."""
    if one.low is None or one.high is None:
        return percent(one.value)
    return f"{percent(one.value)} ({percent(one.low)} to {percent(one.high)})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def matrix(hits: Mapping[int, Values]) -> Values:
    """Return hits of q captions at every k, shape [q, len(KS)]."""
    return np.stack([hits[k] for k in KS], axis=1)


def groups(test: HeldOut, speech: str) -> Groups:
    """Return the buildings of the captions, which are resampled as a whole."""
    return Groups.of([[name] for name in test.groups(speech)])


def _header(test: HeldOut, releases: Sequence[Release]) -> str:
    data = releases[0].manifest.data
    return f"""# The miniature of the paper

    python -m cra.services.training.miniature

tunes the text tower of the base model that ships (`deploy/models/miniature`: trained on plain
captions alone) on {data.pairs:,} professional captions of {data.images:,} rendered pictures, with
the image tower locked, and measures base and tuned on {len(test.part.dataset):,} pictures of
buildings that neither has seen. Each caption of them is a query, and only the picture that it was
written for counts. While it learns, the tower is also held to where the base has everyday captions
(of the training pictures; no plain caption is learnt against an image).

Per cent; the interval is 95 %, by bootstrap over buildings. Chance is a random order; the ceiling
is an oracle that sees all that can be seen at the model's resolution and orders equals at random.
"""


def _speech(test: HeldOut, base: Outcome, tuned: Sequence[Outcome], speech: str) -> str:
    buildings = groups(test, speech)
    seeds = np.mean([matrix(one.hits[speech]) for one in tuned], axis=0)
    rows = [
        ["base", *map(with_interval, means(matrix(base.hits[speech]), buildings))],
        [f"tuned, mean of {len(tuned)} seeds", *map(with_interval, means(seeds, buildings))],
        ["tuned, each seed", *(_each(tuned, speech, k) for k in KS)],
        ["tuned less base", *map(points, _difference(test, base, tuned, speech))],
        ["ceiling", *(percent(test.ceiling[speech][k]) for k in KS)],
        ["chance", *(f"{100 * test.chance[k]:.2f}" for k in KS)],
    ]
    counts = f"{len(test.queries[speech]):,} queries, {len(test.part.dataset):,} pictures"
    return (
        f"## {speech.capitalize()} captions: {counts}\n\n"
        + table(["", *(f"R@{k}" for k in KS)], rows)
        + "\n"
    )


def _each(tuned: Sequence[Outcome], speech: str, k: int) -> str:
    return ", ".join(percent(one.recall(speech, k)) for one in tuned)


def _difference(
    test: HeldOut, base: Outcome, tuned: Sequence[Outcome], speech: str
) -> list[Difference]:
    seeds = np.mean([matrix(one.hits[speech]) for one in tuned], axis=0)
    return paired(matrix(base.hits[speech]), seeds, groups(test, speech))


def points(one: Difference) -> str:
    """Return a difference in points, with interval and p-value."""
    if one.low is None or one.high is None:
        return f"{100 * one.value:+.1f}"
    interval = f"{100 * one.low:+.1f} to {100 * one.high:+.1f}"
    return f"{100 * one.value:+.1f} ({interval}; p = {one.p_value:.2g})"
