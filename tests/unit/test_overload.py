"""Ten times what a gateway can serve: the short form of `make load`, with an engine of one lane."""

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cra.search.v1 import search_pb2 as pb
from cra.search.v1 import search_pb2_grpc as pb_grpc
from cra.services.gateway.query import PICTURES, Query, kind_of
from cra.services.gateway.search import Ranking
from cra.services.gateway.servicer import SearchServicer
from cra.shared import calls, rpc
from cra.shared.errors import ResourceExhaustedError
from cra.shared.ports import EncodeTiming
from cra.shared.server import Server
from cra.shared.settings import Settings
from tests.load.arrivals import Outcome, closed_loop, open_loop, tail_of

SERVICE = "cra.search.v1.SearchService"
TAKES = 0.02
"""Seconds of one search; one at a time."""
MAX_WAIT = 0.3
CALLS = 64


class OneLane:
    """Answers one query after the other, each in its time; those by texts and by pictures apart."""

    def __init__(self) -> None:
        self._lanes = {str: threading.Lock(), bytes: threading.Lock()}
        self._pause = threading.Event()

    def search(self, query: Query) -> Ranking:
        """See `SearchEngine`."""
        with self._lanes[type(query.terms[0].content)]:  # type: ignore[index]
            self._pause.wait(TAKES)
        return Ranking([], "", "release", "tower", False, EncodeTiming(), 0.0)


@pytest.fixture(scope="module")
def stub() -> Iterator[pb_grpc.SearchServiceStub]:
    """A gateway that serves some 50 queries a second."""
    with _gateway(CALLS) as stub:
        yield stub


@contextlib.contextmanager
def _gateway(most: int) -> Iterator[pb_grpc.SearchServiceStub]:
    servicer = SearchServicer(OneLane(), most)  # type: ignore[arg-type]
    server = Server(
        Settings(max_calls=most, drain_seconds=5),
        SERVICE,
        0,
        lambda server: pb_grpc.add_SearchServiceServicer_to_server(servicer, server),
        lambda: None,
        longest={f"/{SERVICE}/Search": MAX_WAIT},
        kind=kind_of,
        shares={PICTURES: 0.5},
    )
    server.start()
    with rpc.open_channel(f"127.0.0.1:{server.port}", SERVICE) as channel:
        yield pb_grpc.SearchServiceStub(channel)
    server.stop()
    servicer.close()


def test_ten_times_too_much(stub: pb_grpc.SearchServiceStub) -> None:
    """What is taken is answered about in the time it was taken for, the rest is refused at once.

    Each refusal says when to come back, and a second after the rush a search takes what it took.
    Broken on purpose: without `begin` in `admit`, all `CRA_MAX_CALLS` are taken and the slowest
    tenth waits over four times as long as is said.
    """
    request = pb.SearchRequest(text="红")
    alone = closed_loop(lambda: stub.Search(request, timeout=20), 1, 0.5, 0.2)
    assert max(alone) < 10 * TAKES
    found = open_loop(stub.Search, lambda: request, 10 / TAKES, 3.0)
    taken = [one for one in found if one.ok]
    refused = [one for one in found if one.code == "RESOURCE_EXHAUSTED"]
    assert len(taken) + len(refused) == len(found) == round(30 / TAKES)
    settled = [one for one in taken if one.begun > found[0].begun + 1]
    assert tail_of(settled, 0.9) < 2 * MAX_WAIT
    assert len(taken) * TAKES > 1.5, "it went on working"
    assert all(one.hint is not None and one.hint > 0 for one in refused)
    assert tail_of(refused, 0.9) < MAX_WAIT / 2
    over = time.monotonic()
    after: list[Outcome] = open_loop(stub.Search, lambda: request, 5, 1.0)
    assert [one.code for one in after] == ["OK"] * 5
    assert min(one.seconds for one in after) < 10 * TAKES
    assert time.monotonic() - over < 5


def test_too_many_pictures_have_no_text_refused(stub: pb_grpc.SearchServiceStub) -> None:
    """Queries by texts are taken, however many by pictures come: those alone are refused.

    Fails when both are of one kind.
    """
    picture = pb.SearchRequest(terms=[pb.Term(image=b"any")])
    text = pb.SearchRequest(text="红")
    with ThreadPoolExecutor(1) as pool:
        rush = pool.submit(open_loop, stub.Search, lambda: picture, 10 / TAKES, 3.0)
        texts = open_loop(stub.Search, lambda: text, 0.3 / TAKES, 3.0)
        pictures = rush.result()
    assert {one.code for one in texts} == {"OK"}
    assert len(texts) == round(0.9 / TAKES)
    assert {one.code for one in pictures} == {"OK", "RESOURCE_EXHAUSTED"}


def test_a_small_gateway_leaves_room_for_texts() -> None:
    """Where four calls are taken at once, pictures take two, and texts are answered beside them.

    Fails when pictures may take all of them.
    """
    picture = pb.SearchRequest(image=b"any")
    text = pb.SearchRequest(text="红")
    with _gateway(4) as stub, ThreadPoolExecutor(1) as pool:
        rush = pool.submit(open_loop, stub.Search, lambda: picture, 4 / TAKES, 2.0)
        texts = open_loop(stub.Search, lambda: text, 0.3 / TAKES, 2.0)
        pictures = rush.result()
    assert {one.code for one in texts} == {"OK"}
    assert {one.code for one in pictures} == {"OK", "RESOURCE_EXHAUSTED"}
    assert all(one.hint for one in pictures if not one.ok)


def test_a_pace_is_learnt_from_many_calls_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few calls are always taken; of many, no more than are answered within what is accepted."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = calls.Pace(1.0, 1000)
    for _ in range(40):
        pace.begin()
    refusals = []
    for _ in range(500):
        now += 0.05
        pace.end()
        try:
            pace.begin()
        except ResourceExhaustedError as error:
            refusals.append(error)
    # Twenty are answered in a second, one each 50 ms.
    assert 18 <= pace._running <= 20
    assert all(1 < one.retry_after < 3.5 for one in refusals)
    now += 0.05
    pace.end()
    for _ in range(500):  # what others refuse makes it no quicker
        pace.begin()
        pace.end(worked=False)
    with contextlib.suppress(ResourceExhaustedError):
        for _ in range(500):
            pace.begin()
    assert 18 <= pace._running <= 20
    for _ in range(1000):  # however slow it was, it is found to be fast again
        now += 1.0
        pace.end()
        with contextlib.suppress(ResourceExhaustedError):
            pace.begin()
    assert pace._running == calls.BUSY
    for _ in range(1000):
        now += 0.01
        pace.end()
        with contextlib.suppress(ResourceExhaustedError):
            for _ in range(2):
                pace.begin()
    assert pace._running > 50
    hasty = calls.Pace(0.001, 1000)
    hasty._apart = 1.0
    for _ in range(calls.BUSY):
        hasty.begin()
    with pytest.raises(ResourceExhaustedError, match=r"about 9.0 s; at most 0.001 are accepted"):
        hasty.begin()


def test_a_machine_that_stands_still_now_and_then_is_not_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 32 callers, one answered every 8 ms, none is refused for a second without answers.

    Fails when such a second counts whole.
    """
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = calls.Pace(1.0, 1000)
    for _ in range(32):
        pace.begin()
    for number in range(1000):
        now += 1.0 if number % 25 == 0 else 0.008
        pace.end()
        pace.begin()
