"""The loss: CLIP's own where it is the same, and soft over all positives where there are more."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cn_clip.training.train import get_loss
from torch.nn import functional

from cra.services.training.tuning.loss import (
    image_to_text_loss,
    keep_loss,
    text_to_image_loss,
)


def _unit(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, 16, generator=generator), dim=-1)


def test_with_a_batch_of_its_own_it_is_chinese_clips_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """One caption an image, negatives of the batch: cn_clip's trainer computes the same number."""
    # Its trainer moves the targets to a GPU whatever there is.
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_, **__: self)
    images_bd, texts_bd = _unit(32, 0), _unit(32, 1)
    scale = torch.tensor(14.3)

    def model(*_: Any) -> Any:
        return images_bd, texts_bd, scale

    args = SimpleNamespace(
        accum_freq=1,
        mask_ratio=0,
        distillation=False,
        aggregate=False,
        local_device_rank=0,
        report_training_batch_acc=False,
    )
    cross = torch.nn.CrossEntropyLoss()
    theirs, _ = get_loss(model, None, None, cross, cross, args)
    own = torch.eye(32)
    ours = (
        text_to_image_loss(texts_bd, images_bd, own, scale).mean()
        + image_to_text_loss(images_bd, texts_bd, own, scale).mean()
    ) / 2
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_targets_are_spread_over_the_positives_by_weight() -> None:
    """A caption with two right images of weights 3 and 1 is pulled to both, three to one."""
    texts_bd, gallery_nd = _unit(1, 2), _unit(5, 3)
    positives_bn = torch.tensor([[3.0, 0.0, 1.0, 0.0, 0.0]])
    scale = torch.tensor(10.0)
    log_shares = torch.log_softmax(scale * texts_bd @ gallery_nd.T, dim=1)[0]
    expected = -(0.75 * log_shares[0] + 0.25 * log_shares[2])
    found = text_to_image_loss(texts_bd, gallery_nd, positives_bn, scale)
    torch.testing.assert_close(found, expected[None])


def test_smoothing_spreads_a_share_over_the_gallery() -> None:
    """With smoothing 0.2, every image of the gallery has a fifth of an n-th of the target."""
    texts_bd, gallery_nd = _unit(1, 4), _unit(4, 5)
    scale = torch.tensor(5.0)
    log_shares = torch.log_softmax(scale * texts_bd @ gallery_nd.T, dim=1)[0]
    expected = -(0.8 * log_shares[1] + 0.2 * log_shares.mean())
    found = text_to_image_loss(
        texts_bd, gallery_nd, torch.tensor([[0.0, 1.0, 0.0, 0.0]]), scale, 0.2
    )
    torch.testing.assert_close(found, expected[None])


def test_keeping_costs_nothing_where_nothing_moved() -> None:
    """Texts where the base has them cost 0, opposite ones 2."""
    base_kd = _unit(3, 6)
    np.testing.assert_allclose(keep_loss(base_kd, base_kd), 0, atol=1e-6)
    np.testing.assert_allclose(keep_loss(-base_kd, base_kd), 2, atol=1e-6)
