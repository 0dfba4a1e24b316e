"""InfoNCE with soft targets, against a whole gallery of cached image features.

Shapes in this file: b captions, m images of the batch, n images of the gallery, d embedding
dimension.
"""

from collections.abc import Sequence

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


def multi_positive_loss(
    images_md: torch.Tensor, texts_bd: torch.Tensor, positives_mb: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Return InfoNCE within a batch, in both directions, each towards an even spread.

    With one text an image and no equals this is CLIP's own loss.

    Args:
        images_md: unit vectors.
        texts_bd: unit vectors.
        positives_mb: from `positives`; every row and column has one.
        scale: what similarities are multiplied by.
    """
    to_images = text_to_image_loss(texts_bd, images_md, positives_mb.T, scale).mean()
    to_texts = image_to_text_loss(images_md, texts_bd, positives_mb, scale).mean()
    return (to_images + to_texts) / 2


def positives(owners: Sequence[int], texts: Sequence[str], images: int) -> torch.Tensor:
    """Tell which texts describe which images: their own, and those that read the same.

    Args:
        owners: for each of m texts, which image it was written for.
        texts: the m texts.
        images: n.

    Returns:
        float32 of shape [n, m], 1 for a pair that belongs together.
    """
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    written_nk = torch.zeros(images, len(numbers))
    ids_m = torch.tensor([numbers[text] for text in texts])
    written_nk[torch.tensor(owners), ids_m] = 1.0
    return written_nk[:, ids_m]


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
