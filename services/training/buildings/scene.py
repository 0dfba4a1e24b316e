"""Sampling a scene: from (seed, split, index) to everything that a picture will show."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from cra.services.training.buildings.attributes import BUILDING, FITTING, SURROUNDINGS, Slot

Split = Literal["train", "validation", "test"]
Framing = Literal["whole", "far", "roof", "entrance", "side"]

SPLITS: Final[tuple[Split, ...]] = get_args(Split)
SEED: Final = 2023
VIEWS: Final = 2
"""Pictures of one building."""
LOOK_ALIKE_EVERY: Final = 4
"""One building in so many is its predecessor with a single detail changed."""

_FRAMINGS: Final[Mapping[Framing, float]] = {
    "whole": 60, "far": 8, "roof": 10, "entrance": 14, "side": 8,
}  # fmt: skip
_ASPECTS: Final = ((480, 360), (360, 480), (480, 480), (480, 320), (480, 272), (400, 480))


@dataclass(frozen=True)
class Building:
    """A building, as it is in all its pictures."""

    facts: Mapping[str, str]
    """Value by slot, for every slot of `BUILDING`."""
    width: float
    """Half of the front's width; a storey is about 0.5 high."""
    storey: float
    hue: tuple[int, int, int]
    """Added to its colours, so that no two reds are alike."""


@dataclass(frozen=True)
class Scene:
    """Everything that one picture shows."""

    name: str
    """Of the building, such as `test-00012`."""
    building: Building
    neighbour: Building | None
    surroundings: Mapping[str, str]
    """Value by slot, for every slot of `SURROUNDINGS`."""
    framing: Framing
    size: tuple[int, int]
    """Width and height of the picture, in pixels."""
    entropy: tuple[int, ...]
    """Seed of the pose, the light and everything else that has no name."""


def held_out(roof: str, wall: str) -> bool:
    """Tell whether this pair is kept out of training, so that only new buildings have it."""
    return zlib.crc32(f"{roof}+{wall}".encode()) % 5 == 0


def sample(split: str, index: int, seed: int = SEED) -> Scene:
    """Return picture `index` of a split; the same arguments give the same scene, always.

    Args:
        split: `train`, `validation` or `test`. No building is in two of them, and the pairs of
            `held_out` are in all but `train`, in about half of the buildings.
        index: from 0. Pictures 2n and 2n + 1 show the same building.
        seed: another one gives another data set.

    Raises:
        ValueError: an unknown split or a negative index.
    """
    if split not in SPLITS or index < 0:
        raise ValueError(f"no picture {index} in split {split!r}; splits: {', '.join(SPLITS)}")
    number, view = divmod(index, VIEWS)
    stem = (seed, SPLITS.index(split))
    building = _building(stem, number)
    entropy = (*stem, number, 1 + view)
    rng = np.random.default_rng(entropy)
    surroundings = {slot: draw(rng, spec) for slot, spec in SURROUNDINGS.items()}
    if surroundings["object"] == "boat":
        surroundings["ground"] = "water"
    if surroundings["object"] == "fountain" and surroundings["ground"] == "water":
        surroundings["ground"] = "paved"
    neighbour = None
    if rng.random() < 0.3:
        neighbour = _fresh(rng, building.facts["roof"], allow_held_out=split != "train")
    framing: Framing = "whole"
    if view or rng.random() < 0.2:
        names, weights = list(_FRAMINGS), np.array(list(_FRAMINGS.values()))
        framing = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    return Scene(
        name=f"{split}-{number:05d}",
        building=building,
        neighbour=neighbour,
        surroundings=surroundings,
        framing=framing,
        size=_ASPECTS[int(rng.integers(len(_ASPECTS)))],
        entropy=(*entropy, 7),
    )


def draw(rng: np.random.Generator, slot: Slot, allowed: frozenset[str] | None = None) -> str:
    """Draw a value of a slot by weight, of the allowed ones only."""
    keys = [key for key in slot.values if allowed is None or key in allowed]
    weights = np.array([slot.values[key].weight for key in keys])
    place = int(np.searchsorted(np.cumsum(weights), rng.random() * weights.sum()))
    return keys[place]


def _building(stem: tuple[int, int], number: int) -> Building:
    train = stem[1] == SPLITS.index("train")
    if number % LOOK_ALIKE_EVERY == LOOK_ALIKE_EVERY - 1:
        model = _building(stem, number - 1)
        rng = np.random.default_rng((*stem, number, 0))
        while True:
            slot = list(BUILDING)[int(rng.integers(len(BUILDING)))]
            facts = dict(model.facts)
            facts[slot] = draw(rng, BUILDING[slot])
            new = facts[slot] != model.facts[slot]
            if new and _fits(facts) and not (train and held_out(facts["roof"], facts["wall"])):
                return Building(facts, model.width, model.storey, model.hue)
    rng = np.random.default_rng((*stem, number, 0))
    wanted = not train and rng.random() < 0.5
    while True:
        building = _fresh(rng, None, allow_held_out=not train)
        if not wanted or held_out(building.facts["roof"], building.facts["wall"]):
            return building


def _fresh(rng: np.random.Generator, other_roof: str | None, *, allow_held_out: bool) -> Building:
    while True:
        facts = {slot: draw(rng, spec) for slot, spec in BUILDING.items()}
        roof, wall = facts["roof"], facts["wall"]
        if roof != other_roof and (allow_held_out or not held_out(roof, wall)):
            break
    for slot, spec in BUILDING.items():
        fitting = frozenset(
            key for key in spec.values if roof in FITTING.get(f"{slot}={key}", (roof,))
        )
        if facts[slot] not in fitting:
            facts[slot] = draw(rng, spec, fitting)
    storeys = int(facts["storeys"])
    return Building(
        facts=facts,
        width=float(rng.uniform(0.75, 1.45)) if storeys < 4 else float(rng.uniform(0.6, 0.95)),
        storey=float(rng.uniform(0.5, 0.66)),
        hue=tuple(int(shift) for shift in rng.integers(-14, 15, 3)),  # type: ignore[arg-type]
    )


def _fits(facts: Mapping[str, str]) -> bool:
    return all(
        facts["roof"] in FITTING.get(f"{slot}={key}", (facts["roof"],))
        for slot, key in facts.items()
    )
