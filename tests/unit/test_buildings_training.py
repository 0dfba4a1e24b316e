"""Training of the base model, on a few pictures and towers of toy size."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cra.services.training import arrays, words
from cra.services.training.base import CONFIG, Settings, Trainer, augment, ship
from cra.services.training.tuning.loss import multi_positive_loss, positives
from cra.shared.model.checkpoints import find_model, load_clip

TINY: dict[str, Any] = {
    **CONFIG,
    "embed_dim": 16,
    "image_resolution": 32,
    "vision_layers": [1, 1, 1, 1],
    "vision_width": 2,
    "text_hidden_size": 16,
    "text_intermediate_size": 32,
    "text_num_attention_heads": 2,
    "text_num_hidden_layers": 1,
}
SETTINGS = Settings(
    pictures=80, first_steps=3, first_batch=8, first_size=32, steps=3, batch=8, warm_up=1
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> arrays.Arrays:
    """Make the first pictures of the training split, small."""
    return arrays.load(tmp_path_factory.mktemp("arrays"), "train", 80, 32)


def test_positives_by_hand() -> None:
    """A text belongs to its image and to every image that has a text which reads the same."""
    found = positives([0, 0, 1, 2], ["a", "b", "a", "c"], 3)
    assert found.tolist() == [[1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


def test_loss_is_clips_own_without_equal_texts() -> None:
    """With one text an image, all different, the loss is the mean of two cross entropies."""
    images = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    scale = torch.tensor(10.0)
    logits = scale * images @ texts.T
    clip = (
        torch.nn.functional.cross_entropy(logits, torch.arange(4))
        + torch.nn.functional.cross_entropy(logits.T, torch.arange(4))
    ) / 2
    alone = positives(range(4), list("abcd"), 4)
    assert multi_positive_loss(images, texts, alone, scale).item() == pytest.approx(clip.item())


def test_equal_texts_are_no_negatives() -> None:
    """Two images with one caption: the loss is least when both are equally near to both texts."""
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    both = positives([0, 1], ["a", "a"], 2)
    loss = multi_positive_loss(images, texts, both, torch.tensor(10.0))
    assert loss.item() == pytest.approx(math.log(2))
    apart = multi_positive_loss(images, torch.eye(2), both, torch.tensor(10.0))
    assert apart > loss


def test_words_by_hand() -> None:
    """Targets are the pairs of characters used, rare ones weighing more; unknown ones are left."""
    captions = [["红墙"], ["红墙", "白塔"], ["红墙"], ["绿"]]
    vocabulary = words.vocabulary(captions, at_least=1)
    assert vocabulary == sorted(["红墙", "白塔"])
    found = words.targets(captions, vocabulary)
    tower, wall = math.log(4), math.log(4 / 3)
    row = dict(zip(vocabulary, found[1].tolist(), strict=True))
    assert row["白塔"] == pytest.approx(tower / (tower + wall), abs=1e-3)
    assert row["红墙"] == pytest.approx(wall / (tower + wall), abs=1e-3)
    assert found[3].tolist() == [0, 0]
    with pytest.raises(ValueError, match="no word"):
        words.vocabulary(captions, at_least=9)


def test_words_loss_is_zero_for_a_perfect_prediction() -> None:
    """The loss is measured above the targets' own entropy, so that zero is the best there is."""
    targets = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    assert words.loss(targets.log(), targets).item() == pytest.approx(0, abs=1e-6)
    assert words.loss(torch.zeros(2, 2), targets).item() > 0


def test_augmented_images_keep_their_shape_and_colours() -> None:
    """Moving and mirroring make no new colours, and without a shift an image or its mirror."""
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)
    moved = augment(pixels, 0, np.random.default_rng(1))
    for before, after in zip(pixels, moved, strict=True):
        assert (after == before).all() or (after == before[:, ::-1]).all()
    assert augment(pixels, 2, np.random.default_rng(1)).shape == pixels.shape


def test_interrupted_run_ends_in_the_same_weights(tmp_path: Path, pictures: arrays.Arrays) -> None:
    """A run that stops midway and is restored gives the weights of one that ran on."""
    whole = Trainer(SETTINGS, pictures, TINY)
    for _ in range(SETTINGS.total):
        whole.advance()
    first = Trainer(SETTINGS, pictures, TINY)
    for _ in range(4):
        first.advance()
    first.save(tmp_path / "state.pt")
    second = Trainer(SETTINGS, pictures, TINY)
    second.restore(tmp_path / "state.pt")
    for _ in range(SETTINGS.total - 4):
        second.advance()
    for name, weights in whole.model.state_dict().items():
        assert torch.allclose(weights, second.model.state_dict()[name], atol=1e-6), name


def test_state_of_other_settings_is_refused(tmp_path: Path, pictures: arrays.Arrays) -> None:
    """A run does not go on from the weights of a different one."""
    Trainer(SETTINGS, pictures, TINY).save(tmp_path / "state.pt")
    other = Settings(
        pictures=80, first_steps=3, first_batch=8, first_size=32, steps=9, batch=8, warm_up=1
    )
    with pytest.raises(ValueError, match="other settings"):
        Trainer(other, pictures, TINY).restore(tmp_path / "state.pt")


def test_first_lesson_leaves_the_text_tower_alone(pictures: arrays.Arrays) -> None:
    """The words of captions teach the image tower; the text tower moves in the second lesson."""
    trainer = Trainer(SETTINGS, pictures, TINY)

    def text() -> torch.Tensor:
        weights: torch.Tensor = trainer.model.text_projection.detach().clone()
        return weights

    def image() -> torch.Tensor:
        weights: torch.Tensor = trainer.model.visual.conv1.weight.detach().clone()
        return weights

    before_text, before_image = text(), image()
    for _ in range(SETTINGS.first_steps):
        trainer.advance()
    assert torch.equal(text(), before_text)
    assert not torch.equal(image(), before_image)
    trainer.advance()
    assert not torch.equal(text(), before_text)


def test_shipped_folder_loads_as_a_model(tmp_path: Path, pictures: arrays.Arrays) -> None:
    """What training writes is what serving finds by path: same config, weights to fp16."""
    trainer = Trainer(SETTINGS, pictures, TINY)
    trainer.advance()
    ship(trainer.model, TINY, tmp_path)
    source = find_model(str(tmp_path))
    assert (source.name, source.normalizer, source.config) == ("miniature", "identity", TINY)
    loaded = load_clip(source).state_dict()
    for name, weights in trainer.model.state_dict().items():
        assert torch.allclose(weights.float(), loaded[name].float(), rtol=1e-3, atol=1e-4), name
