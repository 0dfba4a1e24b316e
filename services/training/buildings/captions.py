"""Putting what a picture shows into words, as a layman or as an architect."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cra.services.training.buildings.attributes import SLOTS, Speech, phrases

NAMEABLE: Final = 0.06
"""Smallest size at which people name a thing: 29 pixels of the picture, 5.8 of a 96 pixel input."""

_COUNTS: Final[Mapping[Speech, Mapping[int, float]]] = {
    "plain": {1: 0.06, 2: 0.34, 3: 0.4, 4: 0.2},
    "professional": {1: 0.06, 2: 0.34, 3: 0.4, 4: 0.2},
}
_NOUNS: Final[Mapping[Speech, tuple[str, ...]]] = {
    "plain": ("房子", "建筑", "大房子", "楼"),
    "professional": ("建筑", "建筑单体", "殿宇"),
}
_OPENINGS: Final[Mapping[Speech, tuple[str, ...]]] = {
    "plain": ("", "", "", "一座", "有一座", "这是"),
    "professional": ("", "", "实例："),
}


@dataclass(frozen=True)
class Caption:
    """A caption and what it names."""

    text: str
    names: tuple[str, ...]
    """Facts, sorted."""


def write(
    facts: Mapping[str, float], speech: Speech, count: int, rng: np.random.Generator
) -> list[Caption]:
    """Write different captions, each naming some of what is seen.

    Args:
        facts: what is seen and how large, as `render` gives it.
        speech: `plain` or `professional`.
        count: how many captions; fewer if the picture shows too little for so many.
        rng: chooses what is named, and how.
    """
    seen = [fact for fact, size in facts.items() if size >= NAMEABLE and phrases(fact, speech)]
    captions: dict[str, Caption] = {}
    for _ in range(count * 4):
        if len(captions) == count or not seen:
            break
        caption = _one(seen, speech, rng)
        captions.setdefault(caption.text, caption)
    return list(captions.values())


def _one(seen: Sequence[str], speech: Speech, rng: np.random.Generator) -> Caption:
    counts = _COUNTS[speech]
    wanted = min(int(rng.choice(list(counts), p=list(counts.values()))), len(seen))
    weights = np.array([SLOTS[fact.partition("=")[0]].salience for fact in seen])
    chosen = [
        seen[i] for i in rng.choice(len(seen), wanted, replace=False, p=weights / weights.sum())
    ]
    said: dict[str, list[str]] = {
        "modifier": [],
        "storeys": [],
        "noun": [],
        "clause": [],
        "style": [],
    }
    for fact in chosen:
        choices = phrases(fact, speech)
        phrase = choices[int(rng.integers(len(choices)))]
        said[SLOTS[fact.partition("=")[0]].kind].append(phrase)
    return Caption(_sentence(said, speech, rng), tuple(sorted(chosen)))


def _sentence(said: Mapping[str, list[str]], speech: Speech, rng: np.random.Generator) -> str:
    nouns = _NOUNS[speech]
    noun = said["noun"][0] if said["noun"] else nouns[int(rng.integers(len(nouns)))]
    storeys = "".join(said["storeys"])
    clauses, modifiers = list(said["clause"]), list(said["modifier"])
    if modifiers and rng.random() < 0.4:
        clauses += modifiers
        modifiers = []
    subject = f"{'、'.join(modifiers)}的{storeys}{noun}" if modifiers else storeys + noun
    parts = [subject, *clauses]
    if clauses and rng.random() < 0.25:
        parts = [clauses[0], subject, *clauses[1:]]
    if said["style"]:
        parts.insert(0 if rng.random() < 0.5 else len(parts), said["style"][0])
    openings = _OPENINGS[speech]
    opening = openings[int(rng.integers(len(openings)))] if parts[0] == subject else ""
    return opening + "，".join(parts)
