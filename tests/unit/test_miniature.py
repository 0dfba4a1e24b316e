"""The miniature and its ablation, small: they run to their tables, and what is stored is used."""

import dataclasses
from pathlib import Path

import pytest

from cra.services.training.miniature import __main__ as miniature
from cra.services.training.miniature import ablation, data, report
from cra.services.training.miniature.ablation import Row
from cra.services.training.miniature.study import Outcome
from cra.shared.releases import read_release

MODEL = Path(__file__).parents[2] / "deploy" / "models" / "miniature"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> miniature.World:
    """The miniature with few pictures."""
    with pytest.MonkeyPatch.context() as patch:
        for split, count in {"train": 80, "validation": 20, "test": 40}.items():
            patch.setitem(data.PICTURES, split, count)
        return miniature.prepare(MODEL, tmp_path_factory.mktemp("miniature"), 1)


def test_no_building_is_in_two_sets(world: miniature.World) -> None:
    """Train, validation and test share no building, and training none with the base's."""
    groups = [
        {image.group for image in part.dataset.images}
        for part in (world.train, world.validation, world.test.part)
    ]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert min(groups[0]) == "train-20000"


def test_it_ends_with_releases_and_a_table(world: miniature.World) -> None:
    """Two seeds, two whole releases, and a page with every k beside ceiling, chance and paper."""
    settings = dataclasses.replace(miniature.SETTINGS, max_epochs=1, batch_size=32, warmup=2)
    found = [
        miniature.run_seed(world, dataclasses.replace(settings, seed=seed)) for seed in range(2)
    ]
    releases = [read_release(release.folder) for release, _ in found]
    assert releases[0].manifest.image_tower == releases[1].manifest.image_tower
    assert releases[0].weights.read_bytes() != releases[1].weights.read_bytes()
    base = Outcome.of(world.test.rank(miniature.encoder(world.source), world.test_nd))
    page = report.miniature(world.test, base, [one for _, one in found], releases, 1.0, 1)
    for words in ("R@1", "R@20", "ceiling", "chance", "tuned less base", "44.92", "74.61"):
        assert words in page


def test_rows_of_the_ablation_are_measured_once(
    world: miniature.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variant, fewer pairs and unlocked towers run; measured rows are read, not run, again."""
    small = dataclasses.replace(ablation.RECIPE, batch_size=32, warmup=1)
    monkeypatch.setattr(ablation, "RECIPE", small)
    rows = (Row("LoRA", {"lora_rank": 2}), Row("40 pairs", pairs=40))
    first = dict(ablation.outcomes(world, rows))
    assert set(first) == {"LoRA", "40 pairs", ablation.UNLOCKED}
    monkeypatch.setattr(ablation, "run", lambda *_: pytest.fail("it ran again"))
    monkeypatch.setattr(ablation, "run_unlocked", lambda *_: pytest.fail("it ran again"))
    again = dict(ablation.outcomes(world, rows))
    for name, outcome in first.items():
        assert outcome.recall("plain", 20) == again[name].recall("plain", 20)


def test_fewer_pairs_are_as_many_as_asked_for(world: miniature.World) -> None:
    """A part of the data has so many captions, each with its image and group."""
    part = data.fewer_pairs(world.train.dataset, 50, seed=0)
    assert sum(1 for _ in part.pairs()) == 50
    whole = {image.image_id: image for image in world.train.dataset.images}
    for image in part.images:
        assert set(image.captions) <= set(whole[image.image_id].captions)
        assert image.group == whole[image.image_id].group
