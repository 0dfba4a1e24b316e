"""A report's figures as tables of text: the same for the terminal, Markdown and HTML."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cra.services.training.evaluation.exact import (
    BY_CATEGORY,
    KS,
    MRR,
    Comparison,
    Direction,
    Evaluation,
)
from cra.services.training.evaluation.intervals import FLIPS, Difference, Estimate
from cra.services.training.evaluation.live import LiveEvaluation
from cra.services.training.evaluation.queries import Kind

TITLES: Final[Mapping[Kind, str]] = {
    "captions": "Captions of the field",
    "general": "Everyday captions",
}
_RECALLS: Final = tuple(f"R@{k}" for k in KS)


@dataclass(frozen=True)
class Table:
    """A table of text."""

    title: str
    note: str
    """What it was measured on."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(
    evaluations: tuple[Evaluation, ...],
    comparison: Comparison | None,
    live: tuple[LiveEvaluation, ...],
) -> list[Table]:
    """Return the tables of one kind of captions, models in the order given."""
    found = [
        _direction(
            f"{TITLES[evaluations[0].kind]}: text to image",
            "images",
            [(one.model, one.text_to_image) for one in evaluations],
            comparison.text_to_image if comparison else None,
        ),
        _direction(
            f"{TITLES[evaluations[0].kind]}: image to text",
            "texts",
            [(one.model, one.image_to_text) for one in evaluations],
            comparison.image_to_text if comparison else None,
        ),
    ]
    if live:
        found.append(_live(live))
    if evaluations[0].categories:
        found.append(_categories(evaluations))
    return found


def percent(one: Estimate) -> str:
    """Return a share in per cent with its interval, such as `61.2 (58.0 to 64.1)`."""
    return f"{100 * one.value:.1f}{_interval(one, '.1f', 100)}"


def points(one: Difference) -> str:
    """Return a difference of shares in points, such as `+5.1 (+2.0 to +8.0)`."""
    return f"{100 * one.value:+.1f}{_interval(one, '+.1f', 100)}"


def p_value(one: Difference) -> str:
    """Return a p-value; the smallest that the test can tell is a bound."""
    return f"≤ {one.p_value:.4f}" if one.p_value * (1 + FLIPS) < 1.5 else f"{one.p_value:.4f}"


def _interval(one: Estimate, form: str, scale: float = 1.0) -> str:
    if one.low is None or one.high is None:
        return ""
    return f" ({one.low * scale:{form}} to {one.high * scale:{form}})"


def _direction(
    title: str,
    candidates: str,
    models: list[tuple[str, Direction]],
    apart: Mapping[str, Difference] | None,
) -> Table:
    first = models[0][1]
    rows = [
        (
            name,
            *(percent(one.recall[k]) for k in KS),
            f"{one.mean_reciprocal_rank.value:.3f}{_interval(one.mean_reciprocal_rank, '.3f')}",
            f"{one.median_rank.value:,.1f}{_interval(one.median_rank, ',.1f')}",
        )
        for name, one in models
    ]
    rows.append(("chance", *(f"{100 * first.chance[k]:.2f}" for k in KS), "", ""))
    if first.ceiling is not None:
        rows.append(("ceiling", *(f"{100 * first.ceiling[k]:.1f}" for k in KS), "", ""))
    if apart is not None:
        mrr = apart[MRR]
        gains = f"{mrr.value:+.3f}{_interval(mrr, '+.3f')}"
        rows.append(("difference", *(points(apart[name]) for name in _RECALLS), gains, ""))
        rows.append(("p", *(p_value(apart[name]) for name in (*_RECALLS, MRR)), ""))
    return Table(
        title,
        f"{first.queries:,} queries, {first.candidates:,} {candidates} searched, "
        f"drawn as {first.groups:,} groups",
        ("", *_RECALLS, MRR, "median rank"),
        tuple(rows),
    )


def _live(live: Iterable[LiveEvaluation]) -> Table:
    rows: list[tuple[str, ...]] = []
    for one in live:
        rows.append((one.model, "exact matrix", *(percent(one.exact[k]) for k in KS)))
        rows.append((one.model, "live gateway", *(percent(one.live[k]) for k in KS)))
        rows.append((one.model, "index loss", *(points(one.index_loss[k]) for k in KS)))
        rows.append((one.model, "overlap", *([""] * (len(KS) - 1)), f"{100 * one.overlap:.2f}"))
    return Table(
        f"{TITLES[one.kind]}: through the live gateway",
        f"{one.queries:,} queries, {one.gallery:,} images searched; overlap is the share of the "
        f"exact best {max(KS)} that the index returned",
        ("", "answered by", *_RECALLS),
        tuple(rows),
    )


def _categories(evaluations: tuple[Evaluation, ...]) -> Table:
    rows = []
    for same in zip(*(one.categories for one in evaluations), strict=True):
        category = same[0]
        figures = [percent(one.recall) for one in same]
        chance = f"{100 * category.chance:.2f}"
        row = (category.attribute, category.value, f"{category.queries:,}", *figures, chance)
        rows.append(row)
    return Table(
        f"{TITLES[evaluations[0].kind]}: R@{BY_CATEGORY} by category, text to image",
        "a query counts for each value that one of its right images has",
        ("attribute", "value", "queries", *(one.model for one in evaluations), "chance"),
        tuple(rows),
    )
