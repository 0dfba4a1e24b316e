"""A whole evaluation of tiny towers, and its report."""

import dataclasses
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cra.services.training.data.dataset import DataSet
from cra.services.training.evaluation import report
from cra.services.training.evaluation.run import Options, Outcome, run
from cra.shared.errors import FailedPreconditionError
from cra.shared.model.checkpoints import find_model
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.text_tower import TextTower
from cra.shared.releases import read_release
from tests.checkpoints import make_checkpoint
from tests.releases import make_tower_release
from tests.tuning import make_dataset

NASTY = '<script>alert("1")</script>|*庑殿*'


@pytest.fixture(scope="module")
def world() -> DataSet:
    """48 pictures in 12 groups; one caption is written to break pages."""
    dataset = make_dataset(range(2))
    first = dataclasses.replace(
        dataset.images[0], captions=(NASTY,), attributes={"colour": "<b>"}, image_id="<i>a|b.png"
    )
    return DataSet((first, *dataset.images[1:]))


@pytest.fixture(scope="module")
def outcome(world: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Another text tower of the same image tower, against the base."""
    folder = tmp_path_factory.mktemp("towers")
    base = make_checkpoint(folder / "base")
    other = make_checkpoint(folder / "other", text_seed=5)
    tuned = read_release(make_tower_release(folder, base, other).folder)
    source = find_model(str(base))
    return run(
        world,
        "some/folder",
        ImageTower(source, "cpu"),
        [TextTower(source, "cpu"), TextTower(tuned, "cpu")],
        Options(folder / "features", misses=4, resamples=200),
    )


def test_both_kinds_and_both_models_are_measured(outcome: Outcome) -> None:
    """A report holds captions and everyday captions, two models, and what lies between them."""
    found = outcome.report
    assert [section.kind for section in found.sections] == ["captions", "general"]
    for section in found.sections:
        assert [one.model for one in section.evaluations] == list(found.models)
        assert section.comparison is not None
        first, second = section.evaluations
        for k, value in second.text_to_image.recall.items():
            gain = section.comparison.text_to_image[f"R@{k}"]
            assert gain.value == pytest.approx(value.value - first.text_to_image.recall[k].value)
    assert found.data.groups == 12


def test_misses_come_worst_first_from_different_groups(outcome: Outcome) -> None:
    """The worst misses fall in rank, show the right image, and five for each model."""
    misses = outcome.report.sections[0].misses
    ranks = [miss.sides[-1].rank for miss in misses]
    assert len(misses) == 4
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] > 1
    for miss in misses:
        assert miss.right.right
        assert [len(side.instead) for side in miss.sides] == [5, 5]
        for side in miss.sides:
            scores = [shown.score for shown in side.instead]
            assert scores == sorted(scores, reverse=True)


class _Page(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_the_page_needs_nothing_else(outcome: Outcome) -> None:
    """The HTML page holds its pictures in itself and points nowhere."""
    text = report.as_html(outcome.report, outcome.pictures)
    page = _Page(text)
    assert page.sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert not re.search(r"https?://|url\(|@import", text)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "color-scheme: light dark" in text


def test_text_of_the_data_stays_text(outcome: Outcome) -> None:
    """Captions, ids and categories cannot break out of the page or of a Markdown table."""
    text = report.as_html(outcome.report, outcome.pictures)
    page = _Page(text)
    assert "b" not in page.tags
    assert "i" not in page.tags
    assert "<b>" in page.texts
    markdown = report.as_markdown(outcome.report)
    assert r"\<b\>" in markdown
    assert "<script" not in markdown
    lines = markdown.splitlines()
    for before, line in itertools.pairwise(lines):
        if before.startswith("|") and line.startswith("|"):
            cells = [len(re.findall(r"(?<!\\)\|", one)) for one in (before, line)]
            assert cells[0] == cells[1]


def test_figures_are_the_same_everywhere(outcome: Outcome, tmp_path: Path) -> None:
    """JSON, Markdown and HTML are written together and give the same recall with its interval."""
    report.write(outcome.report, outcome.pictures, tmp_path)
    fields = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    one = fields["sections"][0]["evaluations"][1]["text_to_image"]["recall"]["5"]
    figure = f"{100 * one['value']:.1f} ({100 * one['low']:.1f} to {100 * one['high']:.1f})"
    assert figure in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert figure in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert fields["sections"][0]["evaluations"][0]["text_to_image"]["chance"]["20"] > 0
    assert fields["data"]["digest"] == outcome.report.data.digest


def test_a_tower_of_another_image_tower_is_refused(world: DataSet, tmp_path: Path) -> None:
    """A text tower that was made for other image vectors gives no figure."""
    first = find_model(str(make_checkpoint(tmp_path / "a")))
    second = find_model(str(make_checkpoint(tmp_path / "b", seed=1)))
    with pytest.raises(FailedPreconditionError, match="made for image tower"):
        run(world, "x", ImageTower(first, "cpu"), [TextTower(second, "cpu")], Options(tmp_path))


def test_what_cannot_be_measured_is_refused(world: DataSet, tmp_path: Path) -> None:
    """A data set without captions, and a broken image, are refused by name."""
    source = find_model(str(make_checkpoint(tmp_path)))
    towers = ImageTower(source, "cpu"), [TextTower(source, "cpu")]
    bare = DataSet(tuple(dataclasses.replace(i, captions=(), general=()) for i in world.images))
    with pytest.raises(FailedPreconditionError, match="no captions"):
        run(bare, "x", *towers, Options(tmp_path))
    broken = dataclasses.replace(world.images[3], read=lambda: b"none")
    with pytest.raises(FailedPreconditionError, match=re.escape(broken.image_id)):
        run(DataSet((broken,)), "x", *towers, Options(tmp_path))
