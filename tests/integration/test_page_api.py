"""The search page's JSON and pictures, over real HTTP, on a real gateway, ingest and stores."""

import base64
import io
import json
import re
import socket
import threading
from collections.abc import Iterator, Sequence

import httpx
import pytest
from PIL import Image

from cra.shared import rpc
from cra.shared.errors import DeadlineExceededError
from cra.shared.ports import EncodedTexts
from cra.shared.settings import Settings
from tests.fakes import COLOURS, ColourEncoder, picture
from tests.page import OWN, Page, serving
from tests.servers import wait_until

COUNT = 45


@pytest.fixture(scope="module")
def page(
    s3: Settings, milvus_lite: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """A page over pictures of colours in two folders, with metadata."""
    folder = tmp_path_factory.mktemp("page")
    with serving(s3, milvus_lite, redis_url, folder, max_object_bytes=2**20) as page:
        for number in range(COUNT):
            city = "西安" if number % 3 else "北京"
            page.put(
                f"{'north' if number % 3 == 0 else 'west'}/{number:02}.png",
                picture((200, number * 4, 30), (60 + number, 40)),
                {"city": city, "caption": f"图 {number}"},
            )
        for name, colour in COLOURS.items():
            page.put(f"{name}.png", picture(colour, (64, 48)))
        page.work()
        wait_until(
            lambda: len(page.search(text="红", top_k=200).json()["hits"]) == COUNT + len(COLOURS),
            "all are searchable",
        )
        yield page


def keys(answer: httpx.Response) -> list[str]:
    """Return the keys of the hits, in order."""
    assert answer.status_code == 200, answer.text
    return [hit["key"] for hit in answer.json()["hits"]]


def test_a_text_finds_its_picture_with_all_that_the_contract_says(page: Page) -> None:
    """The answer is the gateway's, field by field."""
    answer = page.search(text="蓝色的房子", top_k=3)
    assert keys(answer)[0] == "蓝.png"
    body = answer.json()
    hit = body["hits"][0]
    assert (hit["rank"], hit["image_id"], hit["bucket"]) == (1, "images/蓝.png", "images")
    assert hit["score"] == pytest.approx(1.0, abs=1e-4)
    assert (hit["width"], hit["height"]) == (64, 48)
    assert body["text_release"] == "colours-1"
    assert body["timing"]["total"] > 0
    assert answer.headers["x-request-id"] == body["request_id"]


def test_pictures_ids_terms_and_filters_are_asked_as_over_grpc(page: Page) -> None:
    """Each way to ask reaches the gateway: picture, id, plus and minus, folder, metadata.

    Break: leave the weights or the metadata out of `SearchIn.message`.
    """
    green = base64.b64encode(picture(COLOURS["绿"])).decode()
    assert keys(page.search(image=green, top_k=1)) == ["绿.png"]
    assert "绿.png" not in keys(page.search(image_id="images/绿.png", top_k=200))
    less = page.search(text="红", terms=[{"text": "黄", "weight": -0.5}], top_k=200)
    more = page.search(text="红", terms=[{"text": "黄", "weight": 0.5}], top_k=200)
    assert keys(less).index("黄.png") > keys(more).index("黄.png")
    where = {"metadata": {"city": ["北京"]}, "key_prefix": "north/"}
    assert len(keys(page.search(text="红", filter=where, top_k=200))) == COUNT // 3


def test_pages_follow_by_their_tokens(page: Page) -> None:
    """All pages together are the whole ranking, each hit once."""
    whole = keys(page.search(text="红", top_k=200))
    token, found = "", []
    while True:
        answer = page.search(text="红", top_k=20, page_token=token)
        found += keys(answer)
        token = answer.json()["next_page_token"]
        if not token:
            break
    assert found == whole


def test_facets_count_what_groups_and_not_what_tells_apart(page: Page) -> None:
    """City and folder are counted over the first 200 hits; captions, each its own, are not."""
    body = page.client.post("/api/facets", json={"text": "红"}).json()
    assert body["hits"] == COUNT + len(COLOURS)
    assert body["metadata"] == {
        "city": [{"value": "西安", "count": 30}, {"value": "北京", "count": 15}]
    }
    assert body["folders"] == [{"value": "west/", "count": 30}, {"value": "north/", "count": 15}]


@pytest.mark.parametrize("path", ["/nope", "/static/nope.js", "/pictures/original/expired"])
def test_a_browser_is_led_back_from_where_nothing_is(page: Page, path: str) -> None:
    """It gets a page in both languages that leads to the search; a program gets JSON as ever."""
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    shown = page.client.get(path, headers=browser)
    assert (shown.status_code, shown.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert 'href="/"' in shown.text
    assert "请重新检索" in shown.text
    assert "Search again" in shown.text
    assert page.client.get(path).json()["code"] == "NOT_FOUND"
    assert page.client.get("/api/nowhere", headers=browser).json()["code"] == "NOT_FOUND"


def test_a_thumbnail_is_small_kept_and_not_sent_twice(page: Page) -> None:
    """A hit's thumbnail is WebP in its proportions; a browser keeps it, and so does the page."""
    hit = page.search(text="蓝", top_k=1).json()["hits"][0]
    first = page.client.get(hit["thumbnail"])
    assert first.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(first.content)).size == (64, 48)
    assert re.search(r"max-age=\d{3,}", first.headers["cache-control"])
    again = page.client.get(hit["thumbnail"], headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert page.search(text="蓝", top_k=1).json()["hits"][0]["thumbnail"] == hit["thumbnail"]


def test_only_what_a_search_answered_can_be_fetched(page: Page) -> None:
    """A token that is changed, made up or cut is no address of a picture, whatever its kind.

    Break: skip the comparison of signatures in `Links.read`.
    """
    hit = page.search(text="蓝", top_k=1).json()["hits"][0]
    token = hit["thumbnail"].rpartition("/")[2]
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    forged = base64.urlsafe_b64encode(raw.replace("蓝".encode(), "绿".encode())).decode()
    for bad in (forged.rstrip("="), token[:-2], "x", json.dumps(["images", "绿.png", "", 9**9])):
        for kind in ("thumbnail", "view", "original"):
            assert page.client.get(f"/pictures/{kind}/{bad}").status_code == 404
    assert page.client.get(f"/pictures/other/{token}").status_code == 404
    original = page.client.get(hit["original"], follow_redirects=True)
    assert original.content == picture(COLOURS["蓝"], (64, 48))


def test_a_picture_that_changed_since_is_not_shown_as_the_old(page: Page) -> None:
    """The address of a picture is that of one version.

    Break: leave out the comparison of ETags in `Thumbnails`.
    """
    page.put("changing.png", picture((10, 10, 10)))
    page.work()
    wait_until(
        lambda: "changing.png" in keys(page.search(text="红", top_k=200)), "it is searchable"
    )
    hits = page.search(text="红", top_k=200).json()["hits"]
    (hit,) = [one for one in hits if one["key"] == "changing.png"]
    page.put("changing.png", picture((20, 20, 20)))
    answer = page.client.get(hit["thumbnail"])
    assert answer.status_code == 404
    assert "changed" in answer.json()["message"]
    page.store.remove_object("images", "changing.png")
    page.work()


def test_an_upload_is_put_indexed_and_shown(page: Page) -> None:
    """What is put is waiting, then indexed, with its caption, under a key that nothing else has."""
    content = picture((90, 90, 200), (30, 20))
    query = {"name": "..\\坏 名字?.png", "caption": "蓝灰的墙"}
    put = page.client.put("/api/images", params=query, content=content, headers=OWN)
    assert put.status_code == 201, put.text
    body = put.json()
    assert re.fullmatch(r"images/uploads/[0-9a-f]{12}-坏-名字-.png", body["image_id"])
    state = {"image_id": body["image_id"], "etag": body["etag"]}
    assert page.client.get("/api/images/state", params=state).json()["state"] == "waiting"
    page.work()

    def indexed() -> bool:
        answer = page.client.get("/api/images/state", params=state).json()
        return bool(answer["state"] == "indexed")

    wait_until(indexed, "it is indexed")
    hit = page.client.get("/api/images/state", params=state).json()["hit"]
    assert hit["metadata"] == {"caption": "蓝灰的墙"}
    again = page.client.put("/api/images", params=query, content=content, headers=OWN).json()
    assert again["image_id"] == body["image_id"]
    page.store.remove_object("images", body["image_id"].removeprefix("images/"))
    page.work()


def test_who_follows_what_is_not_there_comes_to_an_end(page: Page) -> None:
    """A version that was deleted, overwritten or never put is not found; one in line is waiting.

    Break: leave `backends.objects.look` out of `_state`.
    """

    def state(key: str, etag: str) -> tuple[int, str]:
        asked = {"image_id": f"images/{key}", "etag": etag}
        answer = page.client.get("/api/images/state", params=asked)
        return answer.status_code, answer.json().get("state") or answer.json()["message"]

    page.put("followed.png", picture((1, 2, 3)))
    old = page.store.stat_object("images", "followed.png").etag or ""
    assert state("followed.png", old) == (200, "waiting")
    page.put("followed.png", picture((3, 2, 1)))
    new = page.store.stat_object("images", "followed.png").etag or ""
    assert state("followed.png", new) == (200, "waiting")
    assert state("followed.png", old) == (404, f"images/followed.png has another ETag: {new}")
    page.store.remove_object("images", "followed.png")
    assert state("followed.png", new) == (404, "images/followed.png is not in the bucket")
    elsewhere = {"image_id": "releases/a", "etag": new}
    assert page.client.get("/api/images/state", params=elsewhere).status_code == 404


def test_what_cannot_be_indexed_is_listed_and_tried_again(page: Page) -> None:
    """A file that is no picture fails with its reason, and one call puts it back in line."""
    put = page.client.put(
        "/api/images", params={"name": "a.jpg"}, content=b"text", headers=OWN
    ).json()
    page.work()
    state = page.client.get("/api/images/state", params=put).json()
    assert (state["state"], state["reason"]) == ("failed", "not_an_image")
    listed = page.client.get("/api/failures").json()["failures"]
    assert [one["image_id"] for one in listed] == [put["image_id"]]
    counts = page.client.get("/api/status").json()
    assert counts["objects"] == counts["indexed"] + counts["waiting"] + counts["failed"]
    retried = page.client.post(
        "/api/failures/retry", json={"image_ids": [put["image_id"], "images/no.png"]}, headers=OWN
    )
    assert retried.json() == {"retried": 1, "unknown": ["images/no.png"]}
    assert [ref.image_id for ref in page.ledger.waiting()] == [put["image_id"]]
    page.store.remove_object("images", put["image_id"].removeprefix("images/"))
    page.work()


def test_too_large_an_upload_is_refused_before_and_while_it_comes(page: Page) -> None:
    """By what it says of its length, and by what comes when it says nothing; nothing is put.

    Break: check the header alone.
    """
    most = page.settings.max_object_bytes
    before = page.client.get("/api/about").json()["max_object_bytes"]
    assert before == most
    said = page.client.put(
        "/api/images", params={"name": "a.png"}, content=b"x" * (most + 1), headers=OWN
    )
    streamed = page.client.put(
        "/api/images",
        params={"name": "a.png"},
        content=(b"x" * 2**16 for _ in range(most // 2**16 + 2)),
        headers=OWN,
    )
    empty = page.client.put("/api/images", params={"name": "a.png"}, content=b"", headers=OWN)
    assert (said.status_code, streamed.status_code, empty.status_code) == (413, 413, 400)
    assert str(most) in said.json()["message"]
    assert {one.json()["field"] for one in (said, streamed, empty)} == {"body"}
    assert not list(page.store.list_objects("images", prefix="uploads/", recursive=True))


@pytest.mark.parametrize("headers", [{}, {**OWN, "Sec-Fetch-Site": "cross-site"}])
def test_a_page_elsewhere_cannot_change_anything(page: Page, headers: dict[str, str]) -> None:
    """Changing calls need a header that a page of another origin cannot send.

    Break: leave `check_own` out of `changing`.
    """
    put = page.client.put("/api/images", params={"name": "a"}, content=b"x", headers=headers)
    retry = page.client.post("/api/failures/retry", json={"all": True}, headers=headers)
    assert (put.status_code, retry.status_code) == (403, 403)
    preflight = page.client.options(
        "/api/images",
        headers={"Origin": "http://elsewhere.test", "Access-Control-Request-Method": "PUT"},
    )
    assert preflight.status_code == 405
    assert "access-control-allow-origin" not in preflight.headers


def test_only_its_own_names_are_answered_to(page: Page) -> None:
    """On loopback, a name elsewhere that was made to mean this machine gets nothing.

    Break: leave `hosts` out of the middleware.
    """
    assert page.client.get("/", headers={"Host": "elsewhere.test"}).status_code == 403
    assert page.client.get("/", headers={"Host": "["}).status_code == 403
    assert page.client.get("/", headers={"Host": "localhost:1"}).status_code == 200


def test_a_page_that_only_searches_takes_and_tells_nothing(
    s3: Settings, milvus_lite: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With CRA_WEB_CHANGES off there is no upload, no retry and no list of what failed."""
    folder = tmp_path_factory.mktemp("public")
    with serving(s3, milvus_lite, redis_url, folder, web_changes=False) as page:
        assert page.client.get("/api/about").json()["changes"] is False
        client = page.client
        answers = [
            client.put("/api/images", params={"name": "a"}, content=b"x", headers=OWN),
            client.post("/api/failures/retry", json={"all": True}, headers=OWN),
            client.get("/api/failures"),
            client.get("/api/images/state", params={"image_id": "images/a", "etag": "e"}),
        ]
        assert [answer.status_code for answer in answers] == [403] * 4
        assert client.get("/api/status").status_code == 200
        assert page.search(text="红").status_code == 200


def test_every_answer_has_the_headers_that_keep_a_browser_safe(page: Page) -> None:
    """The page runs its own scripts and no others; nothing is guessed, framed or told on."""
    for path in ("/", "/static/app.js", "/api/about", "/api/nowhere", "/pictures/view/x"):
        headers = page.client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "script-src 'self'" in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_the_page_s_files_are_fresh_and_not_sent_twice(page: Page) -> None:
    """Each is asked for anew, and answered 304 while it is the same; none is from elsewhere."""
    html = page.client.get("/").text
    names = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', html))
    assert {"/static/app.js", "/static/style.css", "/static/wall.js"} <= names
    for name in names:
        first = page.client.get(name)
        assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
        again = page.client.get(name, headers={"If-None-Match": first.headers["etag"]})
        assert again.status_code == 304
        assert "://" not in re.sub(r"http://www\.w3\.org/\S+", "", first.text)
    assert "://" not in html


def test_openapi_describes_every_call(page: Page) -> None:
    """Callers without gRPC find all of /api described, and how errors look."""
    described = page.client.get("/api/openapi.json").json()
    assert {
        ("post", "/api/search"), ("post", "/api/facets"), ("get", "/api/status"),
        ("get", "/api/releases"), ("get", "/api/failures"), ("post", "/api/failures/retry"),
        ("put", "/api/images"), ("get", "/api/images/state"), ("get", "/api/about"),
    } == {(how, path) for path, calls in described["paths"].items() for how in calls}  # fmt: skip
    search = described["paths"]["/api/search"]["post"]["responses"]
    assert "ErrorOut" in json.dumps(search["4XX"])


def test_readiness_is_a_search(page: Page) -> None:
    """Ready is what has just searched; alive is what answers."""
    assert page.client.get("/readyz").json() == {"status": "ok"}
    assert page.client.get("/healthz").json() == {"status": "ok"}


class _Slow(ColourEncoder):
    """Takes its time with texts, and notes whether their caller is still there."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.left = threading.Event(), threading.Event()

    def embed_texts(
        self, texts: Sequence[str], text_release: str = "", timeout: float | None = None
    ) -> EncodedTexts:
        """See `ports.Encoder`."""
        if texts == ["慢"]:
            self.asked.set()
            for _ in range(200):
                try:
                    rpc.check_caller()
                except DeadlineExceededError:
                    self.left.set()
                    raise
                threading.Event().wait(0.05)
        return super().embed_texts(texts, text_release, timeout)


def test_a_browser_that_hangs_up_cancels_its_search(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway learns at once that nobody waits: typing on leaves no old queries behind.

    Break: await the search without `while_it_waits`.
    """
    slow = _Slow()
    monkeypatch.setattr(page.encoder, "embed_texts", slow.embed_texts)
    host, _, port = page.url.removeprefix("http://").partition(":")
    body = json.dumps({"text": "慢"}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /api/search HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert slow.asked.wait(10)
    assert slow.left.wait(5)
