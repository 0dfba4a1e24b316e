"""A data set of images and the captions that describe them, wherever it was read from."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Image:
    """One image and what is said of it."""

    image_id: str
    """Unique in its data set: a path in a folder, an id, or `bucket/key`."""
    group: str
    """Images of one building or project share it: a split never tears it apart."""
    captions: tuple[str, ...]
    """In the words that a text tower is tuned on; none for an image that is only searched."""
    read: Callable[[], bytes] = field(compare=False, repr=False)
    """Returns the encoded image."""
    general: tuple[str, ...] = ()
    """In everyday words, to see what tuning forgets."""
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Categories by name, for recall by category."""
    where: str = field(default="", compare=False, repr=False)
    """The row that it was first read from, as problems name it."""

    @property
    def row(self) -> str:
        """File and line that it was read from, or its id where there is none."""
        return self.where or self.image_id


@dataclass(frozen=True)
class Problem:
    """What is wrong with one row of a data set."""

    where: str
    """File and line, such as `captions.jsonl:12`."""
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class BadDataError(Exception):
    """A data set that cannot be used.

    Attributes:
        problems: at least one.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")
        self.problems = list(problems)


@dataclass(frozen=True)
class DataSet:
    """Images with their captions, in a fixed order."""

    images: tuple[Image, ...]
    problems: tuple[Problem, ...] = ()
    """Rows that were left out."""

    def __len__(self) -> int:
        return len(self.images)

    def pairs(self) -> Iterator[tuple[int, str]]:
        """Yield (place of the image, caption), image by image."""
        for place, image in enumerate(self.images):
            for caption in image.captions:
                yield place, caption

    def general_pairs(self) -> Iterator[tuple[int, str]]:
        """Yield (place of the image, everyday caption), image by image."""
        for place, image in enumerate(self.images):
            for caption in image.general:
                yield place, caption

    @property
    def digest(self) -> str:
        """16 hex digits that change with any id, group or caption; images are not read."""
        whole: Any = hashlib.sha256()
        for image in self.images:
            for part in (image.image_id, image.group, *image.captions, "\0", *image.general):
                whole.update(f"{len(part)}:{part}".encode())
            whole.update(b"\n")
        return str(whole.hexdigest()[:16])
