"""A folder of images with `captions.jsonl` or `captions.csv`, one row an image or a caption."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cra.services.training.data.dataset import BadDataError, DataSet, Problem
from cra.services.training.data.reading import FOLDER, Collector, Columns

NAMES: Final = ("captions.jsonl", "captions.csv")
_FILE: Final = "file"


def find_index(location: Path) -> Path | None:
    """Return the index of a folder, or the file itself if it is one."""
    if location.is_file() and location.suffix in {".jsonl", ".csv"}:
        return location
    return next((location / name for name in NAMES if (location / name).is_file()), None)


def read_folder(index: Path, columns: Columns, split: str = "") -> DataSet:
    """Read a folder of images.

    A row names its image under `file`, relative to the folder.

    Args:
        index: a JSONL or CSV file, in UTF-8.
        columns: what is read.
        split: rows of other splits are left out, if the columns name a split.

    Raises:
        BadDataError: nothing can be read, or a row is bad and that shall stop the reading.
    """
    collector = Collector(columns)
    rows = _jsonl(index, collector) if index.suffix == ".jsonl" else _csv(index, collector)
    for where, row in rows:
        _take(index.parent, where, row, columns, split, collector)
    return collector.dataset(str(index))


def _take(
    folder: Path,
    where: str,
    row: Mapping[str, Any],
    columns: Columns,
    split: str,
    collector: Collector,
) -> None:
    if columns.split and split and str(row.get(columns.split, "")) != split:
        return
    file = _file(folder, row)
    if isinstance(file, str):
        collector.bad(where, file)
        return
    name = str(row[_FILE])
    group = row.get(columns.group)
    if columns.group == FOLDER:
        group = Path(name).parent.as_posix()
    if group is None or group == "":
        collector.bad(where, f"no group: {columns.group} is missing or empty")
        return
    column = columns.caption
    if column not in row and f"{column}s" in row:
        column = f"{column}s"
    captions = collector.check_captions(where, row.get(column, []), column)
    general = collector.check_captions(where, row.get(columns.general, []), columns.general)
    if captions is None or general is None:
        return
    if captions or general:
        attributes = {one: _attribute(row, one) for one in columns.attributes}
        collector.add(where, name, str(group), captions, general, attributes, file.read_bytes)
    else:
        collector.bad(where, f"no caption: {column} is missing or empty")


def _file(folder: Path, row: Mapping[str, Any]) -> Path | str:
    """Return the file that a row names, or what is wrong with it."""
    name = row.get(_FILE)
    if not isinstance(name, str) or not name:
        return f"{_FILE} is missing"
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        return f"{_FILE} {name!r} leads out of the folder"
    if not file.is_file():
        return f"there is no file {name!r}"
    return file


def _jsonl(index: Path, collector: Collector) -> Iterator[tuple[str, dict[str, Any]]]:
    with index.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{index.name}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                collector.bad(where, f"is no JSON in UTF-8: {error}")
                continue
            if not isinstance(row, dict):
                collector.bad(where, "is no JSON object")
                continue
            yield where, row


def _csv(index: Path, collector: Collector) -> Iterator[tuple[str, dict[str, Any]]]:
    last = 1
    try:
        with index.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            if not reader.fieldnames or _FILE not in reader.fieldnames:
                raise BadDataError([Problem(f"{index.name}:1", f"has no column {_FILE!r}")])
            for row in reader:
                # A quoted field may run over several lines; a row is named by its first.
                where = f"{index.name}:{last + 1}"
                last = reader.line_num
                if None in row or None in row.values():
                    collector.bad(
                        where, f"has not the {len(reader.fieldnames)} columns of the head"
                    )
                    continue
                yield where, {name: value for name, value in row.items() if value != ""}
    except (UnicodeDecodeError, csv.Error) as error:
        collector.bad(f"{index.name}:{last + 1}", f"is no CSV in UTF-8: {error}")


def _attribute(row: Mapping[str, Any], name: str) -> str:
    column, sign, key = name.partition(":")
    value = row.get(column, "")
    if not sign or not isinstance(value, dict):
        return str(value)
    if key in value:
        return str(value[key])
    sized = {
        one.partition("=")[2]: size
        for one, size in value.items()
        if one.startswith(f"{key}=") and isinstance(size, int | float)
    }
    return max(sized, key=sized.__getitem__, default="")
