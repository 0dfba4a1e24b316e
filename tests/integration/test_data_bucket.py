"""Pairs that lie in a bucket, on a real S3 server."""

import io
import uuid
from collections.abc import Mapping

import pytest
from minio import Minio

from cra.services.training.data.dataset import BadDataError
from cra.services.training.data.opening import check_images, open_dataset
from cra.services.training.data.reading import Columns
from cra.shared.adapters.object_store import connect, encode_metadata
from cra.shared.errors import NotFoundError, UnavailableError
from cra.shared.settings import Settings
from tests.datasets import picture
from tests.servers import free_ports

COLUMNS = Columns(general="plain", group="Building", attributes=("style",))


@pytest.fixture
def client(s3: Settings) -> Minio:
    """The SDK itself, for putting."""
    return connect(s3)


@pytest.fixture
def prefix() -> str:
    """A place in the bucket that no other test uses."""
    return f"{uuid.uuid4().hex}/"


def _put(client: Minio, key: str, metadata: Mapping[str, str], content: bytes) -> None:
    client.put_object(
        "images", key, io.BytesIO(content), len(content), metadata=encode_metadata(dict(metadata))
    )


def test_metadata_holds_captions_groups_and_categories(
    s3: Settings, client: Minio, prefix: str
) -> None:
    """Objects come in the order of their keys; what has none of the columns is no pair."""
    tower = {"caption": "庑殿顶|斗栱 | ", "plain": "红房子", "building": "塔", "style": "唐"}
    _put(client, f"{prefix}b 塔?#.png", tower, picture(1))
    _put(client, f"{prefix}a.png", {"caption": "歇山顶", "building": "殿"}, picture(2))
    _put(client, f"{prefix}notes.txt", {"author": "someone"}, b"no image")
    found = open_dataset(f"s3://images/{prefix}", COLUMNS, settings=s3)
    assert not found.problems
    first, second = found.images
    assert (first.image_id, first.captions) == (f"images/{prefix}a.png", ("歇山顶",))
    assert (second.image_id, second.group) == (f"images/{prefix}b 塔?#.png", "塔")
    assert (second.captions, second.general) == (("庑殿顶", "斗栱"), ("红房子",))
    assert second.attributes == {"style": "唐"}
    assert [image.read() for image in found.images] == [picture(2), picture(1)]
    one = open_dataset(f"s3://images/{prefix}b 塔?#", COLUMNS, settings=s3)
    assert [image.image_id for image in one.images] == [second.image_id]


def test_bad_objects_are_named(s3: Settings, client: Minio, prefix: str) -> None:
    """Each is reported by its image id, and the good ones are read."""
    rows: dict[str, tuple[dict[str, str], str]] = {
        "a": ({"caption": "塔", "building": "g"}, ""),
        "b": ({"caption": "塔"}, "no group"),
        "c": ({"building": "g"}, "no caption"),
        "d": ({"caption": "塔" * 1001, "building": "g"}, "1001 characters"),
        "e": ({"plain": "塔", "building": "g"}, ""),
    }
    for name, (metadata, _) in rows.items():
        _put(client, f"{prefix}{name}", metadata, b"no image")
    found = open_dataset(f"s3://images/{prefix}", COLUMNS, settings=s3)
    assert [image.image_id[-1] for image in found.images] == ["a", "e"]
    expected = {name: text for name, (_, text) in rows.items() if text}
    assert [problem.where[-1] for problem in found.problems] == list(expected)
    for problem, text in zip(found.problems, expected.values(), strict=True):
        assert text in problem.message
    stop = Columns(group="building", on_error="stop")
    with pytest.raises(BadDataError, match=f"images/{prefix}b: no group"):
        open_dataset(f"s3://images/{prefix}", stop, settings=s3)


def test_folders_and_splits(s3: Settings, client: Minio, prefix: str) -> None:
    """An object's folder can be its group, and a metadata name can say its split."""
    for key, split in {"tower/1": "train", "tower/2": "train", "hall/1": "test"}.items():
        _put(client, f"{prefix}{key}", {"caption": "塔", "part": split}, picture())
    columns = Columns(group="folder", split="part")
    found = open_dataset(f"s3://images/{prefix}", columns, "train", s3)
    assert [image.group for image in found.images] == [f"{prefix}tower", f"{prefix}tower"]
    assert not found.problems


def test_an_object_that_went_away_is_reported(s3: Settings, client: Minio, prefix: str) -> None:
    """What was deleted after the reading is a bad image with its reason, not an empty one."""
    row = {"caption": "塔", "building": "g"}
    for name in ("a", "b"):
        _put(client, f"{prefix}{name}", row, picture())
    found = open_dataset(f"s3://images/{prefix}", COLUMNS, settings=s3)
    client.remove_object("images", f"{prefix}a")
    with pytest.raises(NotFoundError, match="no longer"):
        found.images[0].read()
    (problem,) = check_images(found.images)
    assert problem.where == f"images/{prefix}a"
    assert "no longer" in problem.message


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("s3://no-such-bucket/a", "bucket"),
        ("s3://Bad_Name_/a", "bucket"),
        ("s3:///a", "not of the form"),
        ("s3://images/nothing-has-this-prefix", "holds no images"),
    ],
)
def test_where_there_is_nothing(s3: Settings, location: str, message: str) -> None:
    """No bucket, no name of one, or no pairs in it: an error that names the location."""
    with pytest.raises(BadDataError, match=message) as caught:
        open_dataset(location, Columns(), settings=s3)
    assert caught.value.problems[0].where == location


def test_an_outage_is_no_empty_data_set(s3: Settings) -> None:
    """A store that does not answer is unavailable: no row is to blame."""
    (port,) = free_ports(1)
    down = s3.model_copy(update={"s3_endpoint": f"127.0.0.1:{port}"})
    with pytest.raises(UnavailableError):
        open_dataset("s3://images/a", Columns(), settings=down)
