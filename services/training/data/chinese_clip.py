"""Chinese CLIP's own format, in which MUGE, Flickr30K-CN and COCO-CN come.

`SPLIT_imgs.tsv` holds an image id and the base64 of an image a line, `SPLIT_texts.jsonl` an object
with text_id, text and image_ids a line; `lmdb/SPLIT` is what its build_lmdb_dataset.py makes of
them. These sets name no buildings: images that share a text are a group, and the splits that come
with them are kept.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cra.services.training.data.chinese_clip_lmdb import Database, decode, find_databases
from cra.services.training.data.dataset import BadDataError, DataSet, Problem
from cra.services.training.data.reading import Collector, Columns

_TEXTS: Final = "_texts.jsonl"
_IMAGES: Final = "_imgs.tsv"
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_="


@dataclass(frozen=True)
class Text:
    """A text and the images that it describes."""

    text_id: int
    text: str
    image_ids: tuple[str, ...]
    where: str = field(compare=False)


@dataclass(frozen=True)
class _Stored:
    """An image that was not read yet."""

    where: str
    read: Callable[[], bytes]


def has_split(folder: Path, split: str) -> bool:
    """Tell whether a folder holds a split in this format."""
    return split in splits(folder)


def splits(folder: Path) -> list[str]:
    """Return the splits of a folder, sorted; none if it is not of this format."""
    names = {file.name.removesuffix(_TEXTS) for file in folder.glob(f"*{_TEXTS}")}
    return sorted(names.union(find_databases(folder)))


def read_chinese_clip(folder: Path, split: str, columns: Columns) -> DataSet:
    """Read a split; TSV and JSONL if they are there, else LMDB.

    Images come in the order of their ids, as in LMDB: both forms give the same data set.

    Raises:
        BadDataError: nothing can be read, or a row is bad and that shall stop the reading.
    """
    collector = Collector(columns)
    images, texts = _read(folder, split, collector)
    groups = _components(texts)
    captions: dict[str, list[str]] = {image_id: [] for image_id in images}
    for text in texts:
        for image_id in text.image_ids:
            captions[image_id].append(text.text)
    for image_id in sorted(images, key=str.encode):
        stored = images[image_id]
        own = tuple(dict.fromkeys(captions[image_id]))
        group = groups.get(image_id, image_id)
        collector.add(stored.where, image_id, group, own, (), {}, stored.read)
    return collector.dataset(str(folder))


def read_texts(folder: Path, split: str) -> list[Text]:
    """Return the good texts of a split with their ids, to write answers in this format.

    Raises:
        BadDataError: nothing can be read.
    """
    return _read(folder, split, Collector(Columns()))[1]


def _read(folder: Path, split: str, collector: Collector) -> tuple[dict[str, _Stored], list[Text]]:
    """Return the images by id, and the texts all of whose images are there."""
    tsv, jsonl = folder / f"{split}{_IMAGES}", folder / f"{split}{_TEXTS}"
    images: dict[str, _Stored]
    texts: Iterable[Text]
    if tsv.is_file() and jsonl.is_file():
        images = dict(_tsv_images(tsv, collector))
        texts = _jsonl_texts(jsonl, collector)
    elif place := find_databases(folder).get(split):
        database = Database(place)
        images = {
            image_id: _Stored(
                f"{split}/imgs:{image_id}", functools.partial(database.image, image_id)
            )
            for image_id in database.image_ids()
        }
        texts = _lmdb_texts(database, collector)
    elif jsonl.is_file():
        raise BadDataError([Problem(tsv.name, "is missing")])
    else:
        raise BadDataError([Problem(str(folder), f"holds no split {split!r}")])
    return images, list(_good(texts, images, collector))


def _good(
    texts: Iterable[Text], images: dict[str, _Stored], collector: Collector
) -> Iterator[Text]:
    seen: set[int] = set()
    for text in texts:
        if collector.check_captions(text.where, text.text, "text") is None:
            continue
        unknown = [image_id for image_id in text.image_ids if image_id not in images]
        if unknown:
            collector.bad(text.where, f"image_ids: there is no image {', '.join(unknown)}")
        elif not text.image_ids:
            collector.bad(text.where, "image_ids: names no image")
        elif text.text_id in seen:
            collector.bad(text.where, f"text_id {text.text_id} is there already")
        else:
            seen.add(text.text_id)
            yield text


def _jsonl_texts(file: Path, collector: Collector) -> Iterator[Text]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{file.name}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                collector.bad(where, f"is no JSON in UTF-8: {error}")
                continue
            text = _text(row, where) if isinstance(row, dict) else None
            if text is None:
                collector.bad(where, "is no object with text_id, text and image_ids")
            else:
                yield text


def _text(row: dict[str, object], where: str) -> Text | None:
    text_id, text, image_ids = row.get("text_id"), row.get("text"), row.get("image_ids")
    if type(text_id) is not int or not isinstance(text, str) or not isinstance(image_ids, list):
        return None
    if not all(type(image_id) in {int, str} for image_id in image_ids):
        return None
    return Text(text_id, text, tuple(dict.fromkeys(map(str, image_ids))), where)


def _lmdb_texts(database: Database, collector: Collector) -> Iterator[Text]:
    """Yield each text of a database of pairs with all its images."""
    texts: dict[int, Text] = {}
    for number in range(database.pairs):
        where = f"{database.split}/pairs:{number}"
        try:
            image_id, text_id, text = database.pair(number)
        except ValueError as error:
            collector.bad(where, f"is no image id, text id and text: {error}")
            continue
        known = texts.setdefault(text_id, Text(text_id, text, (), where))
        if known.text != text:
            collector.bad(where, f"text_id {text_id} has another text before")
            continue
        image_ids = tuple(dict.fromkeys((*known.image_ids, image_id)))
        texts[text_id] = Text(text_id, text, image_ids, known.where)
    yield from texts.values()


def _tsv_images(file: Path, collector: Collector) -> Iterator[tuple[str, _Stored]]:
    """Yield each image by its id; only places in the file are kept in memory."""
    seen = set()
    with file.open("rb") as lines:
        start = 0
        for number, line in enumerate(lines, 1):
            where = f"{file.name}:{number}"
            here, start = start, start + len(line)
            if not line.strip(b" \r\n"):
                continue
            key, tab, content = line.rstrip(b"\r\n").partition(b"\t")
            place = here + len(key) + len(tab)
            image_id = key.decode(errors="replace").strip()
            # Its alphabet alone is looked at: to decode it all is what `check_images` does.
            if not tab or not image_id or "�" in image_id:
                collector.bad(where, "is no image id, tab and base64")
            elif not content or content.translate(None, _BASE64):
                collector.bad(where, f"image {image_id} is no base64")
            elif image_id in seen:
                collector.bad(where, f"image {image_id} is there already")
            else:
                seen.add(image_id)
                read = functools.partial(_tsv_image, file, place, len(content))
                yield image_id, _Stored(where, read)


def _tsv_image(file: Path, place: int, length: int) -> bytes:
    with file.open("rb") as content:
        content.seek(place)
        return decode(content.read(length))


def _components(texts: Iterable[Text]) -> dict[str, str]:
    """Return for each image the first image that it hangs together with through equal texts."""
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
