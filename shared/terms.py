"""Names of building that mean the same, and texts written with the other names.

The towers know a thing by the names that their captions had. A text that uses another one is
encoded with its usual names as well, and the mean of the vectors is what is looked for.
"""

import functools
import re
import tomllib
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Final

import numpy as np

from cra.shared.domain import Vector
from cra.shared.errors import FailedPreconditionError
from cra.shared.model.text import MAX_CHARACTERS, NORMALIZERS

MAX_VARIANTS: Final = 2
"""Texts that are encoded beside one that holds a term."""
TEXT_WEIGHT: Final = 0.7
"""Share of the text as it was written in the mean; its variants have the rest together.
`make quality` shows what other shares and numbers of variants bring."""

_normalize: Final = NORMALIZERS["cra-1"]


class Terms:
    """Groups of names that can be put for each other.

    Args:
        groups: the names of each thing, the usual one first.

    Raises:
        FailedPreconditionError: a group has fewer than two names, or a name has fewer than two
            characters, stands twice, or is not as the normaliser cra-1 leaves it.
    """

    def __init__(self, groups: Iterable[Sequence[str]]) -> None:
        self.groups: tuple[tuple[str, ...], ...] = tuple(tuple(group) for group in groups)
        self._others: dict[str, tuple[str, ...]] = {}
        for group in self.groups:
            if len(group) < 2:
                raise FailedPreconditionError(f"terms: {group} has fewer than two names")
            for name in group:
                if len(name) < 2 or _normalize(name) != name:
                    raise FailedPreconditionError(
                        f"terms: {name!r} has fewer than two characters, or is written as "
                        f"{_normalize(name)!r}"
                    )
                if name in self._others:
                    raise FailedPreconditionError(f"terms: {name!r} stands twice")
                self._others[name] = tuple(other for other in group if other != name)
        # The longest first: 玻璃幕墙 is found whole, not as 幕墙.
        names = sorted(self._others, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)) or "(?!)")

    def find(self, text: str) -> list[str]:
        """Return the terms of a text as it is normalised, from left to right."""
        return self._pattern.findall(_normalize(text))

    def variants(self, text: str, most: int = MAX_VARIANTS) -> list[str]:
        """Return a text with its terms under other names: the k-th has the k-th name of each.

        Args:
            text: as it was asked.
            most: how many are returned at most.

        Returns:
            different texts as the normaliser cra-1 leaves them; none if the text holds no term.
        """
        normal = _normalize(text)
        others = [self._others[name] for name in self._pattern.findall(normal)]
        count = min(most, max(map(len, others), default=0))

        def renamed(k: int) -> str:
            def other(found: re.Match[str]) -> str:
                others = self._others[found[0]]
                return others[k % len(others)]

            return self._pattern.sub(other, normal)

        texts = map(renamed, range(count))
        return list(dict.fromkeys(one for one in texts if len(one) <= MAX_CHARACTERS))


@functools.cache
def architecture() -> Terms:
    """Return the terms of `terms.toml`, read once.

    Raises:
        FailedPreconditionError: as `Terms`.
    """
    text = (resources.files("cra.shared") / "terms.toml").read_text(encoding="utf-8")
    return Terms(names for section in tomllib.loads(text).values() for names in section.values())


def mean(vector: Vector, variants: Sequence[Vector], weight: float = TEXT_WEIGHT) -> Vector:
    """Return the unit vector of a text and its variants.

    Args:
        vector: of the text, of unit length.
        variants: of its variants; the text alone counts if there are none.
        weight: share of the text, from 0 to 1.
    """
    if not variants:
        return vector
    total = weight * vector + (1 - weight) * np.mean(variants, axis=0)
    length = float(np.linalg.norm(total))
    # Only what cancels out to nothing has no direction.
    return (total / length).astype(np.float32) if length > 1e-6 else vector
