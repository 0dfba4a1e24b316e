"""Pairs that lie in a bucket: images whose user metadata holds their captions."""

import functools
import urllib.parse
from typing import Final

from cra.services.training.data.dataset import BadDataError, DataSet, Problem
from cra.services.training.data.reading import FOLDER, Collector, Columns
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.domain import ObjectRef
from cra.shared.errors import NotFoundError
from cra.shared.ports import ObjectStore
from cra.shared.settings import Settings

SCHEME: Final = "s3"
SEPARATOR: Final = "|"
"""Between the captions of one metadata value, since a header cannot hold a line break."""


def is_bucket(location: str) -> bool:
    """Tell whether a location is `s3://bucket` or `s3://bucket/prefix`."""
    return location.startswith(f"{SCHEME}://")


def read_bucket(location: str, columns: Columns, settings: Settings, split: str = "") -> DataSet:
    """Read all objects below a prefix; columns are names of user metadata.

    Objects without captions are left out without a word: a bucket holds other things too.

    Raises:
        BadDataError: nothing can be read, or an object is bad and that shall stop the reading.
        UnavailableError: the object store does not answer.
    """
    parts = urllib.parse.urlsplit(location)
    store: ObjectStore = S3ObjectStore(settings)
    prefix = parts.path.lstrip("/")
    collector = Collector(columns)
    try:
        found = list(store.list(parts.netloc))
    except NotFoundError as error:
        raise BadDataError([Problem(location, error.message)]) from error
    for item in found:
        if item.ref.key.startswith(prefix):
            _take(store, item.ref, columns, split, collector)
    return collector.dataset(location)


def _take(
    store: ObjectStore, ref: ObjectRef, columns: Columns, split: str, collector: Collector
) -> None:
    details = store.look(ref)
    if details is None:  # deleted meanwhile
        return
    metadata = details.metadata
    if columns.split and split and metadata.get(columns.split.lower(), "") != split:
        return
    texts = [
        [one.strip() for one in metadata.get(name.lower(), "").split(SEPARATOR) if one.strip()]
        if name
        else []
        for name in (columns.caption, columns.general)
    ]
    if not any(texts):
        return
    where = ref.image_id
    captions = collector.check_captions(where, texts[0], columns.caption)
    general = collector.check_captions(where, texts[1], columns.general)
    group = (
        ref.key.rpartition("/")[0]
        if columns.group == FOLDER
        else metadata.get(columns.group.lower(), "")
    )
    if not group:
        collector.bad(where, f"no group: the metadata {columns.group} is missing or empty")
        return
    if captions is None or general is None:
        return
    attributes = {name: metadata.get(name.lower(), "") for name in columns.attributes}
    read = functools.partial(_read, store, ref)
    collector.add(where, ref.image_id, group, captions, general, attributes, read)


def _read(store: ObjectStore, ref: ObjectRef) -> bytes:
    return store.read(ref) or b""
