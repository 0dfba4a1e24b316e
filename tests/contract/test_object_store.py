"""The contract of the object store port, on a real S3 server."""

import io
import urllib.request

import pytest
from minio import Minio
from pydantic import SecretStr

from cra.shared.adapters.object_store import S3ObjectStore, connect, encode_metadata
from cra.shared.domain import ObjectRef
from cra.shared.errors import NotFoundError, PermissionDeniedError, UnavailableError
from cra.shared.settings import Settings
from tests.servers import free_ports

KEYS = ["a.jpg", "文件夹/图 片.jpg", "a+b%20c.jpg", "quote\"'.jpg", "emoji🏯.jpg"]


@pytest.fixture
def client(s3: Settings) -> Minio:
    """The SDK itself, for putting."""
    return connect(s3)


def put(client: Minio, key: str, content: bytes, metadata: dict[str, str] | None = None) -> None:
    """Put one object."""
    client.put_object(
        "images", key, io.BytesIO(content), len(content), metadata=encode_metadata(metadata or {})
    )


@pytest.mark.parametrize("key", KEYS)
def test_listing_and_look_agree(s3: Settings, client: Minio, key: str) -> None:
    """A listing and a single look show the same version, whatever the key; metadata survives."""
    put(client, key, b"content", {"caption": "红墙 50% +\"'", "style": "唐"})
    store = S3ObjectStore(s3)
    ref = ObjectRef("images", key)
    (listed,) = [stored for stored in store.list("images") if stored.ref == ref]
    details = store.look(ref)
    assert details is not None
    assert (details.version, details.size) == (listed.version, 7)
    assert details.metadata == {"caption": "红墙 50% +\"'", "style": "唐"}
    assert store.fetch(ref) == (details, b"content")
    client.remove_object("images", key)


def test_a_change_changes_the_version(s3: Settings, client: Minio) -> None:
    """Other content is another version; other metadata is another digest."""
    store, ref = S3ObjectStore(s3), ObjectRef("images", "changing")
    put(client, "changing", b"one", {"a": "1"})
    first = store.look(ref)
    put(client, "changing", b"two", {"a": "2"})
    second = store.look(ref)
    assert first is not None
    assert second is not None
    assert first.version.etag != second.version.etag
    assert first.metadata_digest != second.metadata_digest
    client.remove_object("images", "changing")


def test_what_is_not_there_is_none(s3: Settings) -> None:
    """A missing object is None; a missing bucket is an error and no empty listing."""
    store = S3ObjectStore(s3)
    assert store.look(ObjectRef("images", "nothing")) is None
    assert store.fetch(ObjectRef("images", "nothing")) is None
    with pytest.raises(NotFoundError):
        list(store.list("no-such-bucket"))


def test_signed_urls_open(s3: Settings, client: Minio) -> None:
    """A signed URL gives the object's content to anybody who has it."""
    put(client, "签名 a+b.jpg", b"signed")
    url = S3ObjectStore(s3).signed_url(ObjectRef("images", "签名 a+b.jpg"))
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - http, by our own S3 server
        assert answer.read() == b"signed"
    client.remove_object("images", "签名 a+b.jpg")


def test_outage_and_wrong_keys_are_errors(s3: Settings) -> None:
    """A store that does not answer is unavailable, and wrong credentials are said to be wrong."""
    (port,) = free_ports(1)
    down = S3ObjectStore(s3.model_copy(update={"s3_endpoint": f"127.0.0.1:{port}"}))
    with pytest.raises(UnavailableError):
        down.look(ObjectRef("images", "a"))
    with pytest.raises(UnavailableError):
        list(down.list("images"))
    wrong = S3ObjectStore(s3.model_copy(update={"s3_secret_key": SecretStr("wrong")}))
    with pytest.raises(PermissionDeniedError):
        list(wrong.list("images"))
