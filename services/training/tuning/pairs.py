"""Captions and cached features as a step needs them: which image answers which caption.

Shapes in this file: p pairs, b pairs of a batch, n images, v views, d embedding dimension.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from cra.services.training.data.dataset import DataSet
from cra.services.training.features import Features
from cra.services.training.tuning.captions import Captions, Places
from cra.services.training.tuning.settings import TuningSettings
from cra.shared.model.tokenizer import Tokenizer

_NEAREST: Final = 4


@dataclass(frozen=True)
class _Members:
    """Which images share a key: those of key k are `places[starts[k]:starts[k + 1]]`."""

    places: Places
    starts: Places

    @classmethod
    def of(cls, keys: Places, places: Places, count: int) -> "_Members":
        order = np.argsort(keys, kind="stable")
        counts = np.bincount(keys, minlength=count)
        return cls(places[order], np.concatenate([[0], np.cumsum(counts)]))

    def __getitem__(self, key: int) -> Places:
        return self.places[self.starts[key] : self.starts[key + 1]]


class Pairs:
    """The pairs of a data set, tokenised, and the features of its images.

    Args:
        dataset: n images with p captions in all.
        features_vnd: unit vectors of the images, in each view.
        tokenizer: captions that it normalises to the same text count as equal.
        context_length: tokens that a caption is cut at.

    Raises:
        ValueError: there is no caption, or the features are of other images.
    """

    def __init__(
        self,
        dataset: DataSet,
        features_vnd: Features,
        tokenizer: Tokenizer,
        context_length: int,
    ) -> None:
        pairs = list(dataset.pairs())
        if not pairs:
            raise ValueError("the data set has no captions")
        if features_vnd.shape[1] != len(dataset):
            raise ValueError(f"{features_vnd.shape[1]} features for {len(dataset)} images")
        self.features_vnd = torch.from_numpy(features_vnd)
        self.images_p: Places = np.array([place for place, _ in pairs])
        self.captions = Captions([text for _, text in pairs], tokenizer, context_length)
        equal: dict[str, int] = {}
        texts = [equal.setdefault(tokenizer.normalize(t), len(equal)) for _, t in pairs]
        self.texts_p: Places = np.array(texts)
        named: dict[str, int] = {}
        self.groups_n: Places = np.array(
            [named.setdefault(image.group, len(named)) for image in dataset.images]
        )
        self._images_of_text = _Members.of(self.texts_p, self.images_p, len(equal))
        self._images_of_group = _Members.of(self.groups_n, np.arange(len(dataset)), len(named))
        self._pairs_of_image = _Members.of(self.images_p, np.arange(len(pairs)), len(dataset))

    def __len__(self) -> int:
        return len(self.images_p)

    def positives(
        self, batch_b: Places, images_m: Places, settings: TuningSettings
    ) -> torch.Tensor:
        """Return how much each image is a right answer to each caption, shape [b, m].

        The image that it was written for has weight 1; so have images with an equal caption if
        positives are soft, and others of the group have the weight that the settings give them.

        Args:
            batch_b: pairs.
            images_m: places of images, each once and rising; those of the batch among them.
            settings: of the run.
        """
        weights_bm = np.zeros((len(batch_b), len(images_m)), np.float32)
        for row, pair in zip(weights_bm, batch_b, strict=True):
            own = self.images_p[pair]
            if settings.group_positives:
                _mark(
                    row,
                    images_m,
                    self._images_of_group[self.groups_n[own]],
                    settings.group_positives,
                )
            if settings.soft_positives:
                _mark(row, images_m, self._images_of_text[self.texts_p[pair]], 1.0)
            _mark(row, images_m, np.array([own]), 1.0)
        return torch.from_numpy(weights_bm)

    def gallery(
        self, batch_b: Places, settings: TuningSettings, rng: np.random.Generator
    ) -> Places:
        """Return the images that a step tells its captions from, each once and rising."""
        own = np.unique(self.images_p[batch_b])
        if settings.negatives == "batch":
            return own
        count = self.features_vnd.shape[1]
        if count <= settings.max_gallery:
            return np.arange(count)
        drawn = rng.choice(count, settings.max_gallery, replace=False)
        return np.union1d(own, drawn)

    def epoch(self, number: int, settings: TuningSettings) -> list[Places]:
        """Return the batches of an epoch; the same arguments give the same batches.

        Every pair comes at most once (what does not fill a batch is left for another epoch),
        look-alikes that fill batches up aside.
        """
        rng = np.random.default_rng((settings.seed, 0, number))
        size = min(settings.batch_size, len(self))
        fresh = max(1, size - round(size * settings.hard_negatives))
        order = rng.permutation(len(self))
        batches = [order[i : i + fresh] for i in range(0, len(self) - fresh + 1, fresh)]
        if fresh == size:
            return batches
        return [np.concatenate([one, self._look_alikes(one, size - fresh, rng)]) for one in batches]

    def steps(self, settings: TuningSettings) -> int:
        """Return the number of steps in an epoch."""
        size = min(settings.batch_size, len(self))
        return len(self) // max(1, size - round(size * settings.hard_negatives))

    def _look_alikes(self, batch: Places, count: int, rng: np.random.Generator) -> Places:
        """Return pairs of images that look like some of the batch's, but are of other groups."""
        seeds = rng.choice(self.images_p[batch], count)
        features_nd = self.features_vnd[0]
        near_cn = (features_nd[torch.from_numpy(seeds)] @ features_nd.T).numpy()
        near_cn[self.groups_n[seeds][:, None] == self.groups_n[None, :]] = -np.inf
        chosen = []
        for row in near_cn:
            for place in np.argpartition(-row, min(_NEAREST, len(row) - 1))[:_NEAREST]:
                pairs = self._pairs_of_image[int(place)]
                if len(pairs) and np.isfinite(row[place]):
                    chosen.append(rng.choice(pairs))
                    break
        return np.array(chosen, dtype=np.int64)


def _mark(row_m: npt.NDArray[np.float32], images_m: Places, those: Places, weight: float) -> None:
    places = np.searchsorted(images_m, those)
    places = places[places < len(images_m)]
    row_m[places[np.isin(images_m[places], those)]] = weight
