"""A folder of images with `captions.jsonl` or `captions.csv`, one row an image or a caption."""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cra.services.training.data.dataset import BadDataError, DataSet, Problem
from cra.services.training.data.reading import (
    FOLDER,
    Collector,
    Columns,
    attributes_of,
    is_unicode,
)

NAMES: Final = ("captions.jsonl", "captions.csv")
_FILE: Final = "file"


def find_index(location: Path) -> Path | None:
    """Return the index of a folder, or the file itself if it is one.

    Raises:
        BadDataError: the folder has two.
    """
    if location.is_file() and location.suffix in {".jsonl", ".csv"}:
        return location
    found = [location / name for name in NAMES if (location / name).is_file()]
    if len(found) > 1:
        problem = f"has {' and '.join(NAMES)}: name the one to read"
        raise BadDataError([Problem(str(location), problem)])
    return found[0] if found else None


def read_folder(index: Path, columns: Columns, split: str = "") -> DataSet:
    """Read a folder of images.

    A row names its image under `file`, relative to the folder. Paths that lead out of it are
    refused, also by way of a link: an index may come from anywhere.

    Args:
        index: a JSONL or CSV file, in UTF-8.
        columns: what is read.
        split: rows of other splits are left out, if the columns name a split.

    Raises:
        BadDataError: nothing can be read, or a row is bad and that shall stop the reading.
    """
    collector = Collector(columns)
    rows = _jsonl(index, collector) if index.suffix == ".jsonl" else _csv(index, collector)
    root = index.parent.resolve()
    for where, row in rows:
        _take(root, where, row, split, collector)
    return collector.dataset(str(index))


def _take(root: Path, where: str, row: Mapping[str, Any], split: str, collector: Collector) -> None:
    columns = collector.columns
    group = row.get(columns.group)
    if columns.group == FOLDER:
        # None for what lies in no folder of its own: all of that is not one building.
        group = os.path.dirname(os.path.normpath(str(row.get(_FILE, ""))))
    if not collector.belongs(where, group, row.get(columns.split), split):
        return
    try:
        name = _locate(root, row.get(_FILE))
        attributes = attributes_of(row, columns.attributes)
    except ValueError as error:
        collector.bad(where, str(error))
        return
    found = collector.check_group(where, group)
    if found is None:
        return
    column = columns.caption
    if column not in row and f"{column}s" in row:
        column = f"{column}s"
    captions = collector.check_captions(where, row.get(column, []), column)
    if captions is None:
        return
    general = collector.check_captions(where, row.get(columns.general, []), columns.general)
    if general is None:
        return
    if captions or general:
        read = (root / name).read_bytes
        collector.add(where, name, found, captions, general, attributes, read)
    else:
        collector.bad(where, f"no caption: {column} is missing or empty")


def _locate(root: Path, name: object) -> str:
    """Return the path of a row's file below the folder, each file's always the same.

    Raises:
        ValueError: there is no such file in the folder.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{_FILE} is missing")
    try:
        relative = os.path.normpath(name)
        file = root / relative
        if os.path.isabs(relative) or not file.resolve().is_relative_to(root):
            raise ValueError(f"{_FILE} {name!r} leads out of the folder")
        if file.is_file():
            return Path(relative).as_posix()
    except (OSError, RuntimeError) as error:  # too long, or links in a circle
        raise ValueError(f"{_FILE} {name!r} cannot be found: {error}") from error
    raise ValueError(f"there is no file {name!r}")


def _jsonl(index: Path, collector: Collector) -> Iterator[tuple[str, dict[str, Any]]]:
    with index.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{index.name}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                collector.bad(where, f"is no JSON in UTF-8: {error}")
                continue
            if not isinstance(row, dict):
                collector.bad(where, "is no JSON object")
                continue
            yield where, row


def _csv(index: Path, collector: Collector) -> Iterator[tuple[str, dict[str, Any]]]:
    # A byte that is no UTF-8 becomes half a character: it spoils its own row, not the rest.
    with index.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        head: list[str] | None = None
        while True:
            # A quoted field may run over several lines; a row is named by its first.
            where = f"{index.name}:{reader.line_num + 1}"
            try:
                fields = next(reader, None)
            except csv.Error as error:
                collector.bad(where, f"is no CSV: {error}")
                continue
            if fields is None:
                return
            if not fields:
                continue
            if head is None:
                head = fields
                _check_head(where, head, collector.columns)
            elif len(fields) != len(head):
                collector.bad(where, f"has {len(fields)} columns, the head {len(head)}")
            elif not all(map(is_unicode, fields)):
                collector.bad(where, "is no UTF-8")
            else:
                pairs = zip(head, fields, strict=True)
                yield where, {name: value for name, value in pairs if value != ""}


def _check_head(where: str, head: list[str], columns: Columns) -> None:
    """Raise BadDataError if a column is missing: every row would lack it."""
    plural = f"{columns.caption}s"
    group = "" if columns.group == FOLDER else columns.group
    wanted = {_FILE, group, columns.general, columns.split} - {""}
    if not columns.general and plural not in head:
        wanted.add(columns.caption)
    wanted |= {name.partition(":")[0] for name in columns.attributes}
    problems = [Problem(where, f"has no column {name!r}") for name in sorted(wanted - {*head})]
    problems += [
        Problem(where, f"has the column {name!r} more than once")
        for name in dict.fromkeys(head)
        if head.count(name) > 1
    ]
    if problems:
        raise BadDataError(problems)
