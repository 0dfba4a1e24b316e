"""What LiT is compared with: both towers learn, as ordinary contrastive tuning has it.

Every step encodes its images anew, negatives are those of the batch, and afterwards every image
of an index would have to be embedded again.

Shapes in this file: b pairs, m images, n images of a set, s input size, d embedding dimension.
"""

import copy
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from cra.services.training.data.dataset import DataSet
from cra.services.training.features import Features
from cra.services.training.tuning.captions import Places
from cra.services.training.tuning.loss import multi_positive_loss
from cra.services.training.tuning.pairs import Pairs
from cra.services.training.tuning.settings import TuningSettings
from cra.services.training.tuning.start import start
from cra.services.training.tuning.trainer import Trainer
from cra.shared.model.checkpoints import ModelSource, load_clip
from cra.shared.model.image_tower import normalize_pixels
from cra.shared.model.pixels import Preprocessing, prepare
from cra.shared.model.text_tower import TextModel
from cra.shared.model.tokenizer import Tokenizer

Pixels = npt.NDArray[np.uint8]
_BATCH: Final = 64


def tune_both(
    source: ModelSource,
    train: DataSet,
    settings: TuningSettings,
    progress: Callable[[int, int, float], None],
) -> tuple[TextModel, Tokenizer, Callable[[DataSet], Features]]:
    """Tune both towers; return the text tower, its tokenizer, and the image tower as a function."""
    begun = start(source, (text for _, text in train.pairs()), settings)
    visual = copy.deepcopy(load_clip(source).visual)
    # Twice as fast on CPU as the default layout.
    visual.to(memory_format=torch.channels_last)
    begun.model.visual = visual
    preprocessing = Preprocessing(source.config["image_resolution"])
    dimension = source.config["embed_dim"]
    nothing = np.zeros((1, len(train), dimension), np.float32)
    pairs = Pairs(train, nothing, begun.tokenizer, settings.context_length)
    trainer = _BothTowers(begun.model, pairs, settings, pixels(train, preprocessing))
    while trainer.step < trainer.total:
        loss = trainer.advance()
        progress(trainer.step, trainer.total, loss)
    model = trainer.model.eval()

    def encode(dataset: DataSet) -> Features:
        prepared = pixels(dataset, preprocessing)
        with torch.inference_mode():
            parts = [
                functional.normalize(visual(_input(prepared[i : i + _BATCH])), dim=-1).numpy()
                for i in range(0, len(prepared), _BATCH)
            ]
        return np.concatenate(parts)

    return model, begun.tokenizer, encode


def pixels(dataset: DataSet, preprocessing: Preprocessing) -> Pixels:
    """Return the images of a set as the tower takes them, uint8 of shape [n, s, s, 3]."""
    return np.stack([prepare(image.read(), preprocessing).pixels for image in dataset.images])


class _BothTowers(Trainer):
    """A trainer whose images are encoded at every step, by a tower that learns."""

    def __init__(
        self, model: TextModel, pairs: Pairs, settings: TuningSettings, pixels_nssc: Pixels
    ) -> None:
        super().__init__(model, pairs, settings)
        self._pixels_nssc = pixels_nssc
        self._visual: torch.nn.Module = model.get_submodule("visual")

    def loss(self, batch_b: Places, rng: np.random.Generator) -> torch.Tensor:
        """Return the loss of a batch among its own images."""
        settings, pairs = self._settings, self._pairs
        images_m = np.unique(pairs.images_p[batch_b])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.precision == "amp"):
            encoded_md = self._visual(_input(self._pixels_nssc[images_m]))
        images_md = functional.normalize(encoded_md.float(), dim=-1)
        texts_bd = self._encode(pairs.captions, batch_b)
        positives_mb = pairs.positives(batch_b, images_m, settings).T
        return multi_positive_loss(images_md, texts_bd, positives_mb, self.model.logit_scale.exp())


def _input(pixels_nssc: Pixels) -> torch.Tensor:
    images = normalize_pixels(torch.from_numpy(pixels_nssc))
    return images.contiguous(memory_format=torch.channels_last)
