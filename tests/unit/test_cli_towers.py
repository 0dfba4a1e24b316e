"""Whose a release is while two image towers are served; encoders and the store are fakes."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cra.services.cli.moving import Filled, Recall
from cra.services.cli.towers import Towers, real_name
from cra.shared.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from cra.shared.releases import Choice
from cra.shared.settings import Settings
from tests import embedding
from tests.servers import free_ports

NEW = "0" * 16
RELEASES = {"tuned-11111111": embedding.TOWER, "tuned-22222222": NEW, "lost-33333333": "f" * 16}


class Store:
    """Fulfils as much of `ports.ReleaseStore` as is asked for here."""

    def manifest(self, name: str) -> Any:
        """See `ports.ReleaseStore`."""
        if name not in RELEASES:
            raise NotFoundError(f"there is no text release {name!r}")
        return SimpleNamespace(
            image_tower=RELEASES[name], dimension=embedding.ColourTowers.info.dimension
        )


@contextlib.contextmanager
def two(base: str = "new-00000000") -> Iterator[Settings]:
    """Serve two image towers."""
    new = embedding.ColourTowers(image_tower=NEW, release=base)
    with embedding.running() as first, embedding.running(new) as other:
        yield Settings(embedding_target=first.target, other_embedding_target=other.target)


@pytest.fixture(scope="module")
def served() -> Iterator[Settings]:
    """Two image towers."""
    with two() as settings:
        yield settings


STORE: Any = Store()


def test_a_release_is_found_where_it_fits(served: Settings) -> None:
    """By its manifest, or as a model's own; what fits neither is refused by name.

    Break: take `self.all[0]` in `Towers.find`.
    """
    with Towers(served) as towers:
        for name, choice in {
            "colours-1": Choice(image_tower=embedding.TOWER),
            "new-00000000": Choice(image_tower=NEW),
            "tuned-11111111": Choice(release="tuned-11111111", image_tower=embedding.TOWER),
            "tuned-22222222": Choice(release="tuned-22222222", image_tower=NEW),
        }.items():
            found, replicas = towers.find(name, STORE)
            assert found == choice
            assert replicas.fingerprint == choice.image_tower
        with pytest.raises(FailedPreconditionError, match="f" * 16):
            towers.find("lost-33333333", STORE)
        with pytest.raises(NotFoundError, match="none-44444444"):
            towers.find("none-44444444", STORE)


def test_base_is_ambiguous_with_two(served: Settings) -> None:
    """Both are named, so that one can be said; with one embedding service it is that one's.

    Break: leave out the check of `BASE` in `Towers.find`.
    """
    with Towers(served) as towers, pytest.raises(InvalidArgumentError) as caught:
        towers.find("base", STORE)
    assert "colours-1" in caught.value.message
    assert "new-00000000" in caught.value.message
    with pytest.raises(InvalidArgumentError, match="new-00000000"):
        real_name(served, "base")
    alone = served.model_copy(update={"other_embedding_target": ""})
    assert real_name(alone, "base") == "colours-1"
    with Towers(alone) as towers:
        assert towers.find("base", STORE)[0] == Choice(image_tower=embedding.TOWER)
        with pytest.raises(FailedPreconditionError, match="was made for the image tower 0000"):
            towers.find("tuned-22222222", STORE)


def test_own_text_towers_of_one_name_are_refused() -> None:
    """What is meant cannot be told, and is not guessed.

    Break: leave out the check of several owners in `Towers.find`.
    """
    with (
        two("colours-1") as settings,
        Towers(settings) as towers,
        pytest.raises(FailedPreconditionError, match=r"config\.json"),
    ):
        towers.find("colours-1", STORE)


def test_what_is_down_is_not_unknown() -> None:
    """A name that may be of the embedding service that is down is UNAVAILABLE, others are found.

    Break: raise what the store says, whatever `self.problems` are.
    """
    (port,) = free_ports(1)
    with embedding.running() as first:
        settings = Settings(
            embedding_target=first.target, other_embedding_target=f"ipv4:127.0.0.1:{port}"
        )
        with Towers(settings) as towers:
            assert towers.find("tuned-11111111", STORE)[1].at == first.target
            for name in ("tuned-22222222", "none-44444444"):
                with pytest.raises(UnavailableError, match=str(port)):
                    towers.find(name, STORE)
            with pytest.raises(InvalidArgumentError, match="colours-1"):
                towers.find("base", STORE)


def test_too_few_images_are_refused_with_the_numbers() -> None:
    """At the share that is asked for a move may go on; an empty old collection holds nobody up.

    Break: compare with `>` instead of `<`.
    """
    Filled(1000, 990).check(0.99)
    Filled(0, 0).check(0.99)
    Filled(1000, 0).check(0)
    with pytest.raises(FailedPreconditionError, match=r"989 images, the old one's 1000: 98\.9%"):
        Filled(1000, 989).check(0.99)


def test_a_lower_recall_is_refused_with_the_numbers() -> None:
    """What may be lost may be lost to the last digit, and a gain is none.

    Break: compare the absolute difference.
    """
    Recall(0.80, 0.79, 10, 100).check(0.01)
    Recall(0.50, 0.90, 10, 100).check(0)
    with pytest.raises(FailedPreconditionError, match=r"80\.0% before, 78\.0% after") as caught:
        Recall(0.80, 0.78, 10, 100).check(0.01)
    assert "recall@10 of 100 queries" in caught.value.message
