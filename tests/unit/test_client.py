"""The client's patience: tries again after the server's pause, as often as it was told."""

import asyncio
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from click.testing import CliRunner
from grpc_status import rpc_status

from cra.search.v1 import search_pb2 as pb
from cra.search.v1 import search_pb2_grpc as pb_grpc
from cra.services.cli.group import cra
from cra.shared import rpc
from cra.shared.client import SERVICE, SearchClient
from cra.shared.errors import (
    CraError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from cra.shared.limits import MAX_IMAGE_BYTES


class Busy(pb_grpc.SearchServiceServicer):
    """Answers with errors first, and then as it should."""

    def __init__(self) -> None:
        self.errors: list[CraError] = []
        self.calls = 0
        self.request = pb.SearchRequest()

    def Search(  # noqa: N802
        self, request: pb.SearchRequest, context: grpc.ServicerContext
    ) -> pb.SearchResponse:
        """See proto/cra/search/v1."""
        self.calls += 1
        self.request = request
        if self.errors:
            context.abort_with_status(rpc_status.to_status(rpc.to_status(self.errors.pop(0))))
        return pb.SearchResponse(request_id=request.request_id)

    def SearchStream(  # noqa: N802
        self, request_iterator: Iterator[pb.SearchStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.SearchStreamResponse]:
        """Not asked for here."""
        raise NotImplementedError


@pytest.fixture
def busy() -> Iterator[tuple[Busy, str]]:
    """A gateway and where it is."""
    servicer = Busy()
    limit = ("grpc.max_receive_message_length", rpc.MAX_MESSAGE_BYTES[SERVICE])
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[limit])
    pb_grpc.add_SearchServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"dns:///127.0.0.1:{port}"
    server.stop(None)


def test_it_tries_again_as_often_as_told(busy: tuple[Busy, str]) -> None:
    """Three tries get past two refusals; the third refusal of three is the caller's."""
    servicer, target = busy
    too_much = ResourceExhaustedError("too much", retry_after=0.01)
    with SearchClient(target, tries=3) as client:
        servicer.errors = [too_much, too_much]
        assert client.call(pb.SearchRequest(request_id="one")).request_id == "one"
        assert servicer.calls == 3
        servicer.errors = [too_much, too_much, too_much]
        with pytest.raises(ResourceExhaustedError):
            client.search("塔")
        assert servicer.calls == 6


def test_it_tries_once_unless_told_and_never_what_is_wrong(busy: tuple[Busy, str]) -> None:
    """By default an error is the caller's at once; one that no pause mends always is."""
    servicer, target = busy
    servicer.errors = [ResourceExhaustedError("too much", retry_after=0.01)]
    with SearchClient(target) as client, pytest.raises(ResourceExhaustedError):
        client.search("塔")
    servicer.errors = [InvalidArgumentError("text", "is bad")]
    with SearchClient(target, tries=3) as client, pytest.raises(InvalidArgumentError):
        client.search("塔")
    assert servicer.calls == 2


def test_what_is_asked_for_is_sent_and_nothing_else(busy: tuple[Busy, str]) -> None:
    """Each option of client and command line arrives; one that is not given is not set."""
    servicer, target = busy
    with SearchClient(target) as client:
        client.search("塔")
        plain = servicer.request
        sent = {field.name for field, _ in plain.ListFields()}
        assert not sent & {"min_score", "min_relevance", "expand"}
        assert not plain.fold_duplicates
        client.search("塔", min_relevance=0.0, fold_duplicates=True, expand=False)
        assert servicer.request.HasField("min_relevance")
        assert servicer.request.fold_duplicates
        assert servicer.request.HasField("expand")
        assert not servicer.request.expand
    environment = {"CRA_GATEWAY_TARGET": target}
    for arguments, expand in (([], None), (["--expand"], True), (["--no-expand"], False)):
        done = CliRunner().invoke(cra, ["search", "塔", *arguments], env=environment)
        assert done.exit_code == 0, done.output
        assert servicer.request.HasField("expand") is (expand is not None)
        assert servicer.request.expand is bool(expand)
    arguments = ["search", "塔", "--min-relevance", "0.25", "--fold"]
    assert CliRunner().invoke(cra, arguments, env=environment).exit_code == 0
    assert servicer.request.min_relevance == 0.25
    assert servicer.request.fold_duplicates


@pytest.mark.parametrize("size", [MAX_IMAGE_BYTES + 1, 68_000_009], ids=["by one", "for gRPC"])
def test_too_large_a_picture_is_not_sent(busy: tuple[Busy, str], size: int) -> None:
    """It is the fault of its field, by the words of the gateway, and never gRPC's own.

    Break: leave `_check_pictures` out of `_call` or `answer`.
    """
    servicer, target = busy
    big = bytes(size)
    problem = rf"image: has {size} bytes; 1 to {MAX_IMAGE_BYTES} are allowed"
    with SearchClient(target, tries=3) as client:
        with pytest.raises(InvalidArgumentError, match=f"^{problem}$"):
            client.search(image=big)
        with pytest.raises(InvalidArgumentError, match=rf"^terms\[1\].{problem}$"):
            client.search(terms=[pb.Term(text="塔"), pb.Term(image=big)])
        with pytest.raises(InvalidArgumentError, match=f"^{problem}$"):
            asyncio.run(client.answer(pb.SearchRequest(image=big)))
        assert servicer.calls == 0
        client.search(image=bytes(MAX_IMAGE_BYTES))


@pytest.mark.parametrize("field", ["text", "image_id", "text_release", "page_token"])
def test_half_a_character_is_the_fault_of_its_field(field: str) -> None:
    """A lone surrogate is none of Python's own errors, which nobody waits for.

    Break: leave `_check_unicode` out of `search`.
    """
    with (
        SearchClient("dns:///127.0.0.1:9") as client,
        pytest.raises(InvalidArgumentError, match=f"^{field}: is not valid Unicode$"),
    ):
        client.search(**{field: "塔\ud800"})  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["cra_密钥", "cra_1\n", "cra 1", "\ud800"], ids=ascii)
def test_a_key_that_no_header_takes_is_refused_at_once(key: str) -> None:
    """It is a wrong credential, told before any call, without what it was.

    Break: leave the check out of `rpc.open_channel`.
    """
    with pytest.raises(UnauthenticatedError, match="only visible ASCII") as refused:
        SearchClient("dns:///127.0.0.1:9", api_key=key)
    assert key not in refused.value.message
