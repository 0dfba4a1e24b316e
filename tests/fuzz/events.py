"""Bucket events, from the bytes of an HTTP body."""

import json

from cra.services.ingest.events import parse_event
from cra.shared.domain import ObjectRef
from cra.shared.errors import InvalidArgumentError

BUCKETS = ("images", "more")


def check(data: bytes) -> None:
    """Any body is refused, or gives names within our buckets, each once and as itself.

    Fails when `_ref` builds an ObjectRef without `parse`: keys get longer than any store's.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):  # as the receiver does
        return
    try:
        refs = parse_event(body, BUCKETS)
    except InvalidArgumentError as error:
        assert error.field
        assert error.problem
        return
    assert len(set(refs)) == len(refs)
    for ref in refs:
        assert ref.bucket in BUCKETS
        assert 0 < len(ref.key.encode()) <= 1024
        assert not ref.key.endswith("/")
        assert ObjectRef.parse(ref.image_id) == ref  # as it comes back out of the ledger
