"""`cra search`: ranked images in the terminal, as JSON, or as a page of HTML."""

from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Final

import click
from rich.progress import Progress
from rich.table import Table

from cra.search.v1 import search_pb2 as pb
from cra.services.cli.options import BucketName, Moment, Number, as_json, metadata_option
from cra.services.cli.page import fetch_thumbnails, render
from cra.services.cli.towers import real_name
from cra.shared.client import SearchClient
from cra.shared.console import count, err, examples, out, print_message, table
from cra.shared.settings import Settings

PAGE: Final = 200
"""The most hits on one page."""
LOCAL: Final = "local time unless it names a zone, as 2026-05-01T08:30Z does."


@click.command(
    epilog=examples(
        "cra search 飞檐下的红色大门",
        "cra search 玻璃幕墙 --less 夜景 --meta city=上海 --top-k 50",
        "cra search --image photos/gate.jpg --more 雪 --html hits.html",
        "cra search --like images/tang/gate.jpg --all --json",
        "cra search 庑殿顶 --release base --after 2026-05-01",
    )
)
@click.argument("text", required=False)
@click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Search by this picture.",
)
@click.option("--like", metavar="IMAGE_ID", help="Search by this indexed image.")
@click.option("--more", multiple=True, metavar="TEXT", help="Also more of this; may be repeated.")
@click.option("--less", multiple=True, metavar="TEXT", help="Less of this; may be repeated.")
@click.option(
    "--weight",
    default=0.5,
    show_default=True,
    type=Number(0, 100, min_open=True),
    help="Of each --more and --less; the query itself counts 1.",
)
@click.option("--top-k", default=20, show_default=True, type=click.IntRange(1, PAGE))
@click.option("--all", "every", is_flag=True, help="All pages, up to 1,000 hits.")
@click.option("--page-token", default="", help="`next_page_token` of the page before (--json).")
@click.option("--min-score", type=Number(-1, 1), help="Leave out lower scores.")
@click.option("--min-relevance", type=Number(0, 1), help="Leave out what is less so.")
@click.option("--fold", is_flag=True, help="Show one of images that are copies of each other.")
@click.option(
    "--expand/--no-expand",
    default=None,
    help="Search for other names of terms too, such as 扶拱垛 for 飞扶壁.",
)
@click.option(
    "--bucket",
    "buckets",
    multiple=True,
    type=BucketName(),
    help="Only this bucket; may be repeated.",
)
@click.option("--prefix", default="", help="Only keys that begin with this.")
@metadata_option(
    "Only images with this metadata; may be repeated: any of the values of one name, every name."
)
@click.option(
    "--after", type=Moment(), help=f"Only what was indexed at this time or later; {LOCAL}"
)
@click.option("--before", type=Moment(), help=f"Only what was indexed before this time; {LOCAL}")
@click.option("--release", default="", help="Text release that answers; `base`: the model's own.")
@click.option("--url", "include_url", is_flag=True, help="Print a signed URL of each hit.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write the hits with thumbnails to FILE, one page that needs nothing else.",
)
@as_json
@click.pass_obj
def search(
    settings: Settings,
    text: str | None,
    image: Path | None,
    like: str | None,
    more: tuple[str, ...],
    less: tuple[str, ...],
    weight: float,
    top_k: int,
    every: bool,
    page_token: str,
    min_score: float | None,
    min_relevance: float | None,
    fold: bool,
    expand: bool | None,
    buckets: tuple[str, ...],
    prefix: str,
    meta: list[tuple[str, str]],
    after: datetime | None,
    before: datetime | None,
    release: str,
    include_url: bool,
    html: Path | None,
    as_json: bool,
) -> None:
    """Print the images that fit TEXT, a picture or an indexed image best."""
    _check_query(text, image, like, (*more, *less))
    request = pb.SearchRequest(
        terms=[
            *(pb.Term(text=one, weight=weight) for one in more),
            *(pb.Term(text=one, weight=-weight) for one in less),
        ],
        top_k=PAGE if every else top_k,
        page_token=page_token,
        filter=_filter(buckets, prefix, meta, after, before),
        text_release=real_name(settings, release),
        include_url=include_url or html is not None,
        min_relevance=min_relevance,
        fold_duplicates=fold,
        expand=expand,
    )
    if text is not None:
        request.text = text
    if image is not None:
        request.image = image.read_bytes()
    if like is not None:
        request.image_id = like
    if min_score is not None:
        request.min_score = min_score
    with SearchClient.of(settings) as client:
        pages = client.pages(request)
        response = next(pages)
        for page in islice(pages, None if every else 0):
            response.hits.extend(page.hits)
            response.next_page_token = page.next_page_token
    if html is not None:
        _write_html(settings, response, html, _words(text, image, like, more, less))
        if not include_url:
            for hit in response.hits:
                hit.url = ""
    if as_json:
        print_message(response)
        return
    if html is None:
        out.print(hits_table(response))
        print_urls(response)
    for note in notes(response):
        err.print(note, soft_wrap=True)
    milliseconds = response.timing.total.ToNanoseconds() / 1e6
    left = "; --all shows what is left" if response.next_page_token else ""
    found = count(len(response.hits), "hit")
    err.print(f"{found} in {milliseconds:.1f} ms ({response.text_release}){left}")


def _check_query(
    text: str | None, image: Path | None, like: str | None, terms: tuple[str, ...]
) -> None:
    given = sum(part is not None for part in (text, image, like))
    if given > 1 or not (given or terms):
        raise click.UsageError("give one of TEXT, --image and --like; --more and --less add to it")
    if any(part is not None and not part.strip() for part in (text, like, *terms)):
        raise click.UsageError("TEXT, --like, --more and --less must not be empty")


def notes(response: pb.SearchResponse) -> list[str]:
    """Return what became of the query beside its hits, a line each."""
    found = []
    if response.truncated:
        found.append("a text is over 52 tokens: it was cut there, and the rest not searched for")
    if response.expanded_texts:
        found.append(f"also searched for: {', '.join(response.expanded_texts)}")
    return found


def hits_table(response: pb.SearchResponse) -> Table:
    """Return the hits as a table; relevance has a column if a hit has any."""
    relevant = any(hit.HasField("relevance") for hit in response.hits)
    shown = table("#", "score", *(["relevance"] if relevant else []), "image", "metadata")
    for hit in response.hits:
        details = "  ".join(f"{name}={value}" for name, value in sorted(hit.metadata.items()))
        relevance = f"{hit.relevance:.2f}" if hit.HasField("relevance") else ""
        copies = f" (+{len(hit.duplicates)} alike)" if hit.duplicates else ""
        cells = [hit.image_id + copies, details]
        shown.add_row(str(hit.rank), f"{hit.score:.4f}", *([relevance] if relevant else []), *cells)
    return shown


def print_urls(response: pb.SearchResponse) -> None:
    """Print the URL of each hit that has one, each on one line, whole: to be copied or opened."""
    for hit in response.hits:
        if hit.url:
            out.print(f"{hit.rank} {hit.url}", soft_wrap=True)


def _filter(
    buckets: tuple[str, ...],
    prefix: str,
    meta: list[tuple[str, str]],
    after: datetime | None,
    before: datetime | None,
) -> pb.Filter:
    where = pb.Filter(buckets=buckets, key_prefix=prefix)
    for name, value in meta:
        where.metadata[name].values.append(value)
    if after is not None:
        where.ingested_after.FromDatetime(after)
    if before is not None:
        where.ingested_before.FromDatetime(before)
    return where


def _words(
    text: str | None,
    image: Path | None,
    like: str | None,
    more: tuple[str, ...],
    less: tuple[str, ...],
) -> str:
    """Return a query as people read it."""
    asked = [text or (image.name if image else like) or ""]
    asked += [f"+{one}" for one in more] + [f"-{one}" for one in less]
    return " ".join(filter(None, asked))


def _write_html(settings: Settings, response: pb.SearchResponse, file: Path, asked: str) -> None:
    with Progress(console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task("thumbnails", total=len(response.hits))
        pictures = fetch_thumbnails(
            response.hits, settings.max_object_bytes, lambda: bar.advance(task)
        )
    try:
        file.write_text(render(response, asked, pictures), encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from error
    without = sum(not picture.data for picture in pictures)
    lacking = f", {without} without a picture" if without else ""
    err.print(f"wrote {count(len(pictures), 'hit')} to {file}{lacking}")
