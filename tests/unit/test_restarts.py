"""Replicas restarted in turn while they are asked: the short form of `make load`."""

import threading
from collections.abc import Callable

from cra.search.v1 import search_pb2 as pb
from cra.search.v1 import search_pb2_grpc as pb_grpc
from cra.services.gateway.query import Query
from cra.services.gateway.search import Ranking
from cra.services.gateway.servicer import SearchServicer
from cra.shared.client import SearchClient
from cra.shared.errors import CraError
from cra.shared.ports import EncodeTiming
from cra.shared.server import Server
from cra.shared.settings import Settings
from tests.servers import free_ports, wait_until

CALLERS = 8
TIMES = 3


class Prompt:
    """Answers at once, or nearly: a restart is to meet calls under way."""

    def __init__(self) -> None:
        self._pause = threading.Event()

    def search(self, query: Query) -> Ranking:
        """See `SearchEngine`."""
        self._pause.wait(0.005)
        return Ranking([], "", "release", "tower", False, EncodeTiming(), 0.0)


def _start(port: int) -> Callable[[], None]:
    """Start a gateway; return what stops it, in order."""
    servicer = SearchServicer(Prompt(), CALLERS)  # type: ignore[arg-type]
    server = Server(
        Settings(max_calls=64, drain_seconds=10),
        "cra.search.v1.SearchService",
        port,
        lambda server: pb_grpc.add_SearchServiceServicer_to_server(servicer, server),
        lambda: None,
    )
    server.start()

    def stop() -> None:
        server.stop()
        servicer.close()

    return stop


def test_a_restart_of_one_of_two_fails_no_call() -> None:
    """Eight callers without a pause, each of two gateways ended and started again three times.

    Broken on purpose: without UNAVAILABLE in the `retryPolicy` of `rpc.open_channel`, or without
    CANCELLED, or with gRPC's own time between two tries to connect, some do fail.
    """
    ports = free_ports(2)
    stops = [_start(port) for port in ports]
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    failed: list[CraError] = []
    answered = [0] * CALLERS
    ending = threading.Event()
    with SearchClient(target, timeout=20) as client:

        def ask(number: int) -> None:
            while not ending.is_set():
                try:
                    client.call(pb.SearchRequest(text="红"))
                    answered[number] += 1
                except CraError as error:
                    failed.append(error)

        def more() -> bool:
            return sum(answered) > before + 20 * CALLERS or bool(failed)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(CALLERS)]
        for thread in threads:
            thread.start()
        for turn in range(2 * TIMES):
            before = sum(answered)
            wait_until(more, "many are answered")
            stops[turn % 2]()
            before = sum(answered)
            wait_until(more, "many are answered by the other")
            stops[turn % 2] = _start(ports[turn % 2])
        ending.set()
        for thread in threads:
            thread.join()
    for stop in stops:
        stop()
    assert not failed, [str(error.__cause__) for error in failed[:3]]
