"""The page that `cra search --html` writes: whole in itself, and nothing in it runs."""

import base64
import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from cra.search.v1 import search_pb2 as pb
from cra.services.cli.page import SIDE, Thumbnail, fetch_thumbnails, render
from cra.shared.model.pixels import BadImageError
from cra.shared.thumbnails import render as render_thumbnail
from tests.fakes import picture

HOSTILE = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"


@contextmanager
def objects(files: dict[str, bytes]) -> Iterator[str]:
    """Serve files over HTTP; yields where."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_names_and_captions_are_text() -> None:
    """Whatever keys, metadata, queries and problems hold, the page shows it and runs none of it.

    Break: autoescape off.
    """
    response = pb.SearchResponse(text_release=HOSTILE, image_tower="f00d")
    response.hits.add(rank=1, image_id=f"images/{HOSTILE}", key=HOSTILE).metadata["c"] = HOSTILE
    response.hits.add(rank=2, image_id="images/b", key=HOSTILE)
    page = render(response, HOSTILE, [Thumbnail(problem=HOSTILE), Thumbnail("QUJD")])
    assert "<script" not in page
    assert "{{ 7 * 7 }}" in page
    assert page.count("&lt;script&gt;") == 7
    assert "default-src 'none'" in page


def test_the_page_needs_nothing_else() -> None:
    """It asks no other address for anything: pictures lie in it."""
    response = pb.SearchResponse()
    response.hits.add(rank=1, image_id="images/a", url="http://store/a?signature=secret")
    page = render(response, "塔", [Thumbnail("QUJD")])
    assert re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^"\s>]*)', page) == [
        "data:image/webp;base64,QUJD"
    ]
    assert "signature" not in page


def test_relevance_stands_beside_the_score_where_there_is_one() -> None:
    """A hit's relevance is on the page as in the table; a hit without one shows none."""
    response = pb.SearchResponse()
    response.hits.add(rank=1, image_id="images/a", score=0.4, relevance=0.18)
    response.hits.add(rank=2, image_id="images/b", score=0.3)
    page = render(response, "塔", [Thumbnail("QUJD")] * 2)
    assert "<strong>0.4000</strong> · relevance 0.18" in page
    assert page.count("relevance") == 1


def test_thumbnails_are_made_of_the_objects() -> None:
    """Each hit has its own picture made small; one that is gone, bad or too large says so.

    Break: let a BadImageError through in `_thumbnail`.
    """
    files = {
        "/red": picture((200, 30, 30), (1600, 1200), "JPEG"),
        "/green": picture((30, 200, 30), (20, 3000)),
        "/text": b"this is text",
        "/large": bytes(200_001),
    }
    with objects(files) as where:
        hits = [pb.Hit(url=f"{where}/{name}") for name in ("red", "green", "text", "large", "none")]
        hits.append(pb.Hit(url="http://127.0.0.1:1/x"))
        counted = []
        found = fetch_thumbnails(hits, 200_000, lambda: counted.append(1))
    sizes = []
    for one, colour in zip(found[:2], [(200, 30, 30), (30, 200, 30)], strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(one.data)))
        sizes.append(image.size)
        middle = image.getpixel((image.width // 2, image.height // 2))
        assert isinstance(middle, tuple)
        assert max(abs(a - b) for a, b in zip(middle, colour, strict=True)) < 12
    assert sizes == [(SIDE, SIDE * 3 // 4), (2, SIDE)]
    problems = [one.problem for one in found[2:]]
    assert "not an image" in problems[0]
    assert problems[1:3] == ["over 200000 bytes", "the object is gone"]
    assert "does not answer" in problems[3]
    assert len(counted) == 6


def test_a_thumbnail_is_upright_and_clear_where_its_picture_is() -> None:
    """A photo turned by EXIF is turned back, what is clear stays so, and no text is a picture.

    Break: `convert("RGB")` alone.
    """
    image = Image.new("RGB", (400, 200), (10, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert Image.open(io.BytesIO(render_thumbnail(buffer.getvalue(), (100, 100)))).size == (50, 100)
    buffer = io.BytesIO()
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(buffer, "PNG")
    shown = Image.open(io.BytesIO(render_thumbnail(buffer.getvalue(), (100, 100))))
    assert shown.size == (50, 50)
    assert shown.convert("RGBA").getpixel((25, 25))[3] == 0  # type: ignore[index]
    with pytest.raises(BadImageError):
        render_thumbnail(b"text", (100, 100))
