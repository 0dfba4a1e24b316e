"""Two rankings of the same images side by side: pure functions of lists of image ids."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cra.shared.errors import InvalidArgumentError


@dataclass(frozen=True)
class Asked:
    """A query, and the images that are known to be right; none if nobody said."""

    text: str
    image_ids: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Mover:
    """An image whose rank changed."""

    image_id: str
    before: int | None
    """Rank from 1 by the first release; None: beyond what was looked at."""
    after: int | None
    distance: int
    """Ranks that it rose; what is beyond counts as the first rank beyond."""


@dataclass(frozen=True)
class Compared:
    """One query, answered by two releases."""

    text: str
    overlap: float
    """Share of the images that both have found, from 0 to 1."""
    rank_change: float | None
    """Mean of how far images that both have found moved; None: there are none."""
    movers: list[Mover]
    """The farthest first."""
    found: tuple[bool, bool] | None
    """Whether each release found one of the right images; None: nobody said which are."""


@dataclass(frozen=True)
class Summary:
    """Many queries, answered by two releases."""

    queries: int
    overlap: float
    rank_change: float | None
    same_first: float
    """Share of queries whose first image is the same."""
    judged: int
    """Queries whose right images are known; recall is over these."""
    recall: tuple[float, float] | None


def read_queries(lines: Iterable[str]) -> list[Asked]:
    """Read queries: a text a line, or JSON `{"text": …, "image_ids": […]}`; empty lines count not.

    Raises:
        InvalidArgumentError: names the line that is neither.
    """
    found = []
    for number, line in enumerate(lines, start=1):
        text = line.strip().removeprefix("\ufeff")
        if not text:
            continue
        if not text.startswith("{"):
            found.append(Asked(text))
            continue
        try:
            fields = json.loads(text)
            ids = fields.get("image_ids", [])
            right = isinstance(fields["text"], str) and isinstance(ids, list)
            if not right or not all(isinstance(one, str) for one in ids):
                raise TypeError("`text` is no text, or `image_ids` no list of texts")
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgumentError(
                f"queries, line {number}", f'is no JSON with "text" and "image_ids": {error!r}'
            ) from error
        found.append(Asked(fields["text"], frozenset(ids)))
    return found


def compare(asked: Asked, before: Sequence[str], after: Sequence[str], k: int) -> Compared:
    """Compare two rankings of at most k images each, the best first."""
    ranks = [{one: rank for rank, one in enumerate(ids[:k], start=1)} for ids in (before, after)]
    both = ranks[0].keys() & ranks[1].keys()
    movers = [
        Mover(
            one,
            ranks[0].get(one),
            ranks[1].get(one),
            ranks[0].get(one, k + 1) - ranks[1].get(one, k + 1),
        )
        for one in ranks[0].keys() | ranks[1].keys()
    ]
    longest = max(len(ranks[0]), len(ranks[1]))
    return Compared(
        text=asked.text,
        overlap=len(both) / longest if longest else 1.0,
        rank_change=_mean([abs(ranks[0][one] - ranks[1][one]) for one in both]),
        movers=sorted(
            (mover for mover in movers if mover.distance),
            key=lambda mover: (-abs(mover.distance), mover.image_id),
        ),
        found=(bool(asked.image_ids & ranks[0].keys()), bool(asked.image_ids & ranks[1].keys()))
        if asked.image_ids
        else None,
    )


def summarise(results: Sequence[Compared]) -> Summary:
    """Return the means over queries.

    Raises:
        ValueError: there are none.
    """
    if not results:
        raise ValueError("there is no query to summarise")
    judged = [one.found for one in results if one.found is not None]
    moved = [one.rank_change for one in results if one.rank_change is not None]
    first = [not any(1 in (m.before, m.after) for m in one.movers) for one in results]
    return Summary(
        queries=len(results),
        overlap=sum(one.overlap for one in results) / len(results),
        rank_change=_mean(moved),
        same_first=sum(first) / len(results),
        judged=len(judged),
        recall=(
            sum(before for before, _ in judged) / len(judged),
            sum(after for _, after in judged) / len(judged),
        )
        if judged
        else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
