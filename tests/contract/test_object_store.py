"""The contract of the object store port, on a real S3 server."""

import gzip
import io
import urllib.request

import pytest
from minio import Minio
from pydantic import SecretStr

from cra.shared.adapters.object_store import S3ObjectStore, connect, encode_metadata
from cra.shared.domain import ObjectRef
from cra.shared.errors import NotFoundError, PermissionDeniedError, UnavailableError
from cra.shared.settings import Settings
from tests.odd_objects import KEYS_OF_OTHER_STORES
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


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param({f"name-{number}": "v" for number in range(200)}, id="200 entries"),
        pytest.param({"caption": "v" * 100_000}, id="an entry of 100 KB"),
    ],
)
def test_much_metadata_is_no_outage(s3: Settings, client: Minio, metadata: dict[str, str]) -> None:
    """An object of more metadata than HTTP libraries expect is looked at like any other.

    Fails with the limits that http.client has by itself: the store seemed to be down, for ever.
    """
    put(client, "much", b"content", metadata)
    store, ref = S3ObjectStore(s3), ObjectRef("images", "much")
    details = store.look(ref)
    assert details is not None
    assert details.metadata == metadata
    assert store.fetch(ref) == (details, b"content")
    client.remove_object("images", "much")


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"content" * 999, mtime=0)])
def test_content_comes_as_it_is_stored(s3: Settings, client: Minio, content: bytes) -> None:
    """A Content-Encoding that is a lie is no outage, and one that is true unpacks nothing.

    Fails when the answer is read with `response.data`, which unpacks, whatever it unpacks to.
    """
    client.put_object(
        "images", "zip", io.BytesIO(content), len(content), metadata={"Content-Encoding": "gzip"}
    )
    found = S3ObjectStore(s3).fetch(ObjectRef("images", "zip"))
    assert found is not None
    assert (found[0].size, found[1]) == (len(content), content)
    client.remove_object("images", "zip")


@pytest.mark.parametrize("kind", KEYS_OF_OTHER_STORES)
def test_a_key_that_cannot_be_is_not_there(s3: Settings, kind: str) -> None:
    """A key that the SDK or the store refuses names no object of this store, and is no outage.

    Fails when `_named` lets the SDK's ValueError or the store's 400 through.
    """
    store, ref = S3ObjectStore(s3), ObjectRef("images", KEYS_OF_OTHER_STORES[kind])
    assert store.look(ref) is None
    assert store.fetch(ref) is None


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
