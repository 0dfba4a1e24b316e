"""What every reader of pairs shares: which columns mean what, and how bad rows are dealt with."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from cra.services.training.data.dataset import BadDataError, DataSet, Image, Problem
from cra.shared.errors import InvalidArgumentError
from cra.shared.model.text import check_text

OnError = Literal["continue", "stop"]
FOLDER: Final = "folder"
"""Group column that stands for the folder an image lies in."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a data set are read, and what happens to bad rows."""

    caption: str = "caption"
    """Holds a text or a list of texts; `captions` is taken where it is missing."""
    general: str = ""
    """Everyday captions; none if empty."""
    group: str = "group"
    """Building or project; `folder` is the folder that an image lies in."""
    attributes: tuple[str, ...] = ()
    """Categories. Of a column that holds an object, `column:name` is the value under that name;
    where its keys are of the form `name=value`, the one with the largest number counts."""
    split: str = ""
    """Holds the name of the split that a row belongs to; rows of others are left out."""
    on_error: OnError = "continue"


@dataclass
class Collector:
    """Gathers the rows of a data set; rows of one image are joined."""

    columns: Columns
    problems: list[Problem] = field(default_factory=list)
    _images: dict[str, Image] = field(default_factory=dict)
    _splits: dict[str, str] = field(default_factory=dict)
    """By group."""

    def bad(self, where: str, message: str) -> None:
        """Note a bad row.

        Raises:
            BadDataError: bad rows shall stop the reading.
        """
        self.problems.append(Problem(where, message))
        if self.columns.on_error == "stop":
            raise BadDataError(self.problems)

    def check_captions(self, where: str, texts: object, column: str) -> tuple[str, ...] | None:
        """Return a row's texts, each once, or None if one is bad, which is noted."""
        found = [texts] if isinstance(texts, str) else texts
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            self.bad(where, f"{column} is neither a text nor a list of texts")
            return None
        for text in found:
            try:
                check_text(text, column)
            except InvalidArgumentError as error:
                self.bad(where, error.message)
                return None
            if not is_unicode(text):
                self.bad(where, f"{column}: is not valid Unicode")
                return None
        return tuple(dict.fromkeys(found))

    def check_group(self, where: str, value: object) -> str | None:
        """Return a row's group, or None if it has none, which is noted."""
        group = _name(value)
        if group is None:
            self.bad(where, f"no group: {self.columns.group} is missing or empty")
        return group

    def belongs(self, where: str, group: object, value: object, split: str) -> bool:
        """Tell whether a row is of the split that is read; note it if that cannot be.

        Args:
            where: of the row.
            group: as the row has it.
            value: of the column that names the split.
            split: what is read; everything if empty.
        """
        if not self.columns.split:
            return True
        name = _name(value)
        if name is None:
            self.bad(where, f"no split: {self.columns.split} is missing or empty")
            return False
        key = _name(group)
        # Rows that are not read count too: they are what a torn group would leak to.
        first = name if key is None else self._splits.setdefault(key, name)
        if split and name != split:
            return False
        if name != first:
            self.bad(where, f"split {name!r}, but group {key!r} is in {first!r} already")
            return False
        return True

    def add(
        self,
        where: str,
        image_id: str,
        group: str,
        captions: tuple[str, ...],
        general: tuple[str, ...],
        attributes: Mapping[str, str],
        read: Callable[[], bytes],
    ) -> None:
        """Take a row; a further row of an image adds its captions."""
        known = self._images.get(image_id)
        if known is None:
            self._images[image_id] = Image(
                image_id, group, captions, read, general, dict(attributes), where
            )
            return
        if known.group != group:
            self.bad(where, f"{image_id} has group {group!r} here and {known.group!r} before")
            return
        for name, value in attributes.items():
            before = known.attributes.get(name, value)
            if before != value:
                self.bad(where, f"{image_id} has {name} {value!r} here and {before!r} before")
                return
        self._images[image_id] = dataclasses.replace(
            known,
            captions=tuple(dict.fromkeys((*known.captions, *captions))),
            general=tuple(dict.fromkeys((*known.general, *general))),
            attributes={**known.attributes, **attributes},
        )

    def dataset(self, where: str) -> DataSet:
        """Return what was gathered.

        Raises:
            BadDataError: nothing was.
        """
        if not self._images:
            raise BadDataError(self.problems or [Problem(where, "holds no images with captions")])
        return DataSet(tuple(self._images.values()), tuple(self.problems))


def is_unicode(text: str) -> bool:
    """Tell whether a text can be written: JSON's escapes allow halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def attributes_of(row: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    """Return a row's categories by the last part of their columns' names; see `Columns`.

    What is missing or empty is left out.

    Raises:
        ValueError: a value is no text and no number.
    """
    found = {}
    for name in names:
        column, sign, key = name.partition(":")
        value = row.get(column)
        if sign and isinstance(value, dict):
            value = value[key] if key in value else _largest(value, key)
        if value is None or value == "":
            continue
        if not isinstance(value, str | int | float) or not is_unicode(str(value)):
            raise ValueError(f"{name} is neither a text nor a number")
        found[key or column] = str(value)
    return found


def _largest(values: Mapping[str, Any], name: str) -> str | None:
    """Return the `value` of the key `name=value` that has the largest number."""
    sized = {
        key.removeprefix(f"{name}="): size
        for key, size in values.items()
        if key.startswith(f"{name}=") and isinstance(size, int | float)
    }
    return max(sized, key=sized.__getitem__, default=None)


def _name(value: object) -> str | None:
    """Return a text or whole number as a name, if it is one."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    name = str(value).strip()
    return name if name and is_unicode(name) else None
