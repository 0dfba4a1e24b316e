"""The contrastive loss, when several texts belong to one image and equal texts to several.

Shapes in this file: n images, m texts, d embedding dimension.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional


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


def multi_positive_loss(
    images_nd: torch.Tensor, texts_md: torch.Tensor, positives_nm: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Return InfoNCE in both directions, each towards an even spread over the positives.

    With one text an image and no equals this is CLIP's own loss.

    Args:
        images_nd: unit vectors.
        texts_md: unit vectors.
        positives_nm: from `positives`; every row and column has one.
        scale: what similarities are multiplied by.
    """
    logits_nm = scale * images_nd @ texts_md.T
    to_texts_nm = positives_nm / positives_nm.sum(dim=1, keepdim=True)
    to_images_mn = (positives_nm / positives_nm.sum(dim=0, keepdim=True)).T
    loss_i = functional.cross_entropy(logits_nm, to_texts_nm)
    loss_t = functional.cross_entropy(logits_nm.T, to_images_mn)
    return (loss_i + loss_t) / 2
