"""The loop of tuning: steps, and everything that going on after an interruption needs.

Shapes in this file: b pairs of a batch, m images, n gallery, d embedding dimension.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed
from torch.distributed.nn import functional as gathering
from torch.nn import functional

from cra.services.training.tuning.captions import Captions, Places
from cra.services.training.tuning.loss import (
    image_to_text_loss,
    keep_loss,
    text_to_image_loss,
)
from cra.services.training.tuning.optimizer import make_optimizer, set_rate
from cra.services.training.tuning.pairs import Pairs
from cra.services.training.tuning.settings import TuningSettings
from cra.shared.model.text_tower import TextModel

MAX_SCALE: Final = 100.0
"""What cosines are multiplied by at most, as in CLIP."""


@dataclass(frozen=True)
class Kept:
    """Everyday captions whose vectors shall stay where the base model has them."""

    captions: Captions
    vectors: npt.NDArray[np.float32]
    """The base model's, of unit length, one for each caption."""


class Trainer:
    """A text tower that learns, and how far it is.

    Batches, views, dropout and drawn galleries depend on the seed and the step alone, so a run
    that was killed and restored ends with the same weights as one that was not (bit for bit on
    CPU with the same number of threads). With torch.distributed set up, each process takes its
    share of every batch, vectors are gathered with their gradients, and all processes do the
    step that one would do.

    Args:
        model: in train mode from here on; what does not require gradients stays as it is.
        pairs: to learn.
        settings: of the run.
        device: `cpu`, `cuda` or `cuda:N`.
        kept: what the tower shall not forget.
    """

    def __init__(
        self,
        model: TextModel,
        pairs: Pairs,
        settings: TuningSettings,
        device: str = "cpu",
        kept: Kept | None = None,
    ) -> None:
        self.model = model.to(device).train()
        self.step = 0
        self._pairs = pairs
        self._kept = kept if settings.kd_loss_weight else None
        self._settings = settings
        self._device = device
        self._features_vnd = pairs.features_vnd.to(device)
        self._optimizer = make_optimizer(model, settings)
        self.steps_an_epoch = pairs.steps(settings)
        self.total = self.steps_an_epoch * settings.max_epochs
        self._epoch: tuple[int, list[Places]] = (-1, [])
        self.rate = 0.0

    def advance(self) -> float:
        """Do one step; return its loss.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        settings = self._settings
        # Dropout too depends on the step alone.
        torch.manual_seed(settings.seed * 1_000_003 + self.step)
        self.rate = set_rate(self._optimizer, self.step, self.total, settings)
        rng = np.random.default_rng((settings.seed, 1, self.step))
        loss = self.loss(self._batch(), rng)
        if self._kept is not None:
            loss = loss + settings.kd_loss_weight * self._keep(self._kept, rng)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of step {self.step} is {loss.item()}")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        total = loss.detach()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if distributed.is_initialized():
            # Each process holds a share of one sum.
            for shared in (*gradients, total):
                distributed.all_reduce(shared)
        learning = [p for p in self.model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(learning, settings.grad_clip)
        self._optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0.0, float(np.log(MAX_SCALE)))
        self.step += 1
        return total.item()

    def loss(self, batch_b: Places, rng: np.random.Generator) -> torch.Tensor:
        """Return the loss of a batch: this process's share of the sum over all processes."""
        settings, pairs = self._settings, self._pairs
        view = int(rng.integers(len(self._features_vnd)))
        gallery_n = pairs.gallery(batch_b, settings, rng)
        rank, world = _place()
        mine_b = batch_b[rank::world]
        texts_bd = self._encode(pairs.captions, mine_b)
        scale = self.model.logit_scale.exp()
        features_nd = self._features_vnd[view]
        smoothing = settings.label_smoothing
        to_images_b = text_to_image_loss(
            texts_bd,
            features_nd if len(gallery_n) == len(features_nd) else features_nd[gallery_n],
            pairs.positives(mine_b, gallery_n, settings).to(self._device),
            scale,
            smoothing,
        )
        all_bd, ordered_b = _gathered(texts_bd, batch_b, world)
        images_m = np.unique(pairs.images_p[batch_b])
        my_images_m = images_m[rank::world]
        positives_mb = pairs.positives(ordered_b, images_m, settings).T[rank::world]
        to_texts_m = image_to_text_loss(
            features_nd[my_images_m],
            all_bd,
            positives_mb.to(self._device),
            scale,
            smoothing,
        )
        return (to_images_b.sum() / len(batch_b) + to_texts_m.sum() / len(images_m)) / 2

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """Write everything that going on needs; a crash midway leaves the old file.

        Args:
            path: of the file.
            extra: what the caller wants back from `restore`: tensors and plain values.
        """
        state = {
            "settings": asdict(self._settings),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "extra": extra,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def restore(self, path: Path) -> dict[str, Any]:
        """Go on from what `save` wrote; return its `extra`.

        Raises:
            ValueError: it is damaged, or was written under other settings.
        """
        try:
            state = torch.load(path, map_location=self._device, weights_only=True)
        except Exception as error:  # torch raises nearly anything on a damaged file
            raise ValueError(f"{path} is damaged; remove it to begin anew") from error
        if state["settings"] != asdict(self._settings):
            changed = {
                name: value
                for name, value in state["settings"].items()
                if value != asdict(self._settings).get(name)
            }
            raise ValueError(f"{path} belongs to a run with other settings: {changed}")
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        extra: dict[str, Any] = state["extra"]
        return extra

    def _keep(self, kept: Kept, rng: np.random.Generator) -> torch.Tensor:
        """Return this process's share of the loss of moving everyday captions."""
        size = min(self._settings.kd_batch_size, len(kept.captions))
        chosen_k = rng.choice(len(kept.captions), size, replace=False)
        rank, world = _place()
        mine_k = chosen_k[rank::world]
        base_kd = torch.from_numpy(kept.vectors[mine_k]).to(self._device)
        return keep_loss(self._encode(kept.captions, mine_k), base_kd).sum() / size

    def _encode(self, captions: Captions, batch_b: Places) -> torch.Tensor:
        """Return unit vectors, float32 of shape [b, d]."""
        kind = torch.device(self._device).type
        amp = self._settings.precision == "amp"
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=amp):
            encoded_bd = captions.encode(self.model, batch_b, self._device)
        return functional.normalize(encoded_bd.float(), dim=-1)

    def _batch(self) -> Places:
        epoch, place = divmod(self.step, self.steps_an_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._pairs.epoch(epoch, self._settings))
        return self._epoch[1][place]


def _place() -> tuple[int, int]:
    """Return this process's rank and how many there are."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _gathered(mine_bd: torch.Tensor, batch_b: Places, world: int) -> tuple[torch.Tensor, Places]:
    """Return the vectors of the whole batch, and its pairs in the order of these vectors."""
    if world == 1:
        return mine_bd, batch_b
    shares = [batch_b[rank::world] for rank in range(world)]
    most = len(shares[0])
    padded = functional.pad(mine_bd, (0, 0, 0, most - len(mine_bd)))
    every = gathering.all_gather(padded)  # type: ignore[no-untyped-call]
    vectors = torch.cat([part[: len(own)] for part, own in zip(every, shares, strict=True)])
    return vectors, np.concatenate(shares)
