"""Splitting by group: no building or project is in two parts."""

import hashlib
from collections.abc import Mapping

from cra.services.training.data.dataset import DataSet


def split(dataset: DataSet, shares: Mapping[str, float], seed: int = 0) -> dict[str, DataSet]:
    """Split a data set.

    Where a group goes depends on its name and the seed alone: more data never moves it. So parts
    have their shares of the groups on average, not to the image. Groups that share a caption may
    go to different parts.

    Args:
        dataset: the whole.
        shares: of each part, above zero; they add up to 1.
        seed: another one splits otherwise.

    Raises:
        ValueError: the shares are not positive or do not add up to 1.
    """
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"the shares {dict(shares)} are not positive or do not add up to 1")
    parts: dict[str, list[int]] = {name: [] for name in shares}
    for place, image in enumerate(dataset.images):
        parts[_part(image.group, shares, seed)].append(place)
    return {
        name: DataSet(tuple(dataset.images[place] for place in places))
        for name, places in parts.items()
    }


def _part(group: str, shares: Mapping[str, float], seed: int) -> str:
    digest = hashlib.sha256(f"{seed}\0{group}".encode()).digest()
    left = int.from_bytes(digest[:8], "big") / 2**64
    for name, share in shares.items():
        left -= share
        if left < 0:
            return name
    return list(shares)[-1]
