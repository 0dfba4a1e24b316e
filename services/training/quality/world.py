"""What the studies share: pictures, their vectors, the towers, and rows of on against off.

Shapes in this file: q queries, n images, d embedding dimension.
"""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from cra.services.training import features
from cra.services.training.buildings.dataset import Picture
from cra.services.training.buildings.oracle import seen_by_fact
from cra.services.training.evaluation.exact import Vectors, encode_texts
from cra.services.training.evaluation.intervals import (
    Difference,
    Estimate,
    Groups,
    differences,
    means,
)
from cra.services.training.metrics import rank_vectors
from cra.services.training.miniature import data
from cra.shared.model.checkpoints import find_model
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.text_tower import TextTower
from cra.shared.model.tokenizer import Tokenizer
from cra.shared.releases import read_release

K: Final = 20
SPEECHES: Final = ("professional", "plain")

Query = tuple[int, str]
"""The place of the picture that is right, and what is asked for it."""


@dataclass(frozen=True)
class Row:
    """One feature on one kind of queries, on against off."""

    feature: str
    tower: str
    queries: str
    count: int
    measure: str
    off: Estimate
    on: Estimate
    gain: Difference


@dataclass(frozen=True, eq=False)
class World:
    """A gallery of rendered buildings that no tower has seen, and the towers."""

    pictures: Sequence[Picture]
    images_nd: Vectors
    image_tower: ImageTower
    towers: Mapping[str, TextTower]
    """`base` and `tuned`."""
    resamples: int
    _known: dict[tuple[str, str], dict[str, Vectors]] = field(default_factory=dict)
    """Vectors by tower and normaliser, then by text."""

    @classmethod
    def load(
        cls,
        model: Path,
        release: Path,
        work: Path,
        split: str,
        workers: int,
        resamples: int,
        progress: Callable[[int], None] | None = None,
    ) -> "World":
        """Render what is not there yet, and encode it."""
        part = data.load(work, split, workers, progress)
        source = find_model(str(model))
        tower = ImageTower(source, "cpu")
        images_nd = features.load(part.dataset.images, tower, work / "features")[0]
        towers = {
            "base": TextTower(source, "cpu"),
            "tuned": TextTower(read_release(release), "cpu"),
        }
        return cls(part.pictures, images_nd, tower, towers, resamples)

    def captions(self, speech: str) -> list[Query]:
        """Return each caption of one way of speaking, with its picture."""
        return [
            (place, text)
            for place, picture in enumerate(self.pictures)
            for text in (picture.plain if speech == "plain" else picture.professional)
        ]

    @functools.cached_property
    def shown(self) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Which pictures show a fact at the tower's resolution; shape [n] each."""
        return seen_by_fact(self.pictures, self.image_tower.preprocessing.input_size)

    def shows_all(self, facts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return which pictures show all of some facts. Shape [n]."""
        found_n = np.ones(len(self.pictures), dtype=bool)
        for fact in facts:
            found_n &= self.shown.get(fact, np.zeros(len(self.pictures), dtype=bool))
        return found_n

    def groups(self, places: Sequence[int]) -> Groups:
        """Return the buildings of pictures: what is resampled as a whole."""
        return Groups.of([[self.pictures[place].building] for place in places])

    def encode(self, label: str, texts: Sequence[str], normalizer: str = "") -> Vectors:
        """Return the unit vectors of texts, shape [q, d]; each different text is encoded once.

        Args:
            label: of the tower.
            texts: q texts.
            normalizer: in place of the tower's own, if not empty.
        """
        tower = self.towers[label]
        if normalizer and normalizer != tower.tokenizer.normalizer:
            tower = copy.copy(tower)
            tower.tokenizer = Tokenizer(normalizer, tower.tokenizer.added_tokens)
        known = self._known.setdefault((label, tower.tokenizer.normalizer), {})
        keys = [tower.tokenizer.normalize(text) for text in texts]
        new = sorted({*keys} - {*known})
        if new:
            known.update(zip(new, encode_texts(tower, new), strict=True))
        return np.stack([known[key] for key in keys])

    def found(self, queries: Sequence[Query], texts_qd: Vectors) -> npt.NDArray[np.float64]:
        """Return whether each query's picture is among the best `K`. Shape [q]."""
        targets_q = np.array([place for place, _ in queries])
        return rank_vectors(texts_qd, self.images_nd, targets_q).hits_at_k(K)

    def row(
        self,
        feature: str,
        tower: str,
        queries: str,
        places: Sequence[int],
        off_q: npt.NDArray[np.float64],
        on_q: npt.NDArray[np.float64],
        measure: str = f"R@{K}",
    ) -> Row:
        """Return a row from what each query, of the building of a place, has off and on."""
        groups = self.groups(places)
        off, on = means(np.stack([off_q, on_q], axis=1), groups, None, self.resamples)
        (gain,) = differences(off_q[:, None], on_q[:, None], groups, self.resamples)
        return Row(feature, tower, queries, len(off_q), measure, off, on, gain)
