"""Recall of a model on a gallery of rendered buildings, with chance and ceiling beside it."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cra.services.training.arrays import Arrays
from cra.services.training.buildings.attributes import Speech
from cra.services.training.buildings.oracle import ceiling
from cra.services.training.evaluation.exact import KS, encode_texts
from cra.services.training.metrics import chance, recall_at_k
from cra.shared.model.checkpoints import ModelSource
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.text_tower import TextTower

_BATCH: Final = 64


@dataclass(frozen=True)
class Recall:
    """Recall of one kind of captions; each a share from 0 to 1, by k."""

    speech: Speech
    queries: int
    gallery: int
    model: dict[int, float]
    ceiling: dict[int, float]
    chance: dict[int, float]


def evaluate(source: ModelSource, arrays: Arrays, device: str = "cpu") -> list[Recall]:
    """Measure a model as it is served: through the one encode path, from its checkpoint.

    Every caption of every picture is a query; the picture that it was made for is relevant.

    Returns:
        the recall of plain captions and of professional ones.

    Raises:
        FailedPreconditionError: the checkpoint does not load, or its input size is another.
    """
    images_nd = encode_images(ImageTower(source, device), arrays.pixels)
    texts = TextTower(source, device)
    size = source.config["image_resolution"]
    found = []
    speeches: tuple[Speech, ...] = ("plain", "professional")
    for speech in speeches:
        queries = [
            (i, text)
            for i, picture in enumerate(arrays.pictures)
            for text in (picture.plain if speech == "plain" else picture.professional)
        ]
        scores_qn = encode_texts(texts, [text for _, text in queries]) @ images_nd.T
        targets_q = np.array([i for i, _ in queries])
        found.append(
            Recall(
                speech,
                len(queries),
                len(arrays.pictures),
                {k: recall_at_k(scores_qn, targets_q, k) for k in KS},
                {k: ceiling(arrays.pictures, queries, k, size) for k in KS},
                {k: chance(k, len(arrays.pictures)) for k in KS},
            )
        )
    return found


def encode_images(tower: ImageTower, pixels_nssc: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Encode prepared images in batches; unit vectors of shape [n, d]."""
    parts = [
        # A copy: what is mapped from a file cannot be written, and torch warns of that.
        tower.encode(np.array(pixels_nssc[i : i + _BATCH]))
        for i in range(0, len(pixels_nssc), _BATCH)
    ]
    return np.concatenate(parts)
