"""gRPC's edge, for clients and servers alike: one table of errors, one way to open a channel."""

import asyncio
import functools
import itertools
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import grpc
from google.protobuf import any_pb2, duration_pb2, unknown_fields
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from cra.shared import errors, tracing
from cra.shared.limits import HEADER
from cra.shared.tls import ClientTls

MAX_MESSAGE_BYTES: Final = {
    "cra.search.v1.SearchService": 16 * 2**20,
    "cra.embedding.v1.EmbeddingService": 32 * 2**20,
    "cra.ingest.v1.IngestService": 4 * 2**20,
}
"""The largest message of each service, set on both sides."""

LIVENESS: Final = "cra.liveness"
"""Name under which standard health says whether a process works, whatever it depends on."""

KEEPALIVE: Final = 3.0
"""Seconds without a word from a server that owes an answer, after which its caller asks whether it
is still there."""

GONE: Final = 3.0
"""Seconds without an answer to that, or to any bytes, after which it is not: its calls are tried
elsewhere. A machine that is cut off refuses nothing, so nothing else tells before the deadline."""

CONNECTS_WITHIN: Final = 5.0
"""Seconds for a connection; then another is begun, since one that was begun while a machine was cut
off goes on ever more slowly."""

CODES: Final[dict[type[errors.CraError], grpc.StatusCode]] = {
    errors.InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AbortedError: grpc.StatusCode.ABORTED,
    errors.ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
}
"""The one table from domain errors to status codes, read in both directions."""


def code_of(error: errors.CraError) -> grpc.StatusCode:
    """Return the status code of a domain error."""
    return CODES.get(type(error), grpc.StatusCode.INTERNAL)


def duration(seconds: float) -> duration_pb2.Duration:
    """Return seconds, not fewer than none, as a message."""
    whole, nanos = divmod(round(seconds * 1e9), 10**9)
    return duration_pb2.Duration(seconds=whole, nanos=nanos)


MOST_CHECKED: Final = 256
"""Entries of a field whose types are checked, which is more than any may have; and fields that are
not known, in one message."""

MAX_PROBLEM: Final = 1000
"""Bytes of an error's message. A status travels in the trailers, where clients take 8 KiB in all,
and the message stands there up to three times: escaped, in the status and in its details."""

MAX_FIELD: Final = 200
"""Bytes of a field's name, which may hold a name of the caller's."""


def _cut(text: str, most: int) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= most:
        return encoded.decode()
    return encoded[: most - 3].decode(errors="ignore") + "…"


def to_status(error: errors.CraError) -> status_pb2.Status:
    """Return the status of a domain error, with standard details; what is very long is cut."""
    code = code_of(error)
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=code.name, domain="cra")]
    if isinstance(error, errors.InvalidArgumentError):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(error.field, MAX_FIELD), description=_cut(error.problem, MAX_PROBLEM)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.ResourceExhaustedError | errors.UnavailableError):
        details.append(error_details_pb2.RetryInfo(retry_delay=duration(error.retry_after)))
    status = status_pb2.Status(
        code=code_pb2.Code.Value(code.name), message=_cut(error.message, MAX_PROBLEM)
    )
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def unknown_numbers(message: Message) -> list[int]:
    """Return the numbers of the fields in a message that protobuf could not make out.

    Raises:
        InvalidArgumentError: there are more than `MOST_CHECKED`, of which each costs.
    """
    found = unknown_fields.UnknownFieldSet(message)
    if len(found) > MOST_CHECKED:
        raise errors.InvalidArgumentError(
            "request",
            f"has {len(found)} fields that are not known here, or of another type than the "
            f"contract says, in one {message.DESCRIPTOR.name}; at most {MOST_CHECKED} are allowed",
        )
    return [found[number].field_number for number in range(len(found))]


def check_types(message: Message, inside: str = "") -> None:
    """Check that each field which is in a message came as what the contract says it is.

    Protobuf takes one that did not for a field that it does not know, and drops it in silence: a
    filter would not filter.

    Of more entries than any field may have, which are refused for their number, those that come
    first are checked: there may be millions.

    Raises:
        InvalidArgumentError: names the field.
    """
    unknown = unknown_numbers(message)
    if unknown:
        known = message.DESCRIPTOR.fields_by_number
        for number in unknown:
            if number in known:
                raise errors.InvalidArgumentError(
                    f"{inside}{known[number].name}", "is of another type than the contract says"
                )
    for name, kind in _holders(message.DESCRIPTOR):
        if kind == "map":
            for key, one in itertools.islice(getattr(message, name).items(), MOST_CHECKED):
                check_types(one, f"{inside}{name}[{key!r}].")
        elif kind == "repeated":
            for number, one in enumerate(itertools.islice(getattr(message, name), MOST_CHECKED)):
                check_types(one, f"{inside}{name}[{number}].")
        elif message.HasField(name):
            check_types(getattr(message, name), f"{inside}{name}.")


@functools.cache
def _holders(kind: Descriptor) -> tuple[tuple[str, Literal["map", "repeated", "single"]], ...]:
    """Return the fields of a kind of message that hold messages; looked up once for each kind."""
    found: list[tuple[str, Literal["map", "repeated", "single"]]] = []
    for field in kind.fields:
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                found.append((field.name, "map"))
        else:
            found.append((field.name, "repeated" if field.is_repeated else "single"))
    return tuple(found)


_SILENCE: Final = {
    grpc.StatusCode.UNAVAILABLE: "does not answer",
    grpc.StatusCode.DEADLINE_EXCEEDED: "did not answer in time",
}
"""What it means when gRPC itself, and not the server, says so."""

_TLS_PROBLEM: Final = re.compile(
    r"(?:OPENSSL_internal:|Custom verification check failed with error: \w+: )(.+?)\.?(?:: OK)?$"
)
"""Where gRPC's own words tell why there is no TLS connection, as far as the client can see it."""


def from_rpc_error(error: grpc.RpcError, server: str) -> errors.CraError:
    """Return the domain error behind a failed call.

    Args:
        error: as gRPC raised it.
        server: what was called, such as `the gateway at dns:///gateway:50051`; named if it did not
            answer at all.
    """
    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
    except (ValueError, DecodeError):  # something between us and the server has changed the status
        status = None
    if status is None and code in _SILENCE:  # gRPC's own words are of addresses and sockets
        reason = _TLS_PROBLEM.search(message)
        message = f"{server} {_SILENCE[code]}"
        if reason:
            message += f": TLS: {reason[1]}"
    field, problem, retry_after = "", message, 1.0
    for packed in status.details if status is not None else ():
        bad_request = error_details_pb2.BadRequest()
        retry_info = error_details_pb2.RetryInfo()
        if packed.Unpack(bad_request) and bad_request.field_violations:
            field = bad_request.field_violations[0].field
            problem = bad_request.field_violations[0].description
        elif packed.Unpack(retry_info):
            retry_after = retry_info.retry_delay.ToNanoseconds() / 1e9
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return errors.InvalidArgumentError(field or "request", problem)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.ResourceExhaustedError(message, retry_after)
    if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}:
        return errors.UnavailableError(message, retry_after)
    for kind, known in CODES.items():
        if known is code:
            return kind(message)
    return errors.CraError(f"{code.name}: {message}")


_Metadata = Iterable[tuple[str, str]] | None

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""The request that is being worked on; it goes with every call to another service."""


@dataclass(frozen=True)
class Caller:
    """Whoever waits for what is being worked on."""

    deadline: float
    """`time.monotonic()` after which nobody waits any more."""
    waits: Callable[[], bool]
    at_end: Callable[[Callable[[], None]], bool]
    """Has a function called when the caller hangs up or is answered; False if that is past."""


caller: Final[ContextVar[Caller | None]] = ContextVar("caller", default=None)


def caller_of(context: grpc.ServicerContext) -> Caller:
    """Return who waits for the answer of a call."""
    left = context.time_remaining()
    # Of a stream without a deadline, gRPC says that billions of years are left.
    endless = left is None or left > threading.TIMEOUT_MAX
    deadline = math.inf if endless else time.monotonic() + (left or 0.0)
    return Caller(deadline, context.is_active, context.add_callback)


def time_left(most: float) -> float:
    """Return the seconds that a step may take: `most`, or what the caller's deadline leaves."""
    asked_by = caller.get()
    return most if asked_by is None else max(0.0, min(most, asked_by.deadline - time.monotonic()))


def check_caller() -> None:
    """Return if somebody still waits for the answer; to be asked before each costly step.

    Raises:
        DeadlineExceededError: the caller has hung up, or its deadline has passed.
    """
    asked_by = caller.get()
    if asked_by is None:
        return
    if not asked_by.waits():
        raise errors.DeadlineExceededError("the caller has hung up")
    if asked_by.deadline <= time.monotonic():
        raise errors.DeadlineExceededError("the deadline passed before the answer was ready")


def client_span(service: str, method: str) -> tracing.Scope:
    """Return the span of a call to another server; it is none outside of a trace."""
    return tracing.span(
        f"{service}/{method}",
        kind="CLIENT",
        **{"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
    )


def call(method: Any, request: Any, timeout: float, *, cancel: bool) -> Any:
    """Make a call for the caller of the one that is worked on, and no longer than that waits.

    Args:
        method: of a stub, one message to one message.
        request: its message.
        timeout: seconds, if the caller's deadline leaves so many.
        cancel: pass on that the caller hangs up, which costs a third of a millisecond.

    Raises:
        DeadlineExceededError: the caller has hung up, or its deadline has passed.
        grpc.RpcError: the call failed.
    """
    check_caller()
    asked_by = caller.get()
    if asked_by is None or not cancel:
        return method(request, timeout=time_left(timeout))
    future = method.future(request, timeout=time_left(timeout))
    if not asked_by.at_end(future.cancel):
        future.cancel()
    try:
        return future.result()
    except grpc.FutureCancelledError as error:
        raise errors.DeadlineExceededError("the caller has hung up") from error


async def answer(method: Any, request: Any, timeout: float) -> Any:
    """Make a call from a coroutine; if that is cancelled, so is the call.

    Args:
        method: of a stub, one message to one message.
        request: its message.
        timeout: seconds.

    Raises:
        grpc.RpcError: the call failed.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    future = method.future(request, timeout=timeout)
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
    try:
        await ended.wait()
    except asyncio.CancelledError:
        future.cancel()
        raise
    return future.result()


class _Channel(grpc.Channel):
    """A channel each of whose calls takes along credentials, the request's id and its trace.

    An interceptor of gRPC would have the method itself made anew for every call.
    """

    def __init__(self, channel: grpc.Channel, credentials: Sequence[tuple[str, str]]) -> None:
        self._channel, self._credentials = channel, credentials

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self._channel.unary_unary(*args, **kwargs), self._credentials)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self._channel.unary_stream(*args, **kwargs), self._credentials)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self._channel.stream_unary(*args, **kwargs), self._credentials)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self._channel.stream_stream(*args, **kwargs), self._credentials)

    def subscribe(self, callback: Callable[[Any], None], try_to_connect: bool = False) -> None:
        self._channel.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[Any], None]) -> None:
        self._channel.unsubscribe(callback)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Method:
    """A method of a server, in the ways in which gRPC calls it."""

    def __init__(self, method: Any, credentials: Sequence[tuple[str, str]]) -> None:
        self._method, self._credentials = method, credentials

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: _Metadata = None, **kwargs: Any
    ) -> Any:
        return self._method(request, timeout, self._extend(metadata), **kwargs)

    def with_call(
        self, request: Any, timeout: float | None = None, metadata: _Metadata = None, **kwargs: Any
    ) -> Any:
        return self._method.with_call(request, timeout, self._extend(metadata), **kwargs)

    def future(
        self, request: Any, timeout: float | None = None, metadata: _Metadata = None, **kwargs: Any
    ) -> Any:
        return self._method.future(request, timeout, self._extend(metadata), **kwargs)

    def _extend(self, given: _Metadata) -> list[tuple[str, str]]:
        metadata = [*(given or ()), *self._credentials]
        known = request_id.get()
        if known and known.isascii() and known.isprintable():
            metadata.append(("x-request-id", known))
        if traceparent := tracing.current():
            metadata.append(("traceparent", traceparent))
        return metadata


def authority_of(target: str) -> str:
    """Return the `host:port` that the servers of a target are known by; empty for addresses."""
    scheme, sign, rest = target.partition(":")
    if scheme in {"ipv4", "ipv6", "unix", "unix-abstract"} or not sign:
        return ""
    return rest.rpartition("/")[2] if scheme == "dns" else target


def open_channel(
    target: str,
    service: str,
    token: str = "",
    tls: ClientTls | None = None,
    authority: str = "",
) -> grpc.Channel:
    """Open a channel to a service, balanced over its replicas; it connects when first used.

    Calls that find no server, or whose server is gone, are tried again up to four times, as long as
    their deadline allows; a server that falls silent is gone after `KEEPALIVE` and `GONE`.

    Args:
        target: such as `dns:///gateway:50051`.
        service: full name of the service, for its message limit.
        token: sent as a bearer token with each call, if not empty.
        tls: to speak TLS; plaintext if None.
        authority: `host:port` that the server is known by, if that is not in the target; its
            certificate must name the host.

    Raises:
        FailedPreconditionError: a file of `tls` cannot be read or does not hold what it should.
        UnauthenticatedError: no header can hold the token.
    """
    if not re.fullmatch(HEADER, token):
        raise errors.UnauthenticatedError(
            "the key or token cannot stand in a header: it may have only visible ASCII characters"
        )
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{"service": service}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    # CANCELLED, by the server, is what becomes of a call that it has not yet seen
                    # when it begins to end.
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ],
    }
    limit = MAX_MESSAGE_BYTES[service]
    options: list[tuple[str, str | int]] = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_send_message_length", limit),
        ("grpc.max_receive_message_length", limit),
        # Of a larger message nothing would be kept, and its call would not be tried again.
        ("grpc.per_rpc_retry_buffer_size", limit),
        ("grpc.keepalive_time_ms", round(KEEPALIVE * 1000)),
        ("grpc.keepalive_timeout_ms", round(GONE * 1000)),
        ("grpc.http2.max_pings_without_data", 0),  # however long an answer takes
        ("grpc.min_reconnect_backoff_ms", round(CONNECTS_WITHIN * 1000)),
        # A server that is back is found again before the last try of a call that needs it, so
        # that the next one may be restarted; the default waits two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]
    if authority:
        options.append(("grpc.default_authority", authority))
    channel = (
        grpc.secure_channel(target, tls.credentials(), options)
        if tls
        else grpc.insecure_channel(target, options)
    )
    credentials = [("authorization", f"Bearer {token}")] if token else []
    return _Channel(channel, credentials)
