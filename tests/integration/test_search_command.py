"""`cra search` against a gateway on Milvus Lite: every option, as JSON, as a table, as a page."""

import datetime
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cra.services.cli.group import cra
from cra.shared.adapters.object_store import connect
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.settings import Settings
from tests.fakes import COLOURS, ColourEncoder, picture
from tests.integration.test_search import COUNT, encoder, serving, store

__all__ = ["encoder", "store"]  # fixtures


@pytest.fixture(scope="module")
def target(store: MilvusVectorStore, encoder: ColourEncoder, s3: Settings) -> Iterator[str]:
    """A gateway over the index, whose objects are there but for the shades."""
    client = connect(s3)
    for name, colour in COLOURS.items():
        content = picture(colour)
        client.put_object("images", f"{name}.png", io.BytesIO(content), len(content))
    with serving(store, encoder, s3) as target:
        yield target


def run(target: str, *arguments: str) -> Result:
    """Run `cra search`."""
    env = {"CRA_GATEWAY_TARGET": target, "COLUMNS": "200"}
    return CliRunner().invoke(cra, ["search", *arguments], env=env)


def ask(target: str, *arguments: str) -> dict[str, Any]:
    """Run `cra search --json` and return what it says."""
    done = run(target, *arguments, "--json")
    assert done.exit_code == 0, done.output
    # The gateway runs in this process, and its log goes to the same place.
    said: dict[str, Any] = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{\n") :])[0]
    return said


def keys(said: dict[str, Any]) -> list[str]:
    """Return the keys of hits, the best first."""
    return [hit["key"] for hit in said["hits"]]


def test_more_and_less_move_the_ranking(target: str) -> None:
    """More of a colour brings its picture up, less takes it down; either may stand alone.

    Break: give both the same sign.
    """
    plain = ask(target, "红", "--all")
    assert keys(plain)[0] == "红.png"
    more = ask(target, "红", "--more", "绿", "--weight", "2", "--all")
    assert keys(more)[0] in {"黄.png", "绿.png"}
    less = ask(target, "红", "--less", "绿", "--all")
    ranks = [keys(said).index("绿.png") for said in (more, plain, less)]
    assert ranks[0] < ranks[1] <= ranks[2]
    assert keys(ask(target, "--more", "蓝"))[0] == "蓝.png"
    assert run(target, "--less", "蓝").exit_code == 0
    assert run(target).exit_code == 2
    like = ask(target, "--like", "images/红.png", "--less", "绿")
    assert "红.png" not in keys(like)


def test_all_pages_are_one_answer(target: str) -> None:
    """--all has every hit once, in order; a page token goes on where its page ended."""
    whole = ask(target, "红", "--all")
    assert [hit["rank"] for hit in whole["hits"]] == list(range(1, COUNT + len(COLOURS) + 1))
    assert whole["next_page_token"] == ""
    first = ask(target, "红", "--top-k", "10")
    second = ask(target, "红", "--top-k", "10", "--page-token", first["next_page_token"])
    assert keys(first) + keys(second) == keys(whole)[:20]
    assert "--all shows what is left" in run(target, "红").stderr


def test_times_are_local_unless_they_say_so(target: str) -> None:
    """--after and --before bound when an image was indexed, with or without an offset."""
    middle = datetime.datetime.fromtimestamp(1030, datetime.UTC)
    for moment in (middle.isoformat(), middle.astimezone().replace(tzinfo=None).isoformat()):
        later, earlier = (
            ask(target, "红", side, moment, "--all") for side in ("--after", "--before")
        )
        assert len(earlier["hits"]) == 30
        assert len(later["hits"]) == COUNT + len(COLOURS) - 30
    assert ask(target, "红", "--after", "2000-01-01")["hits"] == []


def test_filters_and_urls(target: str) -> None:
    """Metadata and prefix restrict; signed URLs come when asked for, in JSON and in the table."""
    odd = ask(target, "红", "--meta", "parity=odd", "--prefix", "shades/", "--all", "--url")
    assert {hit["metadata"]["parity"] for hit in odd["hits"]} == {"odd"}
    assert all(hit["url"].startswith("http://") for hit in odd["hits"])
    assert not any(hit["url"] for hit in ask(target, "红")["hits"])
    shown = run(target, "红", "--url", "--top-k", "1").stdout
    assert re.search("^1 http://.*X-Amz-Signature", shown, re.MULTILINE)
    done = run(target, "红", "--release", "none-00000000")
    assert (done.exit_code, "none-00000000" in done.output) == (1, True)


def test_a_page_has_each_hits_own_picture(target: str, tmp_path: Path) -> None:
    """--html writes thumbnails of what is there and says of the rest that it is gone."""
    file = tmp_path / "hits.html"
    done = run(target, "红", "--top-k", "6", "--html", str(file), "--more", "<红>")
    assert done.exit_code == 0, done.output
    page = file.read_text(encoding="utf-8")
    there = page.count("data:image/webp;base64,")
    assert there == sum(f"{name}.png</dd>" in page for name in COLOURS) > 0
    assert page.count("the object is gone") == 6 - there
    assert "<title>红 +&lt;红&gt;</title>" in page
    assert not re.search(r"https?://", page)
    assert f"{6 - there} without a picture" in done.stderr
    both = ask(target, "红", "--top-k", "6", "--html", str(file))
    assert len(both["hits"]) == 6
    assert not any(hit["url"] for hit in both["hits"])
    assert run(target, "红", "--html", str(tmp_path / "none" / "x.html")).exit_code == 1
