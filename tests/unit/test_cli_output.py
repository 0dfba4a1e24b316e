"""What `cra` prints: names and captions as they are, whole, whatever they hold."""

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.search.v1 import search_pb2 as search
from cra.services.cli.comparison import Compared, Mover
from cra.services.cli.group import cra
from cra.services.cli.ingest import _counts, _failures
from cra.services.cli.releases import _table_of_queries
from cra.services.cli.search import hits_table, notes, print_urls
from cra.shared import console

HOSTILE = ("plan[/red].jpg", "[bold]x", ":smile:.png", "[red]", "a\\[b]")


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


def printed(shown: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what is printed, without borders and line ends."""
    console.out.print(shown)
    return "".join(char for char in capsys.readouterr().out if char not in " │┃\n")


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_no_markup(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets and colons in keys, metadata, reasons and queries neither vanish nor crash."""
    hits = search.SearchResponse()
    hits.hits.add(rank=1, image_id=f"images/{name}").metadata["caption"] = f"{name}!"
    text = printed(hits_table(hits), capsys)
    assert f"images/{name}" in text
    assert f"caption={name}!" in text
    failure = ingest.Failure(image_id=f"images/{name}", reason="corrupt", message=f"no {name}")
    assert f"images/{name}" in printed(_failures([failure]), capsys)
    compared = Compared(name, 0.5, None, [Mover(f"i/{name}", 2, 1, 1)], None)
    assert f"i/{name}" in printed(_table_of_queries([compared], 20), capsys)
    console.warn(name, name)
    assert f"{name}: {name}" in capsys.readouterr().err


def test_relevance_and_copies_stand_with_a_hit(capsys: pytest.CaptureFixture[str]) -> None:
    """A relevance that is not known is no zero, and copies are counted."""
    hits = search.SearchResponse()
    hits.hits.add(rank=1, image_id="images/a", score=0.5, relevance=0.875, duplicates=["b", "c"])
    hits.hits.add(rank=2, image_id="images/d", score=0.25)
    text = printed(hits_table(hits), capsys)
    assert "10.50000.88images/a(+2alike)" in text
    assert "20.2500images/d" in text


def test_what_became_of_a_query_is_said() -> None:
    """A text that was cut and texts that were added have a line each, and nothing else has one."""
    assert notes(search.SearchResponse()) == []
    response = search.SearchResponse(truncated=True, expanded_texts=["扶拱垛", "飞券"])
    cut, added = notes(response)
    assert "52 tokens" in cut
    assert added == "also searched for: 扶拱垛, 飞券"


def test_there_is_no_empty_column_of_relevance(capsys: pytest.CaptureFixture[str]) -> None:
    """Where no hit has a relevance, as in a small index, nothing stands for it."""
    hits = search.SearchResponse()
    hits.hits.add(rank=1, image_id="images/a", score=0.5)
    assert "relevance" not in printed(hits_table(hits), capsys)
    hits.hits.add(rank=2, image_id="images/b", score=0.4, relevance=0.0)
    assert "relevance" in printed(hits_table(hits), capsys)


def test_urls_stand_whole_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Each on a line of its own, however narrow the terminal is: it can be opened and copied.

    Break: no `soft_wrap` in `print_urls`.
    """
    hits = search.SearchResponse()
    urls = [
        f"http://127.0.0.1:9000/images/{rank}.jpg?X-Amz-Signature={'a' * 300}" for rank in (1, 2)
    ]
    for rank, url in enumerate(urls, 1):
        hits.hits.add(rank=rank, image_id=f"images/{rank}.jpg", url=url)
    hits.hits.add(rank=3, image_id="images/3.jpg")
    assert "http" not in printed(hits_table(hits), capsys)
    print_urls(hits)
    assert capsys.readouterr().out == f"1 {urls[0]}\n2 {urls[1]}\n"


def test_one_of_a_thing_is_no_plural() -> None:
    """Only one is."""
    assert [console.count(number, "hit") for number in (0, 1, 2)] == ["0 hits", "1 hit", "2 hits"]


def test_a_long_image_id_is_folded(capsys: pytest.CaptureFixture[str]) -> None:
    """It is to be copied from the terminal: nothing of it is cut off."""
    image_id = "images/" + "/".join(f"hall-{number:03}" for number in range(20))
    failure = ingest.Failure(image_id=image_id, reason="not_an_image", message="no image")
    console.out.print(_failures([failure]))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(line.split("│")[1].strip() for line in lines) == image_id


def test_what_cannot_be_counted_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    """Without the index no zero stands where nobody knows; a zero that was counted is one."""
    text = printed(_counts(ingest.GetStatusResponse(objects=3, indexed=0)), capsys)
    assert "objects3" in text
    assert "indexed0" in text
    assert "unaccountedunknown" in text
    assert "waiting0" in text


def test_put_refuses_a_bucket_that_nobody_indexes(tmp_path: Path) -> None:
    """Its images would wait for ever; the message names the setting and the buckets."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    done = CliRunner().invoke(
        cra,
        ["put", str(tmp_path), "--bucket", "nope"],
        env={"CRA_BUCKETS": "images,plans", "CRA_S3_ENDPOINT": "127.0.0.1:1"},
    )
    assert done.exit_code == 2
    assert "'nope' is not indexed; CRA_BUCKETS has: images, plans" in done.output


@pytest.mark.parametrize(
    ("prefix", "told"),
    [
        ("/abs/", "give 'abs/'"),
        ("a//b/", "give 'a/b/'"),
        ("a//", "give 'a/'"),
        ("/", "give ''"),
        ("a\\b", "give 'a/b'"),
        ("a/../b/", "a folder `.` or `..`"),
        ("./", "a folder `.` or `..`"),
    ],
)
def test_put_refuses_a_prefix_that_the_store_would_change(
    tmp_path: Path, prefix: str, told: str
) -> None:
    """A key would not be where it was put; the message says what to give.

    Break: look at the beginning of the prefix alone in `_key_prefix`.
    """
    (tmp_path / "a.jpg").write_bytes(b"x")
    done = CliRunner().invoke(cra, ["put", str(tmp_path), "--prefix", prefix])
    assert done.exit_code == 2
    assert "'--prefix'" in done.output
    assert told in done.output


@pytest.mark.parametrize("prefix", ["", "a/b", "a/b/", "a/..", ".", "..b/"])
def test_put_takes_a_prefix_that_the_store_keeps(tmp_path: Path, prefix: str) -> None:
    """Dots that are no folder of their own once a file's name follows are kept as they are.

    Break: look at the last part, too, in `_key_prefix`.
    """
    (tmp_path / "a.jpg").write_bytes(b"x")
    env = {"CRA_S3_ENDPOINT": "127.0.0.1:1"}
    done = CliRunner().invoke(cra, ["put", str(tmp_path), "--prefix", prefix], env=env)
    assert done.exit_code == 3, done.output


def test_put_says_what_is_no_file(tmp_path: Path) -> None:
    """What is named by itself and cannot be put is told in words, not as a file that is gone.

    Break: no `_kind` in `find_uploads`.
    """
    os.mkfifo(tmp_path / "a.jpg")
    done = CliRunner().invoke(cra, ["put", str(tmp_path / "a.jpg")])
    assert done.exit_code == 1
    assert "is a FIFO, and neither a file nor a folder" in done.output
