"""What every reader of pairs shares: which columns mean what, and how bad rows are dealt with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

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
        return tuple(dict.fromkeys(found))

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
                image_id, group, captions, read, general, dict(attributes)
            )
            return
        if known.group != group:
            self.bad(where, f"{image_id} has group {group!r} here and {known.group!r} before")
            return
        self._images[image_id] = Image(
            image_id,
            group,
            tuple(dict.fromkeys((*known.captions, *captions))),
            known.read,
            tuple(dict.fromkeys((*known.general, *general))),
            {**known.attributes, **attributes},
        )

    def dataset(self, where: str) -> DataSet:
        """Return what was gathered.

        Raises:
            BadDataError: nothing was.
        """
        if not self._images:
            raise BadDataError(self.problems or [Problem(where, "holds no images with captions")])
        return DataSet(tuple(self._images.values()), tuple(self.problems))
