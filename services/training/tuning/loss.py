"""InfoNCE with soft targets, against a whole gallery of cached image features.

Shapes in this file: b captions, m images of the batch, n images of the gallery, d embedding
dimension.
"""

import torch
from torch.nn import functional


def text_to_image_loss(
    texts_bd: torch.Tensor,
    gallery_nd: torch.Tensor,
    positives_bn: torch.Tensor,
    scale: torch.Tensor,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the cross entropy of each caption over the gallery, towards its positives; shape [b].

    With one positive a caption, and the batch's own images as the gallery, this is CLIP's.

    Args:
        texts_bd: unit vectors.
        gallery_nd: unit vectors.
        positives_bn: weights, not negative; every row has one above zero.
        scale: what cosines are multiplied by.
        label_smoothing: share of the target that is spread over the whole gallery.
    """
    logits_bn = scale * texts_bd @ gallery_nd.T
    return _soft(logits_bn, positives_bn, label_smoothing)


def image_to_text_loss(
    images_md: torch.Tensor,
    texts_bd: torch.Tensor,
    positives_mb: torch.Tensor,
    scale: torch.Tensor,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the cross entropy of each image over the captions of the batch; shape [m].

    Arguments as for `text_to_image_loss`.
    """
    return _soft(scale * images_md @ texts_bd.T, positives_mb, label_smoothing)


def keep_loss(texts_kd: torch.Tensor, base_kd: torch.Tensor) -> torch.Tensor:
    """Return how far texts have moved from where the base model has them, 1 - cosine; shape [k].

    Chinese CLIP's loss of distillation, with the base as the teacher; what it knew is kept without
    the images that it learnt it from (Li and Hoiem, "Learning without Forgetting", 2016).

    Args:
        texts_kd: unit vectors.
        base_kd: unit vectors of the same texts by the base model.
    """
    return 1 - (texts_kd * base_kd).sum(dim=1)


def _soft(logits: torch.Tensor, positives: torch.Tensor, smoothing: float) -> torch.Tensor:
    targets = positives / positives.sum(dim=1, keepdim=True)
    return functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
