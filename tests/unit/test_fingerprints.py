"""Law 4: what names a collection is the image tower, and what names a release the text tower."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from cra.shared.model import pixels, text
from cra.shared.model.checkpoints import find_model, load_clip
from cra.shared.model.image_tower import ImageTower, image_fingerprint
from cra.shared.model.pixels import Preprocessing
from cra.shared.model.text_tower import TextTower, text_fingerprint
from tests.checkpoints import make_checkpoint

SIZE = Preprocessing(32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return make_checkpoint(tmp_path_factory.mktemp("model"))


def _nudge(module: nn.Module, name: str) -> None:
    with torch.no_grad():
        module.get_parameter(name).view(-1)[0] += 1e-3


def test_one_model_has_one_name(folder: Path, tmp_path: Path) -> None:
    """Loaded twice, or saved again elsewhere, a model keeps both names; both are hex."""
    again = make_checkpoint(tmp_path)
    first, second = load_clip(find_model(str(folder))), load_clip(find_model(str(again)))
    tower, release = image_fingerprint(first, SIZE), text_fingerprint(first, "identity")
    assert image_fingerprint(second, SIZE) == tower
    assert text_fingerprint(second, "identity") == release
    assert (len(tower), len(release)) == (16, 8)
    assert int(tower, 16) >= 0
    assert int(release, 16) >= 0


def test_another_text_tower_is_another_release_of_the_same_image_tower(
    folder: Path, tmp_path: Path
) -> None:
    """A tuned text tower changes the release and keeps the collection."""
    first = TextTower(find_model(str(folder)), "cpu")
    tuned = TextTower(find_model(str(make_checkpoint(tmp_path, text_seed=1))), "cpu")
    assert tuned.release != first.release
    assert tuned.image_tower == first.image_tower


@pytest.mark.parametrize(
    "name", ["bert.embeddings.word_embeddings.weight", "text_projection", "logit_scale"]
)
def test_every_text_weight_counts(name: str, folder: Path) -> None:
    """One changed number outside the image tower changes the release alone."""
    model = load_clip(find_model(str(folder)))
    tower, release = image_fingerprint(model, SIZE), text_fingerprint(model, "identity")
    _nudge(model, name)
    assert image_fingerprint(model, SIZE) == tower
    assert text_fingerprint(model, "identity") != release


@pytest.mark.parametrize("name", ["conv1.weight", "positional_embedding", "proj", "ln_post.bias"])
def test_every_image_weight_counts(name: str, folder: Path) -> None:
    """One changed number of the image tower changes the collection alone."""
    model = load_clip(find_model(str(folder)))
    tower, release = image_fingerprint(model, SIZE), text_fingerprint(model, "identity")
    _nudge(model.visual, name)
    assert image_fingerprint(model, SIZE) != tower
    assert text_fingerprint(model, "identity") == release


def test_batch_norm_counts(tmp_path: Path) -> None:
    """What a ResNet has learnt outside its parameters belongs to its fingerprint as well."""
    model = load_clip(find_model(str(make_checkpoint(tmp_path, vision="resnet"))))
    tower = image_fingerprint(model, SIZE)
    model.visual.bn1.running_mean[0] += 1
    assert image_fingerprint(model, SIZE) != tower


def test_preprocessing_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights behind other pixels are another image tower, and the same release."""
    model = load_clip(find_model(str(folder)))
    release = text_fingerprint(model, "identity")
    towers = {image_fingerprint(model, SIZE), image_fingerprint(model, Preprocessing(64))}
    monkeypatch.setattr(pixels, "MEAN", (0.5, 0.5, 0.5))
    towers.add(image_fingerprint(model, SIZE))
    assert len(towers) == 3
    assert text_fingerprint(model, "identity") == release


def test_the_normaliser_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights behind another text normaliser are another release."""
    monkeypatch.setitem(text.NORMALIZERS, "cra-test", str.lower)
    source = find_model(str(folder))
    other = dataclasses.replace(source, normalizer="cra-test")
    assert TextTower(source, "cpu").release != TextTower(other, "cpu").release


def test_both_towers_agree_and_arithmetic_is_no_part(folder: Path) -> None:
    """Text and image process name the same image tower, in fp32 and in bf16."""
    source = find_model(str(folder))
    towers: list[TextTower | ImageTower] = [
        TextTower(source, "cpu"),
        ImageTower(source, "cpu"),
        ImageTower(source, "cpu", "bf16"),
    ]
    assert len({tower.image_tower for tower in towers}) == 1
    assert towers[0].runtime.precision == "fp32"
