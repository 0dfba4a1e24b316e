"""What Chinese CLIP's build_lmdb_dataset.py makes: `SPLIT/imgs` and `SPLIT/pairs`, each an LMDB.

A pair is a pickle, which could do anything when it is loaded. Only the few operations that a tuple
of two ids and a text needs are let through.
"""

import base64
import binascii
import io
import pickle
import pickletools
import threading
import weakref
from pathlib import Path
from typing import Any, Final

import lmdb

from cra.services.training.data.dataset import BadDataError, Problem
from cra.shared.model.pixels import BadImageError

_ALPHABET: Final = bytes.maketrans(b"-_", b"+/")
_COUNT_OF_IMAGES: Final = b"num_images"
_COUNT_OF_PAIRS: Final = b"num_samples"
_LARGEST_PAIR: Final = 65_536
"""Bytes; a text has at most 1,000 characters."""
_OPERATIONS: Final = frozenset(
    {
        "PROTO", "FRAME", "STOP", "TUPLE3", "MEMOIZE", "BINPUT", "BINGET",
        "BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE",
    }
)  # fmt: skip
"""LONG_BINPUT is not among them: one of five bytes makes the unpickler ask for 32 GB."""


class Database:
    """The databases of one split.

    Raises:
        BadDataError: they cannot be opened, or were not finished.
    """

    def __init__(self, folder: Path) -> None:
        self.split = folder.name
        self._folder = folder
        self._images = _Environment.open(folder / "imgs")
        self._pairs = _Environment.open(folder / "pairs")
        try:
            count = self._pairs.get(_COUNT_OF_PAIRS) or b""
        except OSError as error:
            raise BadDataError([Problem(str(folder / "pairs"), str(error))]) from error
        if not count.isdigit():
            raise BadDataError([Problem(str(folder / "pairs"), "was not finished")])
        self.pairs = int(count)

    def image_ids(self) -> list[str]:
        """Return the ids of all images, in the order that Chinese CLIP reads them.

        Raises:
            BadDataError: the database is damaged.
        """
        try:
            keys = self._images.keys()
        except OSError as error:
            raise BadDataError([Problem(str(self._folder / "imgs"), str(error))]) from error
        return [key.decode() for key in keys if key != _COUNT_OF_IMAGES]

    def image(self, image_id: str) -> bytes:
        """Return an encoded image.

        Raises:
            BadImageError: it is no base64.
            OSError: the database is damaged.
        """
        return decode(self._images.get(image_id.encode()) or b"")

    def pair(self, number: int) -> tuple[str, int, str]:
        """Return image id, text id and text of a pair.

        Raises:
            ValueError: it is something else.
            OSError: the database is damaged.
        """
        value = _load(self._pairs.get(str(number).encode()) or b"")
        match value:
            case (int() | str() as image_id, int(text_id), str(text)):
                return str(image_id), text_id, text
        raise ValueError("it is something else")


def find_databases(folder: Path) -> dict[str, Path]:
    """Return where the databases of each split lie: below the folder, or its own `lmdb`."""
    found = [*folder.glob("*/pairs/data.mdb"), *folder.glob("lmdb/*/pairs/data.mdb")]
    return {file.parents[1].name: file.parents[1] for file in found}


def decode(encoded: bytes) -> bytes:
    """Return what a text of base64 stands for, in either alphabet, padded or not.

    Raises:
        BadImageError: it is no base64.
    """
    text = encoded.strip().translate(_ALPHABET).rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise BadImageError("not_an_image", f"it is no base64: {error}") from error


class _Plain(pickle.Unpickler):
    """Reads tuples, numbers and texts alone."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"it wants {module_name}.{global_name}")


def _load(pickled: bytes) -> object:
    """Load a pickle that does nothing but hold data.

    Raises:
        ValueError: it is none, or does more.
    """
    if len(pickled) > _LARGEST_PAIR:
        raise ValueError(f"it has {len(pickled)} bytes")
    try:
        # All operations are looked at before the first is carried out.
        refused = {one.name for one, _, _ in pickletools.genops(pickled)} - _OPERATIONS
        if not refused:
            return _Plain(io.BytesIO(pickled)).load()
    except Exception as error:  # the unpickler raises nearly anything on hostile bytes
        raise ValueError(str(error)) from error
    raise ValueError(f"it holds the operations {', '.join(sorted(refused))}")


class _Environment:
    """One open LMDB; a process must not open one twice, so that all who read it share it."""

    def __init__(self, folder: Path) -> None:
        self._environment = lmdb.open(
            str(folder), readonly=True, create=False, lock=False, readahead=False
        )
        pages = self._environment.info()["last_pgno"] + 1
        if (folder / "data.mdb").stat().st_size < pages * self._environment.stat()["psize"]:
            # The file is mapped: to touch what is missing would end the process.
            raise lmdb.CorruptedError(f"{folder / 'data.mdb'} is cut short")

    @classmethod
    def open(cls, folder: Path) -> "_Environment":
        """Open a database, unless it is open.

        Raises:
            BadDataError: it cannot be opened.
        """
        path = folder.resolve()
        with _opening:
            known = _opened.get(path)
            if known is None:
                try:
                    known = _opened[path] = cls(path)
                except lmdb.Error as error:
                    raise BadDataError([Problem(str(folder), str(error))]) from error
            return known

    def get(self, key: bytes) -> bytes | None:
        """Return a value; raise OSError if the database is damaged."""
        try:
            with self._environment.begin() as transaction:
                value: bytes | None = transaction.get(key)
        except lmdb.Error as error:
            raise OSError(str(error)) from error
        return value

    def keys(self) -> list[bytes]:
        """Return all keys, in their order; raise OSError if the database is damaged."""
        try:
            with self._environment.begin() as transaction:
                return list(transaction.cursor().iternext(keys=True, values=False))
        except lmdb.Error as error:
            raise OSError(str(error)) from error


_opening: Final = threading.Lock()
_opened: Final[weakref.WeakValueDictionary[Path, _Environment]] = weakref.WeakValueDictionary()
