"""Bucket events of two stores: whatever they say, what comes out are names to look at again."""

import json
import urllib.parse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra.services.ingest.events import parse_event
from cra.shared.domain import ObjectRef
from cra.shared.errors import InvalidArgumentError

BUCKETS = ("images", "more")

KEYS = [
    "a.jpg",
    "folder/b c.jpg",
    "大殿/歇山顶 正面.jpg",
    "1+1=2.jpg",
    "100%.jpg",
    "100%25.jpg",
    "a%2Fb.jpg",
    'it\'s "quoted".jpg',
    "back\\slash.jpg",
    "a//b.jpg",
    "/leading.jpg",
    "query?x=1&y=2#z.jpg",
    "🏯.jpg",
    "e\u0301.jpg",
    "tab\tnewline\n.jpg",
    "a/../b.jpg",
    ".uploads-not.jpg",
]


def minio(*keys: str, bucket: str = "images", event: str = "s3:ObjectCreated:Put") -> Any:
    """Return a message as MinIO's webhook sends it, keys escaped as Go's url.QueryEscape does."""
    return {
        "EventName": event,
        "Key": f"{bucket}/{keys[0] if keys else ''}",
        "Records": [
            {
                "eventVersion": "2.0",
                "eventSource": "minio:s3",
                "eventName": event,
                "s3": {
                    "s3SchemaVersion": "1.0",
                    "bucket": {"name": bucket, "arn": f"arn:aws:s3:::{bucket}"},
                    "object": {
                        "key": urllib.parse.quote_plus(key, safe=""),
                        "size": 12,
                        "eTag": "0f343b0931126a20f133d67c2b018a3b",
                        "sequencer": "17C9B2F8A1D5E3A0",
                    },
                },
            }
            for key in keys
        ],
    }


def seaweedfs(path: str, event: str = "create", **message: Any) -> Any:
    """Return an event as SeaweedFS's filer webhook posts it."""
    folder, _, name = path.rpartition("/")
    entry = {"name": name, "is_directory": False, "attributes": {"file_size": 12}}
    before = None if event == "create" else entry
    after = None if event == "delete" else entry
    return {
        "key": path,
        "event_type": event,
        "message": {"old_entry": before, "new_entry": after, "new_parent_path": folder} | message,
    }


def _keys(body: Any) -> list[str]:
    refs = parse_event(json.loads(json.dumps(body)), BUCKETS)
    assert all(ref.bucket == "images" for ref in refs)
    return [ref.key for ref in refs]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_minio(key: str) -> None:
    """MinIO escapes keys as in a query string; they come out as they were stored."""
    assert _keys(minio(key)) == [key]
    assert _keys(minio(key, event="s3:ObjectRemoved:Delete")) == [key]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_seaweedfs(key: str) -> None:
    """SeaweedFS sends paths as they are: nothing in them is unescaped."""
    for event in ("create", "update", "delete"):
        assert _keys(seaweedfs(f"/buckets/images/{key}", event)) == [key]


def test_a_recorded_minio_message() -> None:
    """A message in MinIO's own words, with a space as `+` and UTF-8 as `%`."""
    body = minio("x")
    body["Records"][0]["s3"]["object"]["key"] = "%E5%A4%A7%E6%AE%BF%2Fa+b%2B1%25.jpg"
    assert _keys(body) == ["大殿/a b+1%.jpg"]


def test_many_records_and_repeats() -> None:
    """Several records of one message come out in order, each object once."""
    assert _keys(minio("b.jpg", "a.jpg", "b.jpg")) == ["b.jpg", "a.jpg"]
    assert _keys(minio()) == []


def test_other_buckets_do_not_count() -> None:
    """Events of buckets that are not indexed are understood and ignored."""
    assert parse_event(minio("a.jpg", bucket="releases"), BUCKETS) == []
    assert parse_event(seaweedfs("/buckets/releases/a.jpg"), BUCKETS) == []
    assert parse_event(seaweedfs("/buckets/images2/a.jpg"), BUCKETS) == []
    assert parse_event(minio("a.jpg", bucket="more"), BUCKETS) == [ObjectRef("more", "a.jpg")]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/buckets/images", id="the bucket itself"),
        pytest.param("/buckets/images/", id="the bucket itself, with a slash"),
        pytest.param("/buckets", id="the root of buckets"),
        pytest.param("/etc/images/a.jpg", id="outside all buckets"),
        pytest.param("buckets/images/a.jpg", id="no absolute path"),
        pytest.param("/buckets/images/.uploads/8f/0001.part", id="a part of an unfinished upload"),
    ],
)
def test_paths_that_are_no_objects(path: str) -> None:
    """What the filer reports beside objects is understood and ignored."""
    assert _keys(seaweedfs(path)) == []


def test_an_upload_that_is_done_counts() -> None:
    """Moved out of `.uploads`, an object counts; a folder of that name deeper down is a key."""
    body = seaweedfs(
        "/buckets/images/.uploads/8f",
        "rename",
        new_parent_path="/buckets/images/albums",
        new_entry={"name": "a.jpg"},
    )
    assert _keys(body) == ["albums/a.jpg"]
    assert _keys(seaweedfs("/buckets/images/a/.uploads/b.jpg")) == ["a/.uploads/b.jpg"]


def test_folders_do_not_count() -> None:
    """A folder is no object: not in SeaweedFS, and not as MinIO's marker that ends in a slash."""
    folder = {"name": "albums", "is_directory": True}
    assert _keys(seaweedfs("/buckets/images/albums", new_entry=folder)) == []
    assert _keys(seaweedfs("/buckets/images/albums", "delete", old_entry=folder)) == []
    assert _keys(minio("albums/", "albums/a.jpg")) == ["albums/a.jpg"]


def test_a_rename_names_both_ends() -> None:
    """After a rename both keys have to be looked at, also across folders and buckets."""
    body = seaweedfs(
        "/buckets/images/old name.jpg",
        "rename",
        new_parent_path="/buckets/images/新",
        new_entry={"name": "b+c.jpg"},
    )
    assert _keys(body) == ["old name.jpg", "新/b+c.jpg"]
    body["message"]["new_parent_path"] = "/buckets/more"
    assert parse_event(body, BUCKETS) == [
        ObjectRef("images", "old name.jpg"),
        ObjectRef("more", "b+c.jpg"),
    ]
    body["message"]["new_parent_path"] = "/buckets/releases"
    assert _keys(body) == ["old name.jpg"]


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "Records",
        7,
        {},
        {"Records": None},
        {"Records": [{}]},
        {"Records": [None]},
        {"Records": [{"s3": {"bucket": {"name": "images"}, "object": {}}}]},
        {"Records": [{"s3": {"bucket": {"name": "images"}, "object": {"key": None}}}]},
        {"Records": [{"s3": {"bucket": {"name": "images"}, "object": {"key": 7}}}]},
        {"Records": [{"s3": {"bucket": {"name": 7}, "object": {"key": "a.jpg"}}}]},
        {"Records": [{"s3": {"bucket": {"name": "images"}, "object": {"key": ""}}}]},
        {"Records": [{"s3": {"bucket": {"name": "images"}, "object": {"key": "%FF"}}}]},
        {"Records": [{"s3": {"bucket": {"name": "images"}, "object": {"key": "k" * 1025}}}]},
        {"Records": [{"s3": {"bucket": {"name": "images"}, "object": {"key": "\ud800"}}}]},
        {"event_type": "create"},
        {"event_type": "create", "key": "/buckets/images/a.jpg", "message": []},
        {"event_type": "create", "key": 7, "message": {}},
        {"event_type": "create", "message": {}},
    ],
)
def test_what_is_no_event(body: Any) -> None:
    """What neither store sends is refused, naming what is wrong."""
    with pytest.raises(InvalidArgumentError) as caught:
        parse_event(body, BUCKETS)
    assert caught.value.field in {"body", "Records", "Records[0].s3", "message", "key"}


_keys_of_s3 = st.text(min_size=1, max_size=120).filter(
    lambda key: not key.endswith("/") and len(key.encode()) <= 1024
)


@given(st.lists(_keys_of_s3, min_size=1, max_size=3))
def test_any_keys_survive_minios_escaping(keys: list[str]) -> None:
    """Whatever keys hold, they come out of MinIO's message as they were stored."""
    assert _keys(minio(*keys)) == list(dict.fromkeys(keys))


@given(_keys_of_s3.filter(lambda key: not key.startswith((".uploads", "/"))))
def test_any_key_survives_seaweedfs(key: str) -> None:
    """Whatever a key holds, it comes out of SeaweedFS's event as it was stored."""
    assert _keys(seaweedfs(f"/buckets/images/{key}")) == [key]


_words = st.sampled_from(
    ["Records", "s3", "bucket", "name", "object", "key", "event_type", "message", "new_entry",
     "old_entry", "new_parent_path", "is_directory", "/buckets/images/a", "images", "a%2", "%"]
)  # fmt: skip
_any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=5),
    max_leaves=20,
)
_like_minio = st.fixed_dictionaries(
    {
        "Records": st.lists(
            st.fixed_dictionaries(
                {
                    "s3": st.fixed_dictionaries(
                        {
                            "bucket": st.fixed_dictionaries({"name": _any_json}) | _any_json,
                            "object": st.fixed_dictionaries({"key": _any_json}) | _any_json,
                        }
                    )
                    | _any_json
                }
            )
            | _any_json,
            max_size=3,
        )
    }
)
_like_seaweedfs = st.fixed_dictionaries(
    {
        "event_type": _any_json,
        "key": _any_json,
        "message": st.fixed_dictionaries(
            {"new_entry": _any_json, "old_entry": _any_json, "new_parent_path": _any_json}
        )
        | _any_json,
    }
)


@given(_any_json | _like_minio | _like_seaweedfs)
def test_any_json_is_names_or_refused(body: Any) -> None:
    """Any JSON at all gives names within our buckets, or InvalidArgumentError; nothing else."""
    try:
        refs = parse_event(body, BUCKETS)
    except InvalidArgumentError:
        refs = []
    assert all(ref.bucket in BUCKETS and 0 < len(ref.key.encode()) <= 1024 for ref in refs)
