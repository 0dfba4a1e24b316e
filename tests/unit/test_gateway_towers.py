"""Which of two image towers answers; only the encoders are fakes."""

import time
from collections.abc import Iterator

import pytest

from cra.services.gateway import towers as towers_module
from cra.services.gateway.towers import Towers
from cra.shared.errors import UnavailableError
from cra.shared.releases import Choice
from tests.servers import wait_until
from tests.towers import Tower, choose

OLD, NEW = "0" * 16, "1" * 16


@pytest.fixture
def old() -> Tower:
    """The image tower of CRA_EMBEDDING_TARGET."""
    return Tower(OLD, base="old-00000000")


@pytest.fixture
def new() -> Tower:
    """That of CRA_OTHER_EMBEDDING_TARGET."""
    return Tower(NEW, turn=7, base="new-11111111")


@pytest.fixture
def towers(old: Tower, new: Tower, monkeypatch: pytest.MonkeyPatch) -> Iterator[Towers]:
    """Both, and what they serve is remembered for no time."""
    monkeypatch.setattr(towers_module, "MODELS_LAST", 0.0)
    towers = Towers(old, new)
    yield towers
    for one in (old, new):
        one.hangs.set()
    towers.close()


def settle(towers: Towers, tower: Tower) -> None:
    """Wait until an image tower answers, which the one that answered before may tell late."""

    def answers() -> bool:
        try:
            return towers.current().image_tower == tower.fingerprint
        except UnavailableError:
            return False

    wait_until(answers, "it answers", 5)


def test_the_pointer_decides_and_else_the_first(towers: Towers, old: Tower, new: Tower) -> None:
    """Nobody chose, or for any image tower: the first answers. Then the one that was chosen.

    Break: return `self._first` in `Towers._named`.
    """
    assert towers.current().image_tower == OLD
    old.choice = new.choice = Choice(version=0)
    assert towers.current().image_tower == OLD
    choose(1, new, old)
    settle(towers, new)
    choose(2, old, new)
    settle(towers, old)


def test_whoever_sees_the_pointer_first_tells(towers: Towers, old: Tower, new: Tower) -> None:
    """The newest choice counts, whichever encoder tells it, and an older one turns nothing back.

    Replicas behind one address see a change at different times.

    Break: take the choice of the one that was asked last, whatever its version.
    """
    choose(1, old, new)
    assert towers.current().image_tower == OLD
    choose(2, new)  # the old one's encoder has not looked yet
    settle(towers, new)
    choose(1, old, new)  # a replica that is behind
    for _ in range(3):
        assert towers.current().image_tower == NEW
    choose(3, old)
    settle(towers, old)


def test_a_pointer_that_was_removed_begins_anew(
    towers: Towers, old: Tower, new: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A choice that nobody tells any more gives way, so that versions may begin at 1 again.

    Break: never compare with CHOICE_LASTS.
    """
    choose(9, new, old)
    settle(towers, new)
    choose(1, old, new)
    towers.current()
    assert towers.current().image_tower == NEW
    monkeypatch.setattr(towers_module, "CHOICE_LASTS", 0.3)  # more than `settle` pauses
    settle(towers, old)


def test_what_is_down_keeps_no_choice_alive(
    towers: Towers, old: Tower, new: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an encoder said before it went down gives way as well.

    Break: take the last word of all in `_Watched.told`, however long ago it was.
    """
    choose(9, new, old)
    settle(towers, new)
    new.down = "the new one is down"
    choose(1, old)
    with pytest.raises(UnavailableError, match="the new one is down"):
        towers.current()
    monkeypatch.setattr(towers_module, "CHOICE_LASTS", 0.3)  # more than `settle` pauses
    settle(towers, old)


def test_the_other_one_down_is_not_noticed(towers: Towers, old: Tower, new: Tower) -> None:
    """The image tower that does not answer may be down, or hang: queries wait for it once at most.

    Break: call `try_look` instead of `look_beside` in `Towers._look`.
    """
    choose(1, old, new)
    towers.current()
    new.down = "the new one is down"
    assert towers.current().image_tower == OLD
    new.hangs.clear()
    began = time.monotonic()
    for _ in range(5):
        assert towers.current().image_tower == OLD
    assert time.monotonic() - began < 1


def test_the_chosen_one_down_is_never_replaced(towers: Towers, old: Tower, new: Tower) -> None:
    """While the image tower that was chosen is down, queries are told so.

    Break: catch the error of `look` in `Towers.current`, and ask the other one.
    """
    choose(1, new, old)
    settle(towers, new)
    new.down = "the new one is down"
    for _ in range(3):
        with pytest.raises(UnavailableError, match="the new one is down"):
            towers.current()
    new.down = ""
    settle(towers, new)


@pytest.mark.parametrize("gone", ["old", "new"])
def test_a_gateway_that_starts_while_one_is_down(
    towers: Towers, old: Tower, new: Tower, gone: str
) -> None:
    """It has never seen the one that is down, and takes neither for the other all the same.

    Break: leave out the loop over what is not known in `Towers._named`.
    """
    down, up = (old, new) if gone == "old" else (new, old)
    down.down = "it is down"
    choose(1, down, up)
    for _ in range(3):
        with pytest.raises(UnavailableError, match="it is down"):
            towers.current()
    choose(2, up)
    settle(towers, up)


def test_a_pointer_to_neither_is_told(towers: Towers, old: Tower, new: Tower) -> None:
    """An image tower that nobody serves is named, and found again when somebody does.

    Break: return `self._first` at the end of `Towers._named`; or look beside only where one of
    both is named.
    """
    for one in (old, new):
        one.choice = Choice(version=1, image_tower="f" * 16)
    with pytest.raises(UnavailableError, match="f" * 16):
        towers.current()
    new.fingerprint = "f" * 16
    settle(towers, new)


def test_one_alone_answers_whatever_the_pointer_says(old: Tower) -> None:
    """With one embedding service a pointer to another image tower changes nothing, as before."""
    old.choice = Choice(version=1, image_tower=NEW)
    assert Towers(old).current().image_tower == OLD


def test_a_replica_that_read_no_pointer_chooses_nothing(
    old: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that started while the bucket was down answers with its own text tower, which is no move.

    When all of them have said so for a while it is. Break: take what was said last.
    """
    monkeypatch.setattr(towers_module, "MODELS_LAST", 0.0)
    towers = Towers(old)

    def is_active(replica: tuple[list[str], int]) -> str:
        old.has, old.follows = replica
        return towers.current().models.active_release.name

    knows, blind = (["tuned-11111111", "old-00000000"], 3), (["old-00000000"], 0)
    for _ in range(3):
        assert is_active(knows) == is_active(blind) == "tuned-11111111"
    rolled_back = (["old-00000000", "tuned-11111111"], 4)
    assert is_active(rolled_back) == is_active(knows) == "old-00000000"
    monkeypatch.setattr(towers_module, "CHOICE_LASTS", 0.0)
    assert is_active(knows) == "tuned-11111111"


def test_the_release_is_the_chosen_one_at_once(towers: Towers, old: Tower, new: Tower) -> None:
    """The new image tower answers with what was chosen before its own encoder has seen that.

    Else what was active on it once, perhaps its bare text tower, would answer for two seconds.

    Break: return `served` as it is in `Towers._ahead`.
    """
    new.has = ["stale-33333333", "tuned-22222222", "new-11111111"]
    choose(1, old, new)
    towers.current()
    old.choice = Choice(version=2, release="tuned-22222222", image_tower=NEW)
    settle(towers, new)
    assert towers.current().models.active_release.name == "tuned-22222222"
    # One that is not loaded there cannot answer: what is active does.
    old.choice = Choice(version=3, release="absent-44444444", image_tower=NEW)
    wait_until(lambda: towers.current().models.active_release.name == "stale-33333333", "told", 5)
    # The model's own text tower.
    old.choice = Choice(version=4, image_tower=NEW)
    wait_until(lambda: towers.current().models.active_release.name == "new-11111111", "told", 5)


def test_a_release_is_answered_by_its_own_image_tower(
    towers: Towers, old: Tower, new: Tower
) -> None:
    """Whatever was chosen; an unknown one is the chosen one's to refuse.

    Break: return `self.current()` at the beginning of `Towers.of_release`.
    """
    choose(1, old, new)
    for name, tower in (("old-00000000", OLD), ("new-11111111", NEW), ("none-44444444", OLD)):
        assert towers.of_release(name).image_tower == tower
    old.down = "the old one is down"
    assert towers.of_release("new-11111111").image_tower == NEW
    with pytest.raises(UnavailableError, match="the old one is down"):
        towers.of_release("none-44444444")


def test_a_release_that_may_be_of_what_is_down_is_not_unknown(
    towers: Towers, old: Tower, new: Tower
) -> None:
    """Down never looks like not there.

    Break: leave out the look at the other one in `Towers.of_release`.
    """
    new.down = "the new one is down"
    assert towers.current().image_tower == OLD
    with pytest.raises(UnavailableError, match="the new one is down"):
        towers.of_release("new-11111111")


def test_what_hangs_keeps_nobody_who_names_a_release(
    towers: Towers, old: Tower, new: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the other image tower has a release is waited for a moment, however long it hangs.

    Break: call `look` instead of `look_soon` in `Towers.of_release`: it waits until the fake fails.
    """
    monkeypatch.setattr(towers_module, "ANSWERS_SOON", 0.05)
    choose(1, old, new)
    towers.current()
    new.hangs.clear()
    for _ in range(5):  # more than there are threads
        with pytest.raises(UnavailableError, match="hangs"):
            towers.of_release("none-44444444")
    assert not new.hangs.is_set()


def test_two_own_text_towers_of_one_name(towers: Towers, old: Tower, new: Tower) -> None:
    """Of the image tower that answers, that is: models that differ in it alone may name them alike.

    Break: do not sort in `Towers.of_release`.
    """
    new.has = old.has
    choose(1, new, old)
    settle(towers, new)
    assert towers.of_release("old-00000000").image_tower == NEW
