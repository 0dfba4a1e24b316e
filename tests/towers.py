"""Two image towers of no weights: what is alike for one is alike for the other, elsewhere."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cra.shared.domain import Vector
from cra.shared.errors import NotFoundError, UnavailableError
from cra.shared.ports import (
    EncodedImages,
    EncodedTexts,
    ImageProblem,
    Models,
    Priority,
    ReleaseState,
    TextReleaseInfo,
)
from cra.shared.releases import Choice
from tests.fakes import ColourEncoder


class Tower(ColourEncoder):
    """Encodes as `ColourEncoder` does, turned by some places; may be down, or hang.

    Attributes:
        has: its releases, the active one first, its own text tower last.
        unread: what is published and was not read yet.
        choice: what it says that the pointer says.
        follows: version of the pointer that it follows.
        down: why it does not answer; empty if it does.
        hangs: set for as long as it does not; what is asked meanwhile waits for it.
        looks: how often it was asked what it serves.
    """

    def __init__(self, fingerprint: str, turn: int = 0, base: str = "colours-1") -> None:
        super().__init__(fingerprint)
        self.turn = turn
        self.has = [base]
        self.choice: Choice | None = None
        self.follows = 0
        self.unread: list[str] = []
        self.down = ""
        self.hangs = threading.Event()
        self.hangs.set()
        self.looks = 0
        self.asked: list[str] = []

    def vector(self, vector: Vector) -> Vector:
        """Return what this tower makes of what `ColourEncoder` does."""
        return np.roll(vector, self.turn)

    def models(self) -> Models:
        """See `ports.Encoder`."""
        self.looks += 1
        self._answer()
        return replace(
            super().models(),
            releases=[
                TextReleaseInfo(name, place == 0, "identity", self.fingerprint)
                for place, name in enumerate(self.has)
            ]
            + [TextReleaseInfo(name, False, "", "", ReleaseState.LOADING) for name in self.unread],
            base_release=self.has[-1],
            newest_choice=self.choice,
            pointer_version=self.follows,
        )

    def embed_texts(
        self, texts: Sequence[str], text_release: str = "", timeout: float | None = None
    ) -> EncodedTexts:
        """See `ports.Encoder`."""
        self._answer()
        self.asked.append(text_release)
        if text_release and text_release not in self.has:
            raise NotFoundError(f"there is no text release {text_release!r}")
        found = super().embed_texts(texts)
        return replace(
            found,
            vectors=[self.vector(one) for one in found.vectors],
            text_release=text_release or self.has[0],
        )

    def embed_encoded_images(
        self, images: Sequence[bytes], priority: Priority, timeout: float | None = None
    ) -> EncodedImages:
        """See `ports.Encoder`."""
        self._answer()
        found = super().embed_encoded_images(images, priority)
        turned = [
            one if isinstance(one, ImageProblem) else self.vector(one) for one in found.results
        ]
        return replace(found, results=turned, text_release=self.has[0])

    def _answer(self) -> None:
        assert self.hangs.wait(20)
        if self.down:
            raise UnavailableError(self.down)


def choose(version: int, tower: Tower, *others: Tower, release: str = "") -> None:
    """Have each of them say that the pointer names the first one's image tower."""
    for one in (tower, *others):
        one.choice = Choice(version=version, release=release, image_tower=tower.fingerprint)
