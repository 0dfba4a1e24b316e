"""WiSE-FT: weights between base and tuned keep more of both than either end.

Wortsman et al., "Robust fine-tuning of zero-shot models", 2022 (arXiv:2109.01903).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch

FACTORS: Final = tuple(round(0.1 * tenth, 1) for tenth in range(11))

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Choice:
    """Which factor was taken, and what each gave on validation."""

    factor: float
    """0 is the base, 1 the tuned tower."""
    scores: Mapping[float, tuple[float, float | None]]
    """By factor: recall of captions of the field and of everyday ones, shares from 0 to 1."""


def interpolate(base: Weights, tuned: Weights, factor: float) -> dict[str, torch.Tensor]:
    """Return (1 - factor) * base + factor * tuned, weight by weight.

    Raises:
        ValueError: they are not of the same shapes.
    """
    if {name: one.shape for name, one in base.items()} != {
        name: one.shape for name, one in tuned.items()
    }:
        raise ValueError("base and tuned weights are not of the same shapes")
    return {name: torch.lerp(base[name].float(), tuned[name].float(), factor) for name in tuned}


def choose(score: Callable[[float], tuple[float, float | None]], general_weight: float) -> Choice:
    """Try all factors; take the one with the best weighted mean, among equals the larger.

    Args:
        score: returns for a factor the recall of captions of the field, and of everyday ones if
            there are any.
        general_weight: of the latter; the former have the rest.
    """
    scores = {factor: score(factor) for factor in FACTORS}

    def worth(factor: float) -> tuple[float, float]:
        field, general = scores[factor]
        if general is None:
            return field, factor
        return (1 - general_weight) * field + general_weight * general, factor

    return Choice(max(FACTORS, key=worth), scores)
