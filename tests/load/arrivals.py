"""Calls that arrive whether or not those before them are answered, and callers that wait."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.bench.measure import percentile


@dataclass(frozen=True)
class Outcome:
    """What became of one call."""

    begun: float
    """`time.monotonic()`."""
    seconds: float
    code: str
    hint: float | None
    """Seconds after which to try again, if the answer says so."""

    @property
    def ok(self) -> bool:
        """It was answered."""
        return self.code == "OK"


def open_loop(
    method: Any, request: Callable[[], Any], rate: float, seconds: float, timeout: float = 15.0
) -> list[Outcome]:
    """Make `rate` calls a second, evenly, and wait for all of them.

    Args:
        method: of a stub; no retries are made beside those of its channel.
        request: makes the next message.
        rate: calls a second.
        seconds: for which calls are made.
        timeout: of each, in seconds.
    """
    done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    pause = threading.Event()
    begin = time.monotonic()
    count = round(rate * seconds)
    for number in range(count):
        late = begin + number / rate - time.monotonic()
        if late > 0:
            pause.wait(late)
        begun = time.monotonic()
        future = method.future(request(), timeout=timeout)
        future.add_done_callback(lambda future, begun=begun: done.put(_outcome(future, begun)))
    return [done.get(timeout=timeout + 30) for _ in range(count)]


def closed_loop(
    call: Callable[[], Any], callers: int, seconds: float, warm_up: float = 2.0
) -> list[float]:
    """Have callers ask again and again; return how long each call took, in seconds.

    Who is refused comes back when it is told to, as callers should, and counts for nothing.

    Raises:
        Exception: what the first call that failed raised.
    """
    taken: list[float] = []
    pause = threading.Event()
    begin = time.monotonic() + warm_up
    end = begin + seconds

    def ask(_: int) -> None:
        while (begun := time.monotonic()) < end:
            try:
                call()
            except grpc.RpcError as error:
                code: Any = error
                if code.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                pause.wait(hint(error) or 0.1)
                continue
            now = time.monotonic()
            if begin < now < end:
                taken.append(now - begun)

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(ask, range(callers)))
    return taken


def _outcome(future: Any, begun: float) -> Outcome:
    seconds = time.monotonic() - begun
    code: grpc.StatusCode = future.code()
    return Outcome(begun, seconds, code.name, None if code is grpc.StatusCode.OK else hint(future))


def hint(error: Any) -> float | None:
    """Return the seconds that an error asks its caller to wait."""
    status = rpc_status.from_call(error)
    retry = error_details_pb2.RetryInfo()
    for packed in status.details if status is not None else ():
        if packed.Unpack(retry):
            return float(retry.retry_delay.ToNanoseconds() / 1e9)
    return None


def tail_of(outcomes: list[Outcome], share: float = 0.99) -> float:
    """Return the seconds that a share of calls does not exceed; 0 if there are none."""
    return percentile([one.seconds for one in outcomes], share) if outcomes else 0.0
