"""Opening a data set by its location, whatever format it is in, and looking at its images."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from cra.services.training.data.bucket import is_bucket, read_bucket
from cra.services.training.data.chinese_clip import has_split, read_chinese_clip, splits
from cra.services.training.data.dataset import BadDataError, DataSet, Image, Problem
from cra.services.training.data.folder import NAMES, find_index, read_folder
from cra.services.training.data.reading import Columns
from cra.shared.errors import NotFoundError
from cra.shared.model.pixels import BadImageError, Preprocessing, prepare
from cra.shared.settings import Settings

_SMALL: Final = Preprocessing(32)
"""To decode an image in full is what shows that it is good; its size then does not matter."""


def open_dataset(
    location: str, columns: Columns, split: str = "", settings: Settings | None = None
) -> DataSet:
    """Read a data set.

    Args:
        location: a folder with captions.jsonl or captions.csv, or that file; a folder in Chinese
            CLIP's format; or `s3://bucket/prefix`.
        columns: what is read, and what happens to bad rows.
        split: of the rows or files that name splits.
        settings: of the object store; needed for a bucket.

    Raises:
        BadDataError: nothing can be read, or a row is bad and that shall stop the reading.
        UnavailableError: the object store does not answer.
    """
    path = Path(location)
    bucket = is_bucket(location)
    index = None if bucket else find_index(path)
    if split and not columns.split and (bucket or index is not None):
        problem = f"has no column that names splits: none is {split!r}"
        raise BadDataError([Problem(location, problem)])
    if bucket:
        return read_bucket(location, columns, settings or Settings.load(), split)
    if index is not None:
        return read_folder(index, columns, split)
    if path.is_dir():
        if split and has_split(path, split):
            return read_chinese_clip(path, split, columns)
        known = splits(path)
        if known:
            problem = f"name one of its splits: {', '.join(known)}"
            raise BadDataError([Problem(location, problem)])
    problem = (
        f"is no data set: neither a folder with {' or '.join(NAMES)}, nor Chinese CLIP's "
        "SPLIT_texts.jsonl and SPLIT_imgs.tsv, nor s3://bucket/prefix"
    )
    raise BadDataError([Problem(location, problem)])


def has_splits(location: str, columns: Columns) -> bool:
    """Tell whether the data itself says which split an image belongs to."""
    if columns.split:
        return True
    path = Path(location)
    return not is_bucket(location) and find_index(path) is None and bool(splits(path))


def check_images(
    images: Sequence[Image], progress: Callable[[int], None] | None = None, workers: int = 2
) -> list[Problem]:
    """Decode every image in full; return what is wrong with those that are bad.

    Args:
        images: what to decode.
        progress: called with the number of images decoded so far.
        workers: threads.

    Raises:
        UnavailableError: the object store that they lie in does not answer.
    """

    def one(image: Image) -> Problem | None:
        try:
            prepare(image.read(), _SMALL)
        except BadImageError as error:
            problem = f"{error.reason}: {error.message}"
        except (OSError, NotFoundError) as error:
            problem = f"cannot be read: {error}"
        else:
            return None
        return Problem(image.row, f"{image.image_id}: {problem}")

    problems = []
    with ThreadPoolExecutor(workers, "check") as pool:
        for done, problem in enumerate(pool.map(one, images), 1):
            if problem is not None:
                problems.append(problem)
            if progress is not None:
                progress(done)
    return problems


def without(dataset: DataSet, problems: Sequence[Problem]) -> DataSet:
    """Return a data set without the images that `check_images` found bad, which it lists.

    Raises:
        BadDataError: none is left.
    """
    bad = {problem.where for problem in problems}
    images = tuple(image for image in dataset.images if image.row not in bad)
    problems = (*dataset.problems, *problems)
    if not images:
        raise BadDataError(problems)
    return DataSet(images, problems)
