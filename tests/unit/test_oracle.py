import itertools
from pathlib import Path

import pytest

from cra.services.training.buildings.dataset import Picture
from cra.services.training.buildings.oracle import ceiling, seen_by_fact


def picture(facts: dict[str, float], **names: tuple[str, ...]) -> Picture:
    """Return a picture that shows these facts; captions by name, with what they name."""
    return Picture(Path("unused.jpg"), "building", list(names), [], facts, names)


GALLERY = [
    picture({"roof=hip": 0.5, "wall=red": 0.5}, both=("roof=hip", "wall=red"), roof=("roof=hip",)),
    picture({"roof=hip": 0.5, "wall=white": 0.5}),
    picture({"roof=hip": 0.5, "wall=red": 0.01}),
    picture({"roof=dome": 0.5, "wall=red": 0.5}),
    picture({"roof=hip": 0.5, "wall=red": 0.5}, small=("roof=hip", "wall=red", "tree=pine")),
]


def by_enumeration(index: int, text: str, k: int, input_size: int) -> float:
    """Go through every order of the gallery; keep those that the oracle may choose."""
    named = GALLERY[index].names[text]
    shown = [
        sum(other.facts.get(fact, 0) * input_size >= 1.9 for fact in named) for other in GALLERY
    ]
    allowed = [
        order
        for order in itertools.permutations(range(len(GALLERY)))
        if all(shown[a] >= shown[b] for a, b in itertools.pairwise(order))
    ]
    return sum(index in order[:k] for order in allowed) / len(allowed)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("query", [(0, "both"), (0, "roof"), (4, "small")])
def test_closed_form_equals_enumeration(query: tuple[int, str], k: int) -> None:
    """The closed form is the mean over every order that the oracle could choose at random."""
    assert ceiling(GALLERY, [query], k, 64) == pytest.approx(by_enumeration(*query, k, 64))


def test_resolution_decides_what_is_seen() -> None:
    """A red wall of a hundredth of the picture is seen at 224 pixels and not at 64."""
    assert seen_by_fact(GALLERY, 64)["wall=red"].tolist() == [True, False, False, True, True]
    assert seen_by_fact(GALLERY, 224)["wall=red"].tolist() == [True, False, True, True, True]
    assert ceiling(GALLERY, [(0, "both")], 1, 64) == pytest.approx(1 / 2)
    assert ceiling(GALLERY, [(0, "both")], 1, 224) == pytest.approx(1 / 3)


def test_mean_over_queries() -> None:
    """The ceiling of several queries is the mean of their own."""
    alone = [ceiling(GALLERY, [query], 1, 64) for query in ((0, "both"), (0, "roof"))]
    assert ceiling(GALLERY, [(0, "both"), (0, "roof")], 1, 64) == pytest.approx(sum(alone) / 2)


def test_no_queries_have_no_ceiling() -> None:
    """Nothing to measure is an error, and so is a text that is no caption of its picture."""
    with pytest.raises(ValueError, match="no queries"):
        ceiling(GALLERY, [], 1, 64)
    with pytest.raises(KeyError):
        ceiling(GALLERY, [(0, "unknown")], 1, 64)
