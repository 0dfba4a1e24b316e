"""Chinese CLIP's own format, in which MUGE, Flickr30K-CN and COCO-CN come.

`SPLIT_imgs.tsv` holds an image id and the base64 of an image a line, `SPLIT_texts.jsonl` an object
with text_id, text and image_ids a line; `lmdb/SPLIT` is what its build_lmdb_dataset.py makes of
them. These sets name no buildings: images that share a text are a group, and the splits that come
with them are kept.
"""

import base64
import binascii
import functools
import io
import json
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import lmdb

from cra.services.training.data.dataset import BadDataError, DataSet, Problem
from cra.services.training.data.reading import Collector, Columns

_ALPHABET: Final = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True)
class Text:
    """A text and the images that it describes."""

    text_id: int
    text: str
    image_ids: tuple[str, ...]
    where: str


def has_split(folder: Path, split: str) -> bool:
    """Tell whether a folder holds a split in this format."""
    return (folder / f"{split}_texts.jsonl").is_file() or _lmdb(folder, split) is not None


def splits(folder: Path) -> list[str]:
    """Return the splits of a folder, sorted; none if it is not of this format."""
    names = {file.name.removesuffix("_texts.jsonl") for file in folder.glob("*_texts.jsonl")}
    for parent in (folder, folder / "lmdb"):
        names |= {pairs.parent.name for pairs in parent.glob("*/pairs") if pairs.is_dir()}
    return sorted(names)


def read_chinese_clip(folder: Path, split: str, columns: Columns) -> DataSet:
    """Read a split; TSV and JSONL if they are there, else LMDB.

    Raises:
        BadDataError: nothing can be read, or a row is bad and that shall stop the reading.
    """
    collector = Collector(columns)
    images: dict[str, Callable[[], bytes]]
    if (folder / f"{split}_texts.jsonl").is_file():
        texts = list(_jsonl_texts(folder / f"{split}_texts.jsonl", collector))
        images = dict(_tsv_images(folder / f"{split}_imgs.tsv", collector))
    else:
        database = _lmdb(folder, split)
        if database is None:
            raise BadDataError([Problem(str(folder), f"holds no split {split!r}")])
        texts = list(_lmdb_texts(database / "pairs", collector))
        images = _lmdb_images(database / "imgs")
    groups = _components(texts)
    captions: dict[str, list[str]] = {image_id: [] for image_id in images}
    for text in texts:
        if collector.check_captions(text.where, text.text, "text") is None:
            continue
        for image_id in text.image_ids:
            if image_id not in images:
                collector.bad(text.where, f"image_ids: there is no image {image_id}")
            else:
                captions[image_id].append(text.text)
    for image_id, read in images.items():
        group = groups.get(image_id, image_id)
        where = f"{split} image {image_id}"
        own = tuple(dict.fromkeys(captions[image_id]))
        collector.add(where, image_id, group, own, (), {}, read)
    return collector.dataset(str(folder))


def read_texts(folder: Path, split: str) -> list[Text]:
    """Return the texts of a split with their ids, so that answers can be written in this format.

    Raises:
        BadDataError: a row is bad.
    """
    collector = Collector(Columns(on_error="stop"))
    file = folder / f"{split}_texts.jsonl"
    if file.is_file():
        return list(_jsonl_texts(file, collector))
    database = _lmdb(folder, split)
    if database is None:
        raise BadDataError([Problem(str(folder), f"holds no split {split!r}")])
    return list(_lmdb_texts(database / "pairs", collector))


def _jsonl_texts(file: Path, collector: Collector) -> Iterator[Text]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{file.name}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                ids = row["image_ids"]
                yield Text(int(row["text_id"]), row["text"], tuple(map(str, ids)), where)
            except (ValueError, KeyError, TypeError) as error:
                collector.bad(where, f"is no text with text_id, text and image_ids: {error!r}")


def _tsv_images(file: Path, collector: Collector) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield each image's id and how to read it; only places in the file are kept in memory."""
    if not file.is_file():
        raise BadDataError([Problem(file.name, "is missing")])
    seen = set()
    with file.open("rb") as lines:
        start = 0
        for number, line in enumerate(lines, 1):
            where = f"{file.name}:{number}"
            image_id, tab, content = line.rstrip(b"\r\n").partition(b"\t")
            place = start + len(image_id) + len(tab)
            start += len(line)
            if not tab or not image_id or not content:
                collector.bad(where, "is no image id, tab and base64")
                continue
            name = image_id.decode(errors="replace")
            if name in seen:
                collector.bad(where, f"image {name} is there already")
                continue
            seen.add(name)
            yield name, functools.partial(_tsv_image, file, place, len(content))


def _tsv_image(file: Path, place: int, length: int) -> bytes:
    with file.open("rb") as content:
        content.seek(place)
        return _decode(content.read(length))


def _decode(encoded: bytes) -> bytes:
    """Decode base64 of either alphabet; what is none is no image, and read as such."""
    try:
        return base64.b64decode(encoded.translate(_ALPHABET), validate=True)
    except binascii.Error:
        return b""


def _lmdb(folder: Path, split: str) -> Path | None:
    places = (folder / "lmdb" / split, folder / split)
    return next((place for place in places if (place / "pairs").is_dir()), None)


@functools.cache
def _open(folder: Path) -> lmdb.Environment:
    """Open a database, once: a process must not open one twice at the same time."""
    return lmdb.open(str(folder), readonly=True, create=False, lock=False, readahead=False)


class _Plain(pickle.Unpickler):
    """Reads tuples, numbers and texts; a pickle that wants more could run anything."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"wants {module_name}.{global_name}")


def _lmdb_texts(folder: Path, collector: Collector) -> Iterator[Text]:
    merged: dict[int, Text] = {}
    with _open(folder).begin() as transaction:
        count = int(transaction.get(b"num_samples") or 0)
        for number in range(count):
            where = f"{folder.parent.name}/{folder.name}:{number}"
            try:
                value = transaction.get(str(number).encode()) or b""
                image_id, text_id, text = _Plain(io.BytesIO(value)).load()
            except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError) as error:
                collector.bad(where, f"is no image id, text id and text: {error}")
                continue
            known = merged.get(int(text_id))
            ids = (*(known.image_ids if known else ()), str(image_id))
            merged[int(text_id)] = Text(int(text_id), text, ids, where)
    yield from merged.values()


def _lmdb_images(folder: Path) -> dict[str, Callable[[], bytes]]:
    with _open(folder).begin() as transaction:
        keys = [key.decode() for key, _ in transaction.cursor() if key != b"num_images"]
    order = sorted(keys, key=lambda key: (len(key), key))
    return {key: functools.partial(_lmdb_image, folder, key) for key in order}


def _lmdb_image(folder: Path, key: str) -> bytes:
    with _open(folder).begin() as transaction:
        return _decode(transaction.get(key.encode()) or b"")


def _components(texts: Iterable[Text]) -> dict[str, str]:
    """Return for each image the first image that it hangs together with through shared texts."""
    parent: dict[str, str] = {}

    def root(image_id: str) -> str:
        parent.setdefault(image_id, image_id)
        while parent[image_id] != image_id:
            parent[image_id] = parent[parent[image_id]]
            image_id = parent[image_id]
        return image_id

    by_text: dict[str, str] = {}
    for text in texts:
        for image_id in text.image_ids:
            first = by_text.setdefault(text.text, image_id)
            low, high = sorted((root(first), root(image_id)), key=lambda one: (len(one), one))
            parent[high] = low
    return {image_id: root(image_id) for image_id in parent}
