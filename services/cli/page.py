"""Hits as one page of HTML that needs nothing else: thumbnails lie in it."""

import base64
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import jinja2
import urllib3

from cra.search.v1 import search_pb2 as pb
from cra.shared.console import count
from cra.shared.model.pixels import BadImageError
from cra.shared.thumbnails import render as render_thumbnail

SIDE: Final = 320
"""Pixels of a thumbnail's longer side."""
AT_ONCE: Final = 8


@dataclass(frozen=True)
class Thumbnail:
    """A small WebP, or why there is none."""

    data: str = ""
    """Base64."""
    problem: str = ""


def fetch_thumbnails(
    hits: Sequence[pb.Hit], max_bytes: int, progress: Callable[[], None]
) -> list[Thumbnail]:
    """Fetch each hit's object by its signed URL and make it small; one that fails says why.

    By URL, so that whoever may search needs no credentials of the object store.

    Args:
        hits: with URLs.
        max_bytes: of one object; a larger one is left out.
        progress: called after each.
    """
    timeout = urllib3.Timeout(connect=5, read=20)
    http = urllib3.PoolManager(maxsize=AT_ONCE, timeout=timeout, retries=urllib3.Retry(1))

    def one(hit: pb.Hit) -> Thumbnail:
        try:
            return _thumbnail(http, hit.url, max_bytes)
        finally:
            progress()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, hits))


def _thumbnail(http: urllib3.PoolManager, url: str, max_bytes: int) -> Thumbnail:
    try:
        response = http.request("GET", url, preload_content=False)
        try:
            content = response.read(max_bytes + 1, decode_content=False)
        finally:
            response.release_conn()
    except urllib3.exceptions.HTTPError as error:
        return Thumbnail(problem=f"the object store does not answer: {type(error).__name__}")
    if response.status == 404:
        return Thumbnail(problem="the object is gone")
    if response.status != 200:
        return Thumbnail(problem=f"the object store answers {response.status}")
    if len(content) > max_bytes:
        return Thumbnail(problem=f"over {max_bytes} bytes")
    try:
        return Thumbnail(base64.b64encode(render_thumbnail(content, (SIDE, SIDE))).decode())
    except BadImageError as error:
        return Thumbnail(problem=error.message)


def render(response: pb.SearchResponse, asked: str, pictures: Sequence[Thumbnail]) -> str:
    """Return the page.

    Args:
        response: the hits and what answered.
        asked: the query in words.
        pictures: one for each hit.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("hits.html.jinja").render(
        asked=asked,
        response=response,
        hits=count(len(response.hits), "hit"),
        shown=list(zip(response.hits, pictures, strict=True)),
        milliseconds=response.timing.total.ToNanoseconds() / 1e6,
        made_at=datetime.now().astimezone(),
    )
