"""Evaluation through a live gateway: real index, store and embedding services, tiny towers."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cra.services.training.data.dataset import DataSet, Image
from cra.services.training.evaluation.live import LiveGallery
from cra.services.training.evaluation.run import Options, run
from cra.shared.client import SearchClient
from cra.shared.errors import FailedPreconditionError, NotFoundError
from cra.shared.model.checkpoints import find_model
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.text_tower import TextTower
from tests import servers, swap
from tests.evaluation import call, write_lines


@pytest.fixture(scope="module")
def dataset(world: swap.World) -> DataSet:
    """The images that are indexed, with captions."""
    return DataSet(
        tuple(
            Image(
                ref.key,
                f"building-{number // 2}",
                (f"第{number}座有飞檐的塔", f"{number // 3}号院落"),
                lambda content=content: content,  # type: ignore[misc]
            )
            for number, (ref, content) in enumerate(zip(world.refs, world.pictures, strict=True))
        )
    )


@pytest.fixture
def client(world: swap.World) -> Iterator[SearchClient]:
    """A client of the gateway."""
    with SearchClient(world.gateway, timeout=20) as client:
        yield client


def towers(world: swap.World) -> tuple[ImageTower, list[TextTower]]:
    """Return the model's towers and a release's."""
    source = find_model(world.settings.model)
    release = world.releases[0]
    servers.wait_until(
        lambda: all(swap.state_of(one, release.name) for one in world.replicas), "it is known"
    )
    return ImageTower(source, "cpu"), [TextTower(source, "cpu"), TextTower(release, "cpu")]


def ids(dataset: DataSet) -> list[str]:
    """Return the ids of the images."""
    return [image.image_id for image in dataset.images]


def test_a_small_index_loses_nothing(
    world: swap.World, dataset: DataSet, client: SearchClient, tmp_path: Path
) -> None:
    """Of two releases, the live gateway gives what the exact matrix gives: the index loss is 0."""
    image_tower, texts = towers(world)
    gallery = LiveGallery(client, ids(dataset), "images/")
    outcome = run(dataset, "world", image_tower, texts, Options(tmp_path, resamples=200), gallery)
    (section,) = outcome.report.sections
    assert [one.model for one in section.live] == [world.base, world.releases[0].name]
    for one in section.live:
        assert one.overlap == 1.0
        for k, loss in one.index_loss.items():
            assert (loss.value, loss.low, loss.high, loss.p_value) == (0.0, 0.0, 0.0, 1.0)
            assert one.live[k] == one.exact[k]
    first, second = section.live
    assert first.live[5] != second.live[5]


def test_images_that_are_missing_are_named(
    world: swap.World, dataset: DataSet, client: SearchClient, tmp_path: Path
) -> None:
    """The loss of an index that does not hold the images is no figure: they are named instead."""
    image_tower, texts = towers(world)
    more = dataclasses.replace(dataset.images[0], image_id="none.png")
    larger = DataSet((*dataset.images, more))
    gallery = LiveGallery(client, ids(larger), "images/")
    with pytest.raises(FailedPreconditionError, match=r"1 of 25 .* images/none\.png"):
        run(larger, "world", image_tower, texts, Options(tmp_path), gallery)


def test_images_that_are_too_many_are_named(
    world: swap.World, dataset: DataSet, client: SearchClient, tmp_path: Path
) -> None:
    """Other images below the prefix would make another gallery, and are refused by name."""
    image_tower, texts = towers(world)
    smaller = DataSet(dataset.images[:12])
    gallery = LiveGallery(client, ids(smaller), "images/")
    with pytest.raises(FailedPreconditionError, match="prefix of their own"):
        run(smaller, "world", image_tower, texts, Options(tmp_path), gallery)


def test_the_prefix_restricts_the_search(
    world: swap.World, dataset: DataSet, client: SearchClient, tmp_path: Path
) -> None:
    """With the images of one key prefix, the others of the bucket do not come in between."""
    image_tower, texts = towers(world)
    some = [image for image in dataset.images if image.image_id.startswith("1")]
    smaller = DataSet(
        tuple(dataclasses.replace(image, image_id=image.image_id[1:]) for image in some)
    )
    gallery = LiveGallery(client, ids(smaller), "images/1")
    outcome = run(smaller, "world", image_tower, texts, Options(tmp_path, resamples=50), gallery)
    for one in outcome.report.sections[0].live:
        assert one.gallery == 10
        assert one.index_loss[1].value == 0.0


def test_what_the_gateway_does_not_serve_is_refused(
    world: swap.World, dataset: DataSet, client: SearchClient, tmp_path: Path
) -> None:
    """A release that the gateway lacks, another image tower and ids without a bucket raise."""
    image_tower, texts = towers(world)
    gallery = LiveGallery(client, ids(dataset), "images/")
    with pytest.raises(NotFoundError, match="none-00000000"):
        gallery.search(["塔"], "none-00000000", image_tower.image_tower)
    with pytest.raises(FailedPreconditionError, match="is f00d"):
        gallery.search(["塔"], texts[0].release, "f00d")
    with pytest.raises(FailedPreconditionError, match="bucket/key"):
        LiveGallery(client, ids(dataset))


def test_the_command_evaluates_a_published_release(
    world: swap.World, dataset: DataSet, tmp_path: Path
) -> None:
    """`cra evaluate --live` fetches a release by name and measures it twice: no index loss."""
    release = world.releases[1]
    rows = []
    for image in dataset.images:
        (tmp_path / image.image_id).write_bytes(image.read())
        rows.append(
            {"file": image.image_id, "captions": list(image.captions), "group": image.group}
        )
    write_lines(tmp_path / "captions.jsonl", rows)
    # The gateway of this process logs to stdout, so the report is read from its file.
    done = call(
        world.settings.model,
        str(tmp_path),
        f"--release={release.name}",
        "--live",
        "--live-prefix=images/",
        f"--cache={tmp_path / 'features'}",
        f"--releases={tmp_path / 'fetched'}",
        f"--out={tmp_path / 'out'}",
        **swap.environment(world.settings),
    )
    assert done.exit_code == 0, done.stderr
    found = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert found["models"] == [release.name]
    (live,) = found["sections"][0]["live"]
    assert live["gallery"] == swap.IMAGES
    assert {k: loss["value"] for k, loss in live["index_loss"].items()} == dict.fromkeys(
        ("1", "5", "10", "20"), 0.0
    )
    assert (tmp_path / "fetched" / release.name / "release.json").is_file()
