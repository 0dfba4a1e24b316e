"""The studies of search's features, small: they run to their page, and what they count is right."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cra.services.training.buildings.attributes import vocabulary
from cra.services.training.miniature import data
from cra.services.training.quality import __main__ as quality
from cra.services.training.quality import crops, duplicates, expansion, folding, relevance
from cra.services.training.quality.world import World
from cra.shared import terms
from tests.servers import ROOT

MODELS = ROOT / "deploy" / "models"
PICTURES = 60


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with few pictures."""
    folder = tmp_path_factory.mktemp("quality")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.PICTURES, "test", PICTURES)
        data.load(folder, "test", 1)
    return folder


@pytest.fixture(scope="module")
def world(work: Path) -> World:
    """Few pictures, and the towers that ship."""
    release = MODELS / "releases" / "cra-miniature-3e470a83"
    return World.load(MODELS / "miniature", release, work, "test", 1, resamples=50)


def test_it_ends_with_a_page(
    world: World, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every feature has rows of on and off, and the figures stand in a file beside the page."""
    for study in (duplicates, crops):
        monkeypatch.setattr(study, "PICTURES", 12)
    monkeypatch.setattr(duplicates, "QUERIES", 20)
    monkeypatch.setattr(relevance, "OF_EACH_KIND", 30)
    monkeypatch.setattr(expansion, "COUNTS", (1,))
    out = tmp_path / "quality.md"
    arguments = ["quality", "--work", str(work), "--out", str(out), "--resamples", "50"]
    arguments += ["--model", str(MODELS / "miniature"), "--threads", "1"]
    arguments += ["--release", str(MODELS / "releases" / "cra-miniature-3e470a83")]
    monkeypatch.setattr("sys.argv", arguments)
    quality.main()
    page = out.read_text()
    for words in ("cra-1", "Query expansion", "Relevance", "Near-duplicates", "Crops", "gain"):
        assert words in page
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert {row["tower"] for row in rows} == {"base", "tuned"}
    for row in rows:
        assert 0.0 <= row["off"]["low"] <= row["off"]["value"] <= row["off"]["high"] <= 1.0
        assert row["gain"]["value"] == pytest.approx(row["on"]["value"] - row["off"]["value"])


def test_renamed_queries_hold_names_of_no_caption() -> None:
    """Each keeps its picture and changes, and the name that it got was never taught."""
    known = vocabulary("plain") | vocabulary("professional")
    queries = [(3, "朱漆木构的殿宇，斗拱"), (5, "庑殿顶的建筑，飞扶壁"), (7, "没有术语")]
    renamed = dict(expansion.renamed(queries))
    assert list(renamed) == [3, 5]
    for text in renamed.values():
        assert text not in dict(queries).values()
        for name in terms.architecture().find(text):
            assert not any(name in word for word in known)


def test_rewritten_queries_are_folded_back(world: World) -> None:
    """What is written in other characters is the same text to the normaliser, and was changed."""
    from cra.shared.model.text import NORMALIZERS

    text = "朱漆木构的殿宇，斗拱，玫瑰窗，砖砌烟道"
    for name, rewrite in folding.rewritings().items():
        assert (rewrite(text) == text) == (name == "as they are")
        assert NORMALIZERS["cra-1"](rewrite(text)) == NORMALIZERS["cra-1"](text)


def test_f1_of_hits_above_a_threshold() -> None:
    """By hand: all right ones alone is 1, half of what is returned wrong is 2/3, nothing is 0."""
    figures = np.array([[3.0, 2.0, 1.0]] * 4)
    right = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=bool)
    assert relevance.f1(figures, right, 2.0) == pytest.approx([1.0, 2 / 3, 0.0, 0.0])
    assert relevance.f1(figures, right, 9.0) == pytest.approx([0.0, 0.0, 0.0, 1.0])


def test_crops_leave_nothing_out() -> None:
    """Square crops lie along the long side, from one end to the other."""
    for size in ((300, 100), (100, 300), (250, 100)):
        columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
        picture = Image.fromarray(np.stack([columns % 256, rows % 256, columns], -1).astype("u1"))
        found = [np.asarray(crop) for crop in crops.squares(picture)]
        assert {crop.shape for crop in found} == {(100, 100, 3)}
        axis = 0 if size[0] > size[1] else 1
        seen = {int(value) for crop in found for value in crop[..., axis].ravel()}
        assert seen == set(range(min(256, max(size))))
