"""Query expansion: texts that hold a term, encoded with its other names as well."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from cra.services.training.buildings.attributes import vocabulary
from cra.services.training.evaluation.exact import Vectors
from cra.services.training.quality.world import SPEECHES, Query, Row, World
from cra.shared import terms

WEIGHTS: Final = (0.25, 0.5, 0.7, 0.8)
COUNTS: Final = (1, 2, 3)


def study(world: World) -> list[Row]:
    """Return rows for captions as they are, and with terms under names that nobody taught."""
    rows = []
    for speech in SPEECHES:
        captions = world.captions(speech)
        with_terms = [one for one in captions if terms.architecture().find(one[1])]
        for name, queries in (
            (f"{speech} captions that hold a term", with_terms),
            (f"all {speech} captions", captions),
            (f"{speech} captions, terms under names of no caption", list(renamed(with_terms))),
        ):
            places = [place for place, _ in queries]
            for label in world.towers:
                off = world.found(queries, expand(world, label, queries, 0, 1.0))
                on = world.found(
                    queries, expand(world, label, queries, terms.MAX_VARIANTS, terms.TEXT_WEIGHT)
                )
                rows.append(world.row("query expansion", label, name, places, off, on))
    return rows


def grid(world: World) -> list[tuple[str, str, str, float]]:
    """Return R@20 by number of variants and weight of the text: what the constants rest on."""
    found = []
    captions = world.captions("professional")
    with_terms = [one for one in captions if terms.architecture().find(one[1])]
    for name, queries in (("as they are", with_terms), ("other names", list(renamed(with_terms)))):
        for label in world.towers:
            for count in COUNTS:
                for weight in WEIGHTS:
                    hits = world.found(queries, expand(world, label, queries, count, weight))
                    setting = f"{count} variants, {weight:g}"
                    found.append((name, label, setting, float(hits.mean())))
    return found


def renamed(queries: Sequence[Query]) -> Iterator[Query]:
    """Yield queries with their terms under names that stand in no caption, drawn at random.

    Those none of whose terms has such a name are left out.
    """
    known = vocabulary("plain") | vocabulary("professional")
    others = {
        name: [other for other in group if not any(other in word for word in known)]
        for group in terms.architecture().groups
        for name in group
    }
    rng = np.random.default_rng(0)
    for place, text in queries:
        asked = text
        for name in dict.fromkeys(terms.architecture().find(text)):
            if others[name]:
                asked = asked.replace(name, others[name][int(rng.integers(len(others[name])))])
        if asked != text:
            yield place, asked


def expand(world: World, label: str, queries: Sequence[Query], most: int, weight: float) -> Vectors:
    """Return the vectors of expanded queries, unit length, shape [q, d]."""
    texts = [text for _, text in queries]
    variants = [terms.architecture().variants(text, most) for text in texts]
    places = np.cumsum([0, *map(len, variants)])
    vectors_qd = world.encode(label, texts)
    others_md = world.encode(label, [one for some in variants for one in some] or texts[:1])
    return np.stack(
        [
            terms.mean(vector, list(others_md[start:stop]), weight)
            for vector, start, stop in zip(vectors_qd, places, places[1:], strict=False)
        ]
    )
