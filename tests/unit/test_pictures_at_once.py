"""Pictures that are searched with at once: a real server, a ranking that waits to be let go."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import structlog

from cra.search.v1 import search_pb2 as pb
from cra.services.gateway.pictures import Pictures
from cra.services.gateway.query import Query
from cra.services.gateway.search import Ranking
from cra.shared import server as server_module
from cra.shared.client import SearchClient
from cra.shared.errors import ResourceExhaustedError
from cra.shared.ports import EncodeTiming
from tests.embedding import SOON, wait_until
from tests.gateway import serving

LARGEST = bytes(10 * 2**20)


class Held:
    """Ranks nothing, and pictures only when they are let go."""

    def __init__(self) -> None:
        self.working = 0
        self.go = threading.Event()

    def search(self, query: Query) -> Ranking:
        """See `SearchEngine`."""
        if isinstance(query.terms[0].content, bytes):
            self.working += 1
            assert self.go.wait(SOON)
        return Ranking([], "", "release", "tower", False, EncodeTiming(), 0.0)


@pytest.fixture
def gateway() -> Iterator[tuple[SearchClient, Held]]:
    """A gateway before such a ranking."""
    engine = Held()
    with (
        serving(engine, drain_seconds=SOON) as server,
        SearchClient(f"dns:///127.0.0.1:{server.port}") as client,
    ):
        yield client, engine
        engine.go.set()


def test_pictures_beyond_what_is_taken_at_once_are_refused(
    gateway: tuple[SearchClient, Held],
) -> None:
    """Three of 10 MiB are worked on; the fourth is told to come again, texts go on, then it may.

    Broken on purpose: without `hold` the fourth is worked on as well.
    """
    client, engine = gateway
    with ThreadPoolExecutor(3) as callers:
        three = [callers.submit(lambda: client.search(image=LARGEST)) for _ in range(3)]
        wait_until(lambda: engine.working == 3)
        with pytest.raises(ResourceExhaustedError, match=r"at most 33554432 are") as caught:
            client.search(image=LARGEST)
        assert caught.value.retry_after == 0.5
        assert client.search("红").text_release == "release"
        with pytest.raises(ResourceExhaustedError):  # before anything else is looked at
            client.search(image=LARGEST, top_k=100_000)
        engine.go.set()
        for one in three:
            one.result(SOON)
    assert client.search(image=LARGEST).text_release == "release"


def test_one_query_is_never_too_large() -> None:
    """What is larger than all that is taken is let in alone, and held until its block ends."""
    pictures = Pictures(10)
    with pictures.hold(30), pytest.raises(ResourceExhaustedError), pictures.hold(1):
        pass
    with pictures.hold(10):
        pass


def test_the_log_says_what_was_refused(
    gateway: tuple[SearchClient, Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many calls were refused is told now and then, with the method of the last one and why."""
    monkeypatch.setattr(server_module, "TOLD_EVERY", 0.0)
    client, engine = gateway
    with structlog.testing.capture_logs() as log, ThreadPoolExecutor(3) as callers:
        three = [callers.submit(lambda: client.search(image=LARGEST)) for _ in range(3)]
        wait_until(lambda: engine.working == 3)
        for _ in range(2):
            with pytest.raises(ResourceExhaustedError):
                client.search(image=LARGEST)
        wait_until(lambda: sum(one.get("calls", 0) for one in log) == 2)
        engine.go.set()
        for one in three:
            one.result(SOON)
    (last, *_) = [one["last"] for one in log if one["event"] == "refused"]
    assert last.startswith("/cra.search.v1.SearchService/Search: pictures of ")


def test_a_stream_is_told_which_query_was_refused(gateway: tuple[SearchClient, Held]) -> None:
    """In a stream the error is that of one query, with its code and pause; the others go on."""
    client, engine = gateway
    requests = [pb.SearchRequest(request_id=str(n), image=LARGEST) for n in range(4)]
    answers: dict[str, pb.SearchStreamResponse] = {}

    def read() -> None:
        for answer in client.stream(requests):
            answers[answer.request_id] = answer
            if answer.HasField("error"):
                engine.go.set()

    read()
    refused = [one.error for one in answers.values() if one.HasField("error")]
    assert len(answers) == 4
    assert [one.code for one in refused] == [grpc.StatusCode.RESOURCE_EXHAUSTED.name]
    assert refused[0].retry_after.ToMilliseconds() == 500
