"""The file of `cra index save`: what goes in comes out, and nothing else is taken for one."""

import gzip
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cra.services.cli import index_file
from cra.services.cli.index_file import Header
from cra.shared.domain import ImageRecord, IndexedImage, ObjectRef, Version
from cra.shared.errors import FailedPreconditionError

DIMENSION = 4
HEADER = Header(image_tower="f00d", dimension=DIMENSION, saved_at=datetime.now(UTC))

COUNTS = st.integers(0, 2**40)
RECORDS = st.builds(
    ImageRecord,
    ref=st.builds(ObjectRef, st.text(), st.text()),
    version=st.builds(Version, st.text(), COUNTS),
    metadata_digest=st.text(),
    metadata=st.dictionaries(st.text(), st.text(), max_size=3),
    width=COUNTS,
    height=COUNTS,
    ingested_at=st.floats(allow_nan=False, allow_infinity=False),
)
VECTORS = arrays(
    np.float32, DIMENSION, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)
IMAGES = st.lists(st.builds(IndexedImage, RECORDS, VECTORS), max_size=5)


def written(images: list[IndexedImage], header: Header = HEADER) -> bytes:
    """Return a file."""
    raw = io.BytesIO()
    assert index_file.write(raw, header, iter(images)) == len(images)
    return raw.getvalue()


def image(number: int) -> IndexedImage:
    """Return some image."""
    record = ImageRecord(
        ObjectRef("images", f"{number}.jpg"), Version("e", 1), "0" * 16, {"城": "西安"}, 3, 2, 1.5
    )
    return IndexedImage(record, np.full(DIMENSION, number, np.float32))


def test_the_vectors_are_what_other_programs_read() -> None:
    """Gzip of JSON lines, UTF-8 as it is, vectors as base64 of little-endian float32.

    Break: write big-endian.
    """
    header, line, end = gzip.decompress(written([image(3)])).decode().splitlines()
    assert json.loads(header)["image_tower"] == "f00d"
    assert "西安" in line
    fields = json.loads(line)
    assert (fields["key"], fields["vector"]) == ("3.jpg", "AABAQAAAQEAAAEBAAABAQA==")
    assert json.loads(end)["images"] == 1


@given(IMAGES)
def test_what_goes_in_comes_out(images: list[IndexedImage]) -> None:
    """Every record whole and every vector to the bit, in their order, whatever text they hold.

    Break: write vectors as float16, or leave any field out.
    """
    raw = io.BytesIO(written(images))
    assert index_file.read_header(raw) == HEADER
    for _ in range(2):  # it is read once to check it, and once to load it
        found = list(index_file.read(raw))
        assert [one.record for one in found] == [one.record for one in images]
        for one, expected in zip(found, images, strict=True):
            assert one.vector.dtype == np.float32
            assert one.vector.tobytes() == expected.vector.tobytes()


WHOLE = written([image(number) for number in range(5)])


@given(st.integers(0, len(WHOLE) - 1))
def test_a_torn_file_is_refused_wherever_it_ends(length: int) -> None:
    """A file that lacks any number of its last bytes is refused.

    Break: no `_End`, and no error where the file ends early.
    """
    with pytest.raises(FailedPreconditionError):
        list(index_file.read(io.BytesIO(WHOLE[:length])))


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_means_nothing(place: int, change: int) -> None:
    """Any byte that is changed makes it refused, unless what is read is the same as before.

    gzip has some that mean nothing, such as a time, and the bits that fill up a byte. Break:
    `zlib.error` is let through.
    """
    changed = bytearray(WHOLE)
    changed[place] ^= change
    try:
        found = list(index_file.read(io.BytesIO(bytes(changed))))
    except FailedPreconditionError:
        return
    assert gzip.decompress(bytes(changed)) == gzip.decompress(WHOLE)
    expected = [image(number) for number in range(5)]
    assert [one.record for one in found] == [one.record for one in expected]
    assert [one.vector.tolist() for one in found] == [one.vector.tolist() for one in expected]


def edited(change: Callable[[list[bytes]], list[bytes]]) -> io.BytesIO:
    """Return a file some of whose lines somebody has changed, with gzip's checksum right."""
    return io.BytesIO(
        gzip.compress(b"".join(change(gzip.decompress(WHOLE).splitlines(keepends=True))))
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lines: [line.replace(b"3.jpg", b"4.jpg") for line in lines], "checksum"),
        (lambda lines: [*lines[:2], *lines[3:]], "checksum"),
        (lambda lines: [lines[0], *reversed(lines[1:-1]), lines[-1]], "checksum"),
        (lambda lines: lines[:-1], "its last line"),
        (lambda lines: lines[:1], "its last line"),
        (lambda lines: [*lines, *lines], "line 7"),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], "torn"),
        (lambda lines: [lines[0].replace(b'"version":1', b'"version":2'), *lines[1:]], "version"),
        (lambda lines: [lines[0].replace(b":4,", b":5,"), *lines[1:]], "5 finite numbers"),
        (lambda lines: [line.replace(b"AABAQAAA", b"AADAfwAA") for line in lines], "finite"),
        (lambda lines: [line.replace(b"AABAQAAA", b"AABAQAA") for line in lines], "no vector"),
        (lambda lines: [line.replace(b'"width":3', b'"width":"3"') for line in lines], "width"),
        (lambda _: [b"{}\n"], "its first line"),
        (lambda _: [], "its first line"),
    ],
)
def test_an_edited_file_is_refused(
    change: Callable[[list[bytes]], list[bytes]], problem: str
) -> None:
    """Lines that were changed, dropped, moved or added are found, and what is wrong is said.

    Break: compare only the number of images with the end's, or read a line without its types.
    """
    with pytest.raises(FailedPreconditionError, match=problem):
        list(index_file.read(edited(change)))


@pytest.mark.parametrize(
    "content", [b"", b"PK\3\4", b"bucket,key\n", gzip.compress(b"a,b\n", mtime=0)]
)
def test_a_foreign_file_is_refused(content: bytes) -> None:
    """What is no file of ours is refused by its header already.

    Break: take the header for granted.
    """
    with pytest.raises(FailedPreconditionError):
        index_file.read_header(io.BytesIO(content))


def test_a_line_without_end_is_not_read_into_memory() -> None:
    """A small file that unpacks to a line of gigabytes is refused before all of it is there.

    Break: `readline()` without its limit.
    """
    raw = io.BytesIO(gzip.compress(b" " * index_file.LONGEST_LINE + b"\n"))
    with pytest.raises(FailedPreconditionError, match="too long"):
        index_file.read_header(raw)
