"""What follows from what is known of releases, whatever the order in which it becomes known."""

import datetime
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from cra.services.embedding.shelf import Shelf
from cra.shared.ports import ReleaseState
from cra.shared.releases import Choice, Pointer, PublishedRelease
from tests.embedding import TOWER, ColourTowers

NAMES = [f"r{number}-0000000{number}" for number in range(5)]
BASE = ColourTowers.info.release
MOST = 2


def published(name: str, state: str = "as it was") -> PublishedRelease:
    """Return a release as a bucket lists it; of two, the one with the smaller name is newer."""
    day = datetime.datetime(2026, 1, 30 - NAMES.index(name), tzinfo=datetime.UTC)
    return PublishedRelease(name, state, day)


def listing(names: set[str]) -> list[PublishedRelease]:
    """Return what a bucket lists."""
    return [published(name) for name in sorted(names)]


def pointer(release: str, before: str = "", tower: str = TOWER) -> Pointer:
    """Return a pointer with one choice before it."""
    choice = Choice(release=before)
    return Pointer(version=9, release=release, image_tower=tower, history=(choice,))


def load_all(shelf: Shelf) -> None:
    """Load what is wanted, as the service does."""
    shelf.loaded |= set(shelf.wanted())
    shelf.follow()


def unload(shelf: Shelf) -> None:
    """Let go what is not wanted, as the service does."""
    shelf.loaded -= shelf.unwanted(0.0)


_ANY = st.sampled_from(["", BASE, *NAMES])
_STEPS: list[st.SearchStrategy[Callable[[Shelf], None]]] = [
    st.sets(st.sampled_from(NAMES)).map(
        lambda names: lambda shelf: shelf.see_published(listing(names))
    ),
    st.tuples(_ANY, _ANY, st.sampled_from([TOWER, "", "another"])).map(
        lambda parts: lambda shelf: shelf.see_pointer(pointer(*parts))
    ),
    st.sampled_from(NAMES).map(lambda name: lambda shelf: shelf.refuse(name, "as it was", "bad")),
    st.just(load_all),
    st.sampled_from(NAMES).map(lambda name: lambda shelf: shelf.lose(name)),
    st.just(unload),
]


@given(st.lists(st.one_of(_STEPS), max_size=25))
def test_somebody_always_answers(steps: list[Callable[[Shelf], None]]) -> None:
    """Whatever comes, the active release is one that is loaded, and few are to be."""
    shelf = Shelf(ColourTowers.info, MOST)
    for step in steps:
        step(shelf)
        shelf.follow()
        assert shelf.active == BASE or shelf.active in shelf.loaded
        assert shelf.state(shelf.active) is ReleaseState.LOADED
        wanted = shelf.wanted()
        assert len(wanted) == len(set(wanted)) <= MOST + 1
        assert shelf.active in {BASE, *wanted}
        served = shelf.served()
        assert [one.name for one in served.releases if one.active] == [shelf.active]
        names = [one.name for one in served.releases]
        assert len(names) == len(set(names))


def test_active_previous_then_the_newest() -> None:
    """What is loaded first is the active one, then the one before, then the newest."""
    shelf = Shelf(ColourTowers.info, 3)
    shelf.see_published(listing(set(NAMES)))
    assert shelf.wanted() == NAMES[:3]
    shelf.see_pointer(pointer(NAMES[4], NAMES[3]))
    assert shelf.wanted() == [NAMES[4], NAMES[3], NAMES[0]]
    shelf.refuse(NAMES[3], "as it was", "torn")
    assert shelf.wanted() == [NAMES[4], NAMES[0], NAMES[1]]


def test_a_start_is_settled_once_the_pointer_is_followed_or_cannot_be() -> None:
    """Before the active release is loaded or refused, it is not known who is to answer."""
    for end in ("loaded", "refused", "gone"):
        shelf = Shelf(ColourTowers.info, MOST)
        shelf.see_published(listing({NAMES[0]}))
        shelf.see_pointer(pointer(NAMES[0]))
        shelf.follow()
        assert not shelf.settled
        if end == "loaded":
            load_all(shelf)
        elif end == "refused":
            shelf.refuse(NAMES[0], "as it was", "torn")
        else:
            shelf.see_published([])
        shelf.follow()
        assert shelf.settled
        assert (shelf.active == NAMES[0]) is (end == "loaded")
        assert bool(shelf.served().problem) is (end != "loaded")


def test_what_was_refused_is_tried_again_when_it_changes() -> None:
    """A refusal holds for the files that were refused, and for no others."""
    shelf = Shelf(ColourTowers.info, MOST)
    shelf.see_published(listing({NAMES[0]}))
    shelf.refuse(NAMES[0], "as it was", "torn")
    shelf.see_published(listing({NAMES[0]}))
    assert shelf.state(NAMES[0]) is ReleaseState.REFUSED
    shelf.see_published([published(NAMES[0], "mended")])
    assert shelf.state(NAMES[0]) is ReleaseState.LOADING


def test_the_newest_choice_is_told_whoever_it_is_for() -> None:
    """One for another image tower is not followed, and told; before any was read none is.

    Break: return the choice that is followed in `Shelf.served`.
    """
    shelf = Shelf(ColourTowers.info, MOST)
    assert shelf.served().newest_choice is None
    chosen = pointer(NAMES[0], tower="another")
    shelf.see_pointer(chosen)
    shelf.follow()
    served = shelf.served()
    assert served.newest_choice == chosen.choice
    assert (served.active, served.pointer_version) == (BASE, 0)
    assert "another" in served.problem
