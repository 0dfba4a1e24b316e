"""Pairs that lie in a bucket: images whose user metadata holds their captions."""

import functools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final

from cra.services.training.data.dataset import BadDataError, DataSet, Problem
from cra.services.training.data.reading import FOLDER, Collector, Columns, attributes_of
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.domain import ObjectDetails, ObjectRef, StoredObject
from cra.shared.errors import NotFoundError
from cra.shared.ports import ObjectStore
from cra.shared.settings import Settings

SCHEME: Final = "s3://"
SEPARATOR: Final = "|"
"""Between the captions of one metadata value, since a header cannot hold a line break."""
_LOOKS: Final = 16
"""Objects that are looked at side by side: metadata is not in a listing."""


def is_bucket(location: str) -> bool:
    """Tell whether a location is `s3://bucket` or `s3://bucket/prefix`."""
    return location.startswith(SCHEME)


def read_bucket(location: str, columns: Columns, settings: Settings, split: str = "") -> DataSet:
    """Read all objects whose keys begin with the prefix; columns are names of user metadata.

    An object with none of these columns is no pair, and left out without a word: a bucket holds
    other things too. One with some of them but no caption is a bad row.

    Raises:
        BadDataError: nothing can be read, or an object is bad and that shall stop the reading.
        UnavailableError: the object store does not answer.
    """
    bucket, _, prefix = location.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise BadDataError([Problem(location, f"is not of the form {SCHEME}bucket/prefix")])
    store: ObjectStore = S3ObjectStore(settings)
    collector = Collector(columns)
    try:
        for details in _look_at_all(store, store.list(bucket, prefix)):
            _take(store, details, split, collector)
    except (NotFoundError, ValueError) as error:  # the SDK itself refuses names no bucket can have
        raise BadDataError([Problem(location, str(error))]) from error
    return collector.dataset(location)


def _look_at_all(store: ObjectStore, listing: Iterator[StoredObject]) -> Iterator[ObjectDetails]:
    """Yield objects with their metadata in the order of the listing, as many as are still there."""
    with ThreadPoolExecutor(_LOOKS, "look") as pool:
        while batch := list(islice(listing, 8 * _LOOKS)):
            for details in pool.map(store.look, [item.ref for item in batch]):
                if details is not None:
                    yield details


def _take(store: ObjectStore, details: ObjectDetails, split: str, collector: Collector) -> None:
    columns, metadata, ref = collector.columns, details.metadata, details.ref
    # S3 knows no capitals in names of metadata.
    named = [columns.caption, columns.general, columns.group, columns.split, *columns.attributes]
    if not any(metadata.get(name.lower()) for name in named):
        return
    where = ref.image_id
    group = metadata.get(columns.group.lower(), "")
    if columns.group == FOLDER:
        group = ref.key.rpartition("/")[0]
    if not collector.belongs(where, group, metadata.get(columns.split.lower()), split):
        return
    found = collector.check_group(where, group)
    if found is None:
        return
    captions = collector.check_captions(where, _texts(metadata, columns.caption), columns.caption)
    if captions is None:
        return
    general = collector.check_captions(where, _texts(metadata, columns.general), columns.general)
    if general is None:
        return
    if not captions and not general:
        collector.bad(where, f"no caption: the metadata {columns.caption} is missing or empty")
        return
    lower = tuple(name.lower() for name in columns.attributes)
    attributes = attributes_of(metadata, lower)
    read = functools.partial(_read, store, ref)
    collector.add(where, ref.image_id, found, captions, general, attributes, read)


def _texts(metadata: Mapping[str, str], name: str) -> list[str]:
    texts = (text.strip() for text in metadata.get(name.lower(), "").split(SEPARATOR))
    return [text for text in texts if text]


def _read(store: ObjectStore, ref: ObjectRef) -> bytes:
    found = store.fetch(ref)
    if found is None:
        raise NotFoundError(f"{ref.image_id} is no longer in the object store")
    return found[1]
