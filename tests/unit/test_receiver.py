"""The receiver of bucket events: 200 only when the work is safe with the broker."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from starlette.testclient import TestClient

from cra.services.ingest.receiver import MAX_BODY, create_receiver
from cra.shared.domain import ObjectRef
from cra.shared.errors import UnavailableError
from tests.unit.test_events import minio, seaweedfs

TOKEN = "e7ents"
SIGNED = {"Authorization": f"Bearer {TOKEN}"}


class Line:
    """A line, and a broker that is asked to work it off; each may be down."""

    def __init__(self) -> None:
        self.refs: list[ObjectRef] = []
        self.woken: list[int] = []
        self.line_is_down = self.broker_is_down = False

    def add(self, refs: Sequence[ObjectRef], *, changed: bool = False) -> int:
        """Put objects in line."""
        assert changed, "an event tells of an object that is no longer what it was"
        self.ping()
        self.refs += refs
        return len(refs)

    def ping(self) -> None:
        """Answer, unless it is down."""
        if self.line_is_down:
            raise UnavailableError("Redis does not answer")

    def wake(self) -> None:
        """Note how many objects were in line when the broker was asked."""
        if self.broker_is_down:
            raise UnavailableError("the broker does not answer")
        self.woken.append(len(self.refs))


@pytest.fixture
def line() -> Line:
    """A line that works."""
    return Line()


def _client(line: Any, token: str = TOKEN) -> TestClient:
    app = create_receiver(line, ("images",), token, line.wake)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def client(line: Line) -> Iterator[TestClient]:
    """A client of the receiver."""
    with _client(line) as client:
        yield client


@pytest.mark.parametrize(
    "body",
    [minio("大殿/a b.jpg"), seaweedfs("/buckets/images/大殿/a b.jpg")],
    ids=["MinIO", "SeaweedFS"],
)
def test_an_event_is_in_line_before_the_answer(body: Any, client: TestClient, line: Line) -> None:
    """200: the objects are in line, and only then the broker was asked to work it off."""
    answer = client.post("/events", json=body, headers=SIGNED)
    assert (answer.status_code, answer.json()) == (200, {"accepted": 1})
    assert line.refs == [ObjectRef("images", "大殿/a b.jpg")]
    assert line.woken == [1]


def test_an_event_about_nothing_of_ours(client: TestClient, line: Line) -> None:
    """An event of another bucket is acknowledged, so that it does not come again, and forgotten."""
    answer = client.post("/events", json=minio("a.jpg", bucket="other"), headers=SIGNED)
    assert (answer.status_code, answer.json()) == (200, {"accepted": 0})
    assert (line.refs, line.woken) == ([], [])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"bearer-{TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer é".encode("latin-1")},
    ],
)
def test_the_token_is_needed(headers: Any, client: TestClient, line: Line) -> None:
    """401 without the right token; nothing is read, nothing gets in line."""
    answer = client.post("/events", json=minio("a.jpg"), headers=headers)
    assert answer.status_code == 401
    assert line.refs == []


def test_a_bare_token_is_let_in(client: TestClient, line: Line) -> None:
    """MinIO sends a token that was given without a scheme as it is."""
    answer = client.post("/events", json=minio("a.jpg"), headers={"Authorization": TOKEN})
    assert answer.status_code == 200
    assert line.refs


@pytest.mark.parametrize("given", ["Bearer ", "", "Bearer x"])
def test_no_token_set_means_nobody_is_let_in(given: str, line: Line) -> None:
    """A receiver without a token refuses every event, an empty token too."""
    with _client(line, "") as client:
        answer = client.post("/events", json=minio("a.jpg"), headers={"Authorization": given})
    assert answer.status_code == 401
    assert line.refs == []


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="no JSON"),
        pytest.param(b"\xff\xfe", id="no UTF-8"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b"{}", id="no event"),
        pytest.param(b"[" * 100_000, id="nested deep"),
        pytest.param(b"1" * 5000, id="a long number"),
        pytest.param(b'{"Records": [{}]}', id="an empty record"),
        pytest.param(
            json.dumps(minio("x")).replace('"x"', '"\\ud800"').encode(), id="half a character"
        ),
    ],
)
def test_what_is_no_event(body: bytes, client: TestClient, line: Line) -> None:
    """400 with the reason; nothing gets in line."""
    answer = client.post("/events", content=body, headers=SIGNED)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert line.refs == []


def test_a_body_that_is_too_large(client: TestClient, line: Line) -> None:
    """413 over 1 MiB, whether its length is announced or not; up to it an event is read."""
    event = json.dumps(minio("a.jpg")).encode()
    assert client.post("/events", content=event.ljust(MAX_BODY), headers=SIGNED).status_code == 200
    too_large = event.ljust(MAX_BODY + 1)
    assert client.post("/events", content=too_large, headers=SIGNED).status_code == 413
    chunks = (too_large[start : start + 65536] for start in range(0, len(too_large), 65536))
    assert client.post("/events", content=chunks, headers=SIGNED).status_code == 413
    assert len(line.refs) == 1


def test_a_line_that_is_down(client: TestClient, line: Line) -> None:
    """503 while the line cannot take it; the same event is taken when it is back."""
    line.line_is_down = True
    answer = client.post("/events", json=minio("a.jpg"), headers=SIGNED)
    assert (answer.status_code, answer.json()["error"]) == (503, "Redis does not answer")
    assert line.woken == []
    line.line_is_down = False
    assert client.post("/events", json=minio("a.jpg"), headers=SIGNED).status_code == 200
    assert line.woken == [1]


def test_a_broker_that_is_down(client: TestClient, line: Line) -> None:
    """503 when the objects are in line but nobody was told: the store sends the event again."""
    line.broker_is_down = True
    assert client.post("/events", json=minio("a.jpg"), headers=SIGNED).status_code == 503


def test_health_asks_the_line(client: TestClient, line: Line) -> None:
    """/healthz says 200 or 503 as the line does, and needs no token."""
    assert client.get("/healthz").status_code == 200
    line.line_is_down = True
    assert client.get("/healthz").status_code == 503


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/events", 405), ("POST", "/", 404), ("GET", "/x", 404)]
)
def test_nothing_else_is_served(method: str, path: str, status: int, client: TestClient) -> None:
    """Other paths and methods are refused."""
    assert client.request(method, path, headers=SIGNED).status_code == status


def test_life_asks_nobody(client: TestClient, line: Line) -> None:
    """/livez says 200 for as long as the receiver itself answers, whatever is down."""
    line.line_is_down = line.broker_is_down = True
    assert client.get("/livez").status_code == 200
