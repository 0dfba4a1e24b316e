"""Parts of the search page: addresses of pictures, thumbnails, facets and keys of uploads."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minio import Minio
from PIL import Image
from pydantic import BaseModel

from cra.search.v1 import search_pb2 as pb
from cra.services.web import facets
from cra.services.web.links import Links
from cra.services.web.messages import FilterIn, HitOut, SearchIn, SearchOut, TermIn
from cra.services.web.thumbnails import BOXES, Thumbnails
from cra.services.web.uploads import AT_ONCE, MAX_FOLDER, MAX_NAME, Uploads, key_of
from cra.shared.domain import ObjectDetails, ObjectRef, Version
from cra.shared.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from cra.shared.thumbnails import render
from tests.photos import photograph
from tests.pictures import FILES, colourful, encode

REF = ObjectRef("images", "目录/图 1+a%.jpg")
DIGEST = "0123456789abcdef" * 4


def test_a_token_stays_the_same_and_ends() -> None:
    """It is equal for a lifetime, good for one to two, and nobody else's key reads it.

    Break: put the current second into the payload.
    """
    now = [1000.0]
    links = Links("key", 100, lambda: now[0])
    token = links.make(REF, "etag")
    now[0] = 1099.0
    assert links.make(REF, "etag") == token
    assert links.read(token) == (REF, "etag", 1200)
    now[0] = 1200.0
    with pytest.raises(NotFoundError, match="search again"):
        links.read(token)
    with pytest.raises(NotFoundError):
        Links("other", 100, lambda: 1000.0).read(token)


@given(st.text(max_size=200))
def test_what_is_no_token_is_not_found(token: str) -> None:
    """Whatever stands in an address, the answer is the same error."""
    with pytest.raises(NotFoundError):
        Links("key", 100).read(token)


@pytest.mark.parametrize("kind", sorted(FILES))
def test_every_format_has_a_thumbnail(kind: str) -> None:
    """What can be indexed can be shown: as WebP, in its proportions, never larger than it is."""
    shown = Image.open(io.BytesIO(render(FILES[kind], BOXES["thumbnail"])))
    assert (shown.format, shown.size) == ("WEBP", (40, 28))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1600, 1200), (512, 384)), ((300, 900), (128, 384)), ((4000, 400), (1152, 115))],
)
def test_a_thumbnail_fits_its_box(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """Large, tall and wide pictures keep their proportions."""
    shown = Image.open(io.BytesIO(render(photograph(1, size), BOXES["thumbnail"])))
    assert all(abs(one - other) <= 1 for one, other in zip(shown.size, expected, strict=True))


def test_a_thumbnail_is_upright_and_says_nothing_of_its_maker() -> None:
    """It is turned as its EXIF data says, which then are left out, place and camera with them.

    Break: pass `exif` on in `render`.
    """
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    turned = encode(colourful(80, 40), "JPEG", exif=exif)
    shown = Image.open(io.BytesIO(render(turned, BOXES["thumbnail"])))
    assert shown.size == (40, 80)
    assert not shown.getexif()


class _Bucket:
    """Fulfils what `Thumbnails` asks of an object store."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.fetched = 0
        self.held = threading.Event()
        self.held.set()

    def fetch(
        self, ref: ObjectRef, check: Callable[[ObjectDetails], None]
    ) -> tuple[ObjectDetails, bytes] | None:
        """See `ports.ObjectStore`."""
        if ref.key == "gone":
            return None
        details = ObjectDetails(ref, Version("etag", 1), len(self.content))
        check(details)
        self.fetched += 1
        self.held.wait(10)
        return details, self.content


def _thumbnails(bucket: _Bucket, folder: Path, most: int = 2**30) -> Thumbnails:
    return Thumbnails(bucket, folder, most, 2**20)  # type: ignore[arg-type]


def test_a_thumbnail_is_made_once_however_many_ask(tmp_path: Path) -> None:
    """Eight that ask at a time share one decoding, and a later process needs none.

    Break: leave `_under_way` out.
    """
    bucket = _Bucket(FILES["JPEG"])
    thumbnails = _thumbnails(bucket, tmp_path)
    bucket.held.clear()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(thumbnails.get, "thumbnail", REF, "etag") for _ in range(8)]
        bucket.held.set()
        assert len({one.result() for one in asked}) == 1
    assert bucket.fetched == 1
    _thumbnails(bucket, tmp_path).get("thumbnail", REF, "etag")
    assert bucket.fetched == 1


def test_the_folder_of_thumbnails_stays_within_its_size(tmp_path: Path) -> None:
    """Those that were asked for longest ago go first; leftovers of a killed process do at once.

    Break: leave the loop of `_keep` out.
    """
    bucket = _Bucket(FILES["JPEG"])
    size = len(render(FILES["JPEG"], BOXES["thumbnail"]))
    (tmp_path / "tmpleft").write_bytes(b"half")
    thumbnails = _thumbnails(bucket, tmp_path, size * 3)
    for number in range(3):
        thumbnails.get("thumbnail", ObjectRef("images", f"{number}"), "etag")
    thumbnails.get("thumbnail", ObjectRef("images", "0"), "etag")
    thumbnails.get("thumbnail", ObjectRef("images", "3"), "etag")
    assert bucket.fetched == 4
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= size * 3
    thumbnails.get("thumbnail", ObjectRef("images", "0"), "etag")
    assert bucket.fetched == 4
    thumbnails.get("thumbnail", ObjectRef("images", "1"), "etag")
    assert bucket.fetched == 5


def test_what_has_no_thumbnail_is_not_found(tmp_path: Path) -> None:
    """Another version, an object that is gone, one that is too large, and what is no picture."""
    picture, text, large = _Bucket(FILES["PNG"]), _Bucket(b"text"), _Bucket(b"x" * (2**20 + 1))
    cases = [
        (picture, REF, "older"),
        (picture, ObjectRef("images", "gone"), "etag"),
        (text, REF, "etag"),
        (large, REF, "etag"),
    ]
    for bucket, ref, etag in cases:
        with pytest.raises(NotFoundError):
            _thumbnails(bucket, tmp_path).get("thumbnail", ref, etag)


def test_a_folder_that_cannot_be_written_keeps_the_page_from_starting(tmp_path: Path) -> None:
    """The error names the setting."""
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPreconditionError, match="CRA_WEB_THUMBNAILS"):
        _thumbnails(_Bucket(b""), tmp_path / "file" / "folder")


def test_facets_leave_out_what_tells_pictures_apart() -> None:
    """A name whose values hardly repeat is no facet; folders end in a slash; most come first."""
    hits = [
        (
            "images",
            f"a/b/{n}.jpg" if n < 7 else f"{n}.jpg",
            {"city": "西安" if n % 3 else "北京", "id": f"{n}"},
        )
        for n in range(10)
    ]
    found = facets.count(hits)
    assert found.hits == 10
    assert list(found.metadata) == ["city"]
    assert [(one.value, one.count) for one in found.metadata["city"]] == [("西安", 6), ("北京", 4)]
    assert [(one.value, one.count) for one in found.folders] == [("a/b/", 7)]


@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("塔.JPG", "uploads", "uploads/0123456789ab-塔.JPG"),
        ("C:\\photos\\gate 1.png", "", "0123456789ab-gate-1.png"),
        ("../../etc/passwd", "../up//./x", "up/x/0123456789ab-passwd"),
        ("???", "", "0123456789ab-picture"),
        (".htaccess", "", "0123456789ab-htaccess"),
        ("a\0b\n.jpg", "", "0123456789ab-a-b-.jpg"),
    ],
)
def test_keys_of_uploads(name: str, folder: str, expected: str) -> None:
    """A name loses its path and whatever a store or a shell could misread."""
    assert key_of(name, folder, DIGEST) == expected


@given(st.text(max_size=MAX_NAME), st.text(max_size=MAX_FOLDER))
def test_every_upload_has_a_key_that_a_store_takes(name: str, folder: str) -> None:
    """Whatever the name, each part is short enough for a file's name, and none goes upwards."""
    key = key_of(name, folder, DIGEST)
    ObjectRef.parse(f"images/{key}")
    for part in key.split("/"):
        assert 0 < len(part.encode()) <= 255
        assert part not in {".", ".."}


@pytest.mark.parametrize(
    ("ours", "contract"),
    [
        (SearchIn, pb.SearchRequest),
        (TermIn, pb.Term),
        (FilterIn, pb.Filter),
        (SearchOut, pb.SearchResponse),
        (HitOut, pb.Hit),
    ],
)
def test_the_json_has_every_field_of_the_contract(ours: type[BaseModel], contract: type) -> None:
    """What gRPC can ask and answer, JSON can; it names requests and pictures itself.

    Break: leave `fold_duplicates` out of `SearchIn`.
    """
    fields = {one.name for one in contract.DESCRIPTOR.fields}  # type: ignore[attr-defined]
    assert fields - set(ours.model_fields) <= {"request_id", "include_url", "url", "url_expires_at"}


def test_an_upload_that_stops_coming_is_given_up() -> None:
    """However many stall, the next one is taken.

    Break: no timeout in `_flowing`.
    """

    async def stalls() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    async def empty() -> AsyncIterator[bytes]:
        nothing: tuple[bytes, ...] = ()
        for piece in nothing:
            yield piece

    async def ask() -> None:
        uploads = Uploads(Minio("127.0.0.1:9"), "images", 10, stalls=0.05)
        puts = (uploads.put(stalls(), "a.png", "", "") for _ in range(AT_ONCE))
        given_up = await asyncio.gather(*puts, return_exceptions=True)
        assert all(isinstance(one, DeadlineExceededError) for one in given_up)
        with pytest.raises(InvalidArgumentError, match="is empty"):
            await uploads.put(empty(), "a.png", "", "")

    asyncio.run(asyncio.wait_for(ask(), 20))
