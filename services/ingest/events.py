"""Bucket events of two stores, parsed to one thing: names of objects to look at again."""

import urllib.parse
from collections.abc import Collection
from typing import Any, Final

from cra.shared.domain import ObjectRef
from cra.shared.errors import InvalidArgumentError

SEAWEEDFS_ROOT: Final = "/buckets/"
SEAWEEDFS_UPLOADS: Final = ".uploads"
"""Folder inside a bucket where SeaweedFS keeps the parts of unfinished uploads."""


def parse_event(body: Any, buckets: Collection[str]) -> list[ObjectRef]:
    """Return the objects that an event says something about, in order and without repeats.

    An event is a hint that an object may have changed; how it changed is found out by looking.

    Args:
        body: decoded JSON: MinIO's webhook message, or SeaweedFS's filer event.
        buckets: the only buckets that count; events of others are ignored.

    Raises:
        InvalidArgumentError: it is neither of the two.
    """
    if not isinstance(body, dict):
        raise InvalidArgumentError("body", "is not a JSON object")
    if "Records" in body:
        refs = _minio(body["Records"])
    elif "event_type" in body:
        refs = _seaweedfs(body)
    else:
        raise InvalidArgumentError("body", "is neither a MinIO nor a SeaweedFS event")
    return [
        ref
        for ref in dict.fromkeys(refs)
        # A key that ends in a slash is a folder's marker; listings leave it out as well.
        if ref.bucket in buckets and not ref.key.endswith("/")
    ]


def _minio(records: Any) -> list[ObjectRef]:
    if not isinstance(records, list):
        raise InvalidArgumentError("Records", "is not a list")
    refs = []
    for number, record in enumerate(records):
        field = f"Records[{number}].s3"
        try:
            bucket, escaped = record["s3"]["bucket"]["name"], record["s3"]["object"]["key"]
            # MinIO escapes keys as in a query string: a space is `+`.
            key = urllib.parse.unquote_plus(escaped, errors="strict")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidArgumentError(field, "names no bucket and object key") from error
        refs.append(_ref(bucket, key, field))
    return refs


def _seaweedfs(event: dict[str, Any]) -> list[ObjectRef]:
    message = event.get("message")
    if not isinstance(message, dict):
        raise InvalidArgumentError("message", "is not a JSON object")
    entries = [message.get(name) for name in ("new_entry", "old_entry")]
    present = [entry for entry in entries if isinstance(entry, dict)]
    if any(entry.get("is_directory") for entry in present):
        return []
    paths = [event.get("key")]
    new = message.get("new_entry")
    if isinstance(new, dict) and isinstance(new.get("name"), str):
        parent = message.get("new_parent_path")
        if isinstance(parent, str):  # after a rename another path, and both ends changed
            paths.append(f"{parent}/{new['name']}")
    refs = []
    for path in paths:
        if not isinstance(path, str):
            raise InvalidArgumentError("key", "is not a string")
        bucket, _, key = path.removeprefix(SEAWEEDFS_ROOT).partition("/")
        if not path.startswith(SEAWEEDFS_ROOT) or not key:
            continue  # the bucket itself, or a file outside all buckets
        if key.split("/")[0] != SEAWEEDFS_UPLOADS:
            refs.append(_ref(bucket, key, "key"))
    return refs


def _ref(bucket: Any, key: Any, field: str) -> ObjectRef:
    if not isinstance(bucket, str) or not isinstance(key, str):
        raise InvalidArgumentError(field, "names no bucket and object key")
    return ObjectRef.parse(f"{bucket}/{key}", field)
