"""The release that ships: whole, of the shipped image tower, and worth what its tables say."""

from pathlib import Path

import pytest

from cra.services.training import features
from cra.services.training.buildings.dataset import write_dataset
from cra.services.training.miniature import data
from cra.services.training.miniature.__main__ import encoder
from cra.services.training.miniature.study import HeldOut, Outcome
from cra.shared.model.checkpoints import find_model
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.text_tower import TextTower
from cra.shared.releases import read_release

MODELS = Path(__file__).parents[2] / "deploy" / "models"
PAPERS_GAIN = 0.7461 - 0.4492


def _folder() -> Path:
    (folder,) = [one for one in (MODELS / "releases").iterdir() if one.is_dir()]
    return folder


def test_it_is_whole_and_fits_the_model_that_ships() -> None:
    """Checksums and name hold; base, fingerprint and dimension are those of the shipped model."""
    release = read_release(_folder())
    source = find_model(str(MODELS / "miniature"))
    assert release.name == _folder().name
    assert release.manifest.image_tower == ImageTower(source, "cpu").image_tower
    assert release.manifest.base == TextTower(source, "cpu").release
    assert release.manifest.dimension == source.config["embed_dim"]
    assert set("庑盝鸱戗檩槅") <= set(release.manifest.added_tokens)


@pytest.mark.parametrize(
    ("pictures", "may_lose"),
    # Few pictures give no more than a rough figure of what is lost.
    [(300, 0.04), pytest.param(2000, 0.02, marks=pytest.mark.slow)],
)
def test_it_knows_the_words_of_the_field_and_forgets_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: int, may_lose: float
) -> None:
    """On unseen buildings professional R@20 is at least 85 % of the ceiling, and well above base.

    Plain captions lose less than two points over 2,000 pictures.
    """
    monkeypatch.setitem(data.PICTURES, "test", pictures)
    write_dataset(tmp_path / "test", "test", pictures)
    part = data.load(tmp_path, "test", 1)
    source = find_model(str(MODELS / "miniature"))
    vectors = features.load(part.dataset.images, ImageTower(source, "cpu"), tmp_path / "cache")[0]
    test = HeldOut(part, source.config["image_resolution"])
    base, tuned = (
        Outcome.of(test.rank(encoder(one), vectors)) for one in (source, read_release(_folder()))
    )
    assert tuned.recall("professional", 20) >= 0.85 * test.ceiling["professional"][20]
    assert tuned.recall("professional", 20) - base.recall("professional", 20) > PAPERS_GAIN
    assert base.recall("plain", 20) - tuned.recall("plain", 20) < may_lose
