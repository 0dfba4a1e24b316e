"""What the search page's JSON refuses: each request that is wrong is told the field at fault."""

import base64
import json
from collections.abc import Iterator

import pytest

from cra.shared.settings import Settings
from tests.fakes import COLOURS, picture
from tests.page import OWN, Page, serving

PICTURE = base64.b64encode(picture(COLOURS["绿"])).decode()


@pytest.fixture(scope="module")
def page(
    s3: Settings, milvus_lite: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """A page over nothing."""
    with serving(s3, milvus_lite, redis_url, tmp_path_factory.mktemp("page")) as page:
        yield page


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({}, "query"),
        ({"text": ""}, "text"),
        ({"text": "红", "top_k": 201}, "top_k"),
        ({"text": "红", "colour": "red"}, "colour"),
        ({"text": "红", "terms": [{"text": "绿", "weight": 0}]}, "terms[0].weight"),
        ({"text": "红", "terms": [{"text": "绿", "weight": "much"}]}, "terms[0].weight"),
        ({"image": base64.b64encode(b"text").decode()}, "image"),
        ({"text": "红", "page_token": "made-up"}, "page_token"),
        ({"text": "红", "filter": {"ingested_after": "yesterday"}}, "filter.ingested_after"),
    ],
)
def test_a_bad_request_names_the_field(page: Page, asked: dict[str, object], field: str) -> None:
    """Whether the page or the gateway finds it, the error has one form.

    Break: leave FastAPI's own handler of validation errors in.
    """
    answer = page.search(**asked)
    assert answer.status_code == 400
    body = answer.json()
    assert (body["code"], body["field"]) == ("INVALID_ARGUMENT", field)
    assert body["message"]


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}])
@pytest.mark.parametrize("path", ["search", "failures/retry"])
def test_json_has_to_say_that_it_is(page: Page, path: str, headers: dict[str, str]) -> None:
    """A body without its type, or of one that other origins may send, is told what it lacks.

    Break: `strict_content_type=False`, or leave what is wrong to FastAPI's own words.
    """
    answer = page.client.post(f"/api/{path}", content=b"{}", headers={**OWN, **headers})
    body = answer.json()
    assert (answer.status_code, body["code"], body["field"]) == (400, "INVALID_ARGUMENT", "body")
    assert "Content-Type: application/json" in body["message"]


HALF = "\ud800"
"""Half a character: JSON can hold it, UTF-8 cannot."""


@pytest.mark.parametrize(
    ("path", "asked", "field"),
    [
        ("search", {"text": HALF}, "text"),
        ("facets", {"text": HALF}, "text"),
        ("search", {"image": HALF}, "image"),
        ("search", {"image_id": HALF}, "image_id"),
        ("search", {"text": "红", "page_token": HALF}, "page_token"),
        ("search", {"text": "红", "text_release": HALF}, "text_release"),
        ("search", {"terms": [{"text": "红"}, {"text": HALF}]}, "terms[1].text"),
        ("search", {"text": "红", "filter": {"key_prefix": HALF}}, "filter.key_prefix"),
        ("search", {"text": "红", "filter": {"buckets": ["a", HALF]}}, "filter.buckets[1]"),
        (
            "search",
            {"text": "红", "filter": {"metadata": {"city": [HALF]}}},
            "filter.metadata.city[0]",
        ),
        ("search", {HALF: "红"}, "body"),
        ("failures/retry", {"image_ids": ["images/a", HALF]}, "image_ids[1]"),
    ],
)
def test_half_a_character_is_the_fault_of_its_field(
    page: Page, path: str, asked: dict[str, object], field: str
) -> None:
    """A lone surrogate, wherever a body can have one, is no internal error.

    Break: leave `str_min_length` out of `_Asked`.
    """
    kind = {"Content-Type": "application/json"}
    content = json.dumps(asked)  # which escapes it
    answer = page.client.post(f"/api/{path}", content=content, headers={**OWN, **kind})
    body = answer.json()
    assert (answer.status_code, body["code"], body["field"]) == (400, "INVALID_ARGUMENT", field)
    assert body["message"] == f"{field}: is not valid Unicode"


def test_half_a_character_in_an_address_is_replaced(page: Page) -> None:
    """An address holds no lone surrogate: what looks like one is read as other characters."""
    body = page.client.get("/api/failures?page_token=%ED%A0%80").json()
    assert (body["code"], body["field"]) == ("INVALID_ARGUMENT", "page_token")


@pytest.mark.parametrize("content", [b'{"text": ', b"", b"[]", b'"\xff"'])
def test_a_body_that_is_no_json_object_is_the_field_at_fault(page: Page, content: bytes) -> None:
    """Broken, missing, of another type or not even text: the field is `body`.

    Break: leave `json_invalid` to `_path`.
    """
    kind = {"Content-Type": "application/json"}
    answer = page.client.post("/api/search", content=content, headers=kind)
    body = answer.json()
    assert (answer.status_code, body["code"], body["field"]) == (400, "INVALID_ARGUMENT", "body")


@pytest.mark.parametrize(
    ("asked", "field", "given"),
    [
        ({"text": "红", "image_id": "images/a"}, "query", "text and image_id"),
        ({"text": "红", "image": PICTURE, "image_id": "images/a"}, "query", "text and image and"),
        (
            {"text": "红", "terms": [{"text": "绿", "image": PICTURE}]},
            "terms[0]",
            "text and image;",
        ),
    ],
)
def test_of_several_queries_none_is_dropped(
    page: Page, asked: dict[str, object], field: str, given: str
) -> None:
    """One text, picture or image_id is asked for at a time; a request of more is refused.

    Break: set each of them in `_filled`, whichever others there are.
    """
    answer = page.search(**asked)
    body = answer.json()
    assert (answer.status_code, body["code"], body["field"]) == (400, "INVALID_ARGUMENT", field)
    assert given in body["message"]


def test_terms_stand_beside_one_query(page: Page) -> None:
    """A text may have terms by its side, and each of those its own kind of query."""
    assert page.search(text="红", terms=[{"image": PICTURE}]).status_code == 200


@pytest.mark.parametrize(
    "image",
    [
        "!!!",
        f"{PICTURE[:40]}\n{PICTURE[40:]}",
        f"data:image/png;base64,{PICTURE}",
        "_-_-",
        "iVBORw",
    ],
    ids=["none", "lines", "data", "url", "unfilled"],
)
@pytest.mark.parametrize("field", ["image", "terms[0].image"])
def test_base64_is_taken_whole_or_not_at_all(page: Page, image: str, field: str) -> None:
    """Nothing of a picture is passed over as none of the alphabet.

    Break: `Base64Bytes` of pydantic for `Picture`.
    """
    asked = {"image": image} if field == "image" else {"terms": [{"image": image}]}
    answer = page.search(**asked)
    body = answer.json()
    assert (answer.status_code, body["code"], body["field"]) == (400, "INVALID_ARGUMENT", field)
    assert body["message"].startswith(f"{field}: is no Base64 ")


def test_other_errors_have_the_same_form(page: Page) -> None:
    """Unknown images, paths and methods are errors as JSON too."""
    missing = page.search(image_id="images/none.png")
    assert (missing.status_code, missing.json()["code"]) == (404, "NOT_FOUND")
    assert page.client.get("/api/nowhere").json()["code"] == "NOT_FOUND"
    assert page.client.get("/api/search").status_code == 405
    assert page.client.get("/api/search").json()["code"] == "INVALID_ARGUMENT"


def test_a_body_has_a_limit_that_holds_while_it_streams(page: Page) -> None:
    """A search of more than 16 MiB is refused, whether it tells its length or not."""
    piece = b" " * 2**20
    for content in (piece * 17, (piece for _ in range(17))):
        answer = page.client.post(
            "/api/search", content=content, headers={"Content-Type": "application/json"}
        )
        assert (answer.status_code, answer.json()["code"]) == (413, "INVALID_ARGUMENT")
        assert answer.json()["field"] == "body"
