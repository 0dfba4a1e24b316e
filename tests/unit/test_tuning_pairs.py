"""Pairs: which image answers which caption, and in which order they are learnt."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra.services.training.data.dataset import DataSet, Image
from cra.services.training.tuning.pairs import Pairs
from cra.services.training.tuning.settings import TuningSettings
from cra.shared.model.tokenizer import Tokenizer

BATCHES = TuningSettings(batch_size=4)


def _image(name: str, group: str, *captions: str) -> Image:
    return Image(name, group, captions, lambda: b"")


IMAGES = (
    _image("a", "tower", "红色的塔", "斗栱"),
    _image("b", "tower", "塔的背面"),
    _image("c", "hall", "斗拱", "庑殿顶"),
    _image("d", "hall", "廡殿頂"),
    _image("e", "gate"),
)


def _pairs(images: tuple[Image, ...] = IMAGES, seed: int = 0) -> Pairs:
    features_vnd = np.random.default_rng(seed).normal(size=(1, len(images), 8))
    features_vnd /= np.linalg.norm(features_vnd, axis=-1, keepdims=True)
    return Pairs(DataSet(images), features_vnd.astype(np.float32), Tokenizer("cra-1"), 52)


def _positives(settings: TuningSettings) -> list[list[float]]:
    pairs = _pairs()
    found: list[list[float]] = pairs.positives(np.arange(6), np.arange(5), settings).tolist()
    return found


def test_captions_that_normalise_to_the_same_share_their_images() -> None:
    """斗栱 and 斗拱, 庑殿顶 and 廡殿頂 are one caption each: both images are right answers."""
    assert _positives(BATCHES) == [
        [1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [0, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 0],
    ]


def test_hard_positives_are_clips() -> None:
    """Without soft positives only the image that a caption was written for is right."""
    found = _positives(dataclasses.replace(BATCHES, soft_positives=False))
    assert found == np.eye(5)[[0, 0, 1, 2, 2, 3]].tolist()


def test_a_group_counts_as_much_as_it_is_told() -> None:
    """Other images of the same building get the weight of the setting, never more than their own.

    An image that has the same caption keeps weight 1, whatever its group.
    """
    found = _positives(dataclasses.replace(BATCHES, group_positives=0.25))
    assert found[0] == [1, 0.25, 0, 0, 0]
    assert found[1] == [1, 0.25, 1, 0, 0]
    assert found[4] == [0, 0, 1, 1, 0]


def test_positives_of_a_part_of_the_gallery() -> None:
    """Columns are the images asked for: what is right but not among them is left out."""
    found = _pairs().positives(np.array([1, 4]), np.array([0, 3, 4]), BATCHES)
    assert found.tolist() == [[1, 0, 0], [0, 1, 0]]


@given(
    captions=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    batch_size=st.integers(1, 8),
    hard=st.sampled_from([0.0, 0.25, 0.5]),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 5),
)
def test_an_epoch_sees_each_pair_at_most_once(
    captions: list[int], batch_size: int, hard: float, epoch: int, seed: int
) -> None:
    """Batches are the same each time they are asked for, of even size, and repeat no pair.

    Only look-alikes, which come on top, may come again; they are never of the group that they
    resemble.
    """
    images = tuple(
        _image(str(i), f"group {i // 2}", *(f"第{i}幅第{j}句" for j in range(count)))
        for i, count in enumerate(captions)
    )
    if not any(captions):
        with pytest.raises(ValueError, match="no captions"):
            _pairs(images)
        return
    pairs = _pairs(images)
    settings = TuningSettings(batch_size=batch_size, hard_negatives=hard, seed=seed)
    batches = pairs.epoch(epoch, settings)
    again = pairs.epoch(epoch, settings)
    assert len(batches) == pairs.steps(settings)
    assert [one.tolist() for one in batches] == [one.tolist() for one in again]
    size = min(batch_size, len(pairs))
    fresh = max(1, size - round(size * hard))
    seen = np.concatenate([one[:fresh] for one in batches])
    assert len(seen) == len(set(seen.tolist())) == len(pairs) // fresh * fresh


def test_look_alikes_are_near_and_of_other_groups() -> None:
    """A batch is filled up with captions of the nearest images that are other buildings."""
    images = tuple(_image(str(i), f"group {i // 2}", f"第{i}幅") for i in range(40))
    pairs = _pairs(images)
    settings = TuningSettings(batch_size=8, hard_negatives=0.5)
    near_nn = (pairs.features_vnd[0] @ pairs.features_vnd[0].T).numpy()
    for batch in pairs.epoch(0, settings):
        for extra in batch[4:]:
            others = [i for i in batch[:4] if pairs.groups_n[i] != pairs.groups_n[extra]]
            places = [
                int((near_nn[i][pairs.groups_n != pairs.groups_n[i]] > near_nn[i, extra]).sum())
                for i in others
            ]
            assert min(places) < 4


def test_a_large_gallery_is_drawn_from() -> None:
    """Over the limit, a step sees its own images and as many drawn ones as allowed."""
    images = tuple(_image(str(i), str(i), f"第{i}幅") for i in range(30))
    pairs = _pairs(images)
    settings = TuningSettings(batch_size=4, max_gallery=10)
    batch = np.array([3, 7, 29])
    gallery = pairs.gallery(batch, settings, np.random.default_rng(0))
    assert set(batch.tolist()) <= set(gallery.tolist())
    assert 10 <= len(gallery) <= 13
    assert pairs.gallery(batch, BATCHES, np.random.default_rng(0)).tolist() == list(range(30))


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0), ("layer_decay", 1.5), ("label_smoothing", 1.0), ("context_length", 2), ("wd", -1)],
)
def test_a_setting_out_of_range_is_named(field: str, value: float) -> None:
    """A hyperparameter out of its range is refused at once, by name."""
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        dataclasses.replace(BATCHES, **{field: value})  # type: ignore[arg-type]
