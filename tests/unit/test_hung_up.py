"""Callers of the gateway that hang up or run out of time while others are encoded."""

import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from cra.search.v1 import search_pb2 as pb
from cra.search.v1 import search_pb2_grpc as pb_grpc
from cra.services.gateway.paging import PageTokens
from cra.services.gateway.query_cache import QueryCache
from cra.services.gateway.search import SearchEngine
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.domain import ScoredImage, SearchFilter, Vector
from cra.shared.errors import UnavailableError
from cra.shared.ports import EncodedTexts
from cra.shared.server import Server
from cra.shared.settings import Settings
from tests.embedding import SOON, Service, wait_until
from tests.fakes import ColourEncoder
from tests.gateway import serving


class Nothing:
    """An index of nothing, which counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def search(
        self,
        image_tower: str,
        vector: Vector,
        limit: int,
        where: SearchFilter,
        *,
        with_vectors: bool = False,
    ) -> list[ScoredImage]:
        """See `ports.VectorStore`."""
        self.asked += 1
        return []


@pytest.fixture
def gateway(own: Service) -> Iterator[tuple[pb_grpc.SearchServiceStub, Nothing, Server]]:
    """A gateway in front of an embedding service and an index of nothing."""
    index = Nothing()
    engine = SearchEngine(
        own.encoder,
        index,  # type: ignore[arg-type]
        S3ObjectStore(Settings()),
        PageTokens("key"),
        QueryCache(0),
    )
    with (
        serving(engine, drain_seconds=SOON) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield pb_grpc.SearchServiceStub(channel), index, server


def test_a_search_that_is_given_up_is_neither_encoded_nor_searched(
    own: Service, gateway: tuple[pb_grpc.SearchServiceStub, Nothing, Server]
) -> None:
    """Its text leaves the encoder's line with it; those of others are encoded and searched.

    Broken on purpose: with `cancel=False` in the encoder's calls the text of who has hung up is
    encoded; without `rpc.check_caller` it is searched as well.
    """
    stub, index, server = gateway
    stub.Search(pb.SearchRequest(text="黄"), timeout=SOON)
    assert index.asked == 1
    with own.towers.held() as wait_until_busy:
        calls = [stub.Search.future(pb.SearchRequest(text="红"), timeout=SOON)]
        wait_until_busy()
        for text in ("绿", "蓝", "门"):
            calls.append(stub.Search.future(pb.SearchRequest(text=text), timeout=SOON))
            own.wait_in_line(texts=len(calls) - 1)
        calls[-1].cancel()
        wait_until(lambda: server._boundary._running == 3)
    for call in calls[:-1]:
        assert call.result(SOON).request_id
    assert own.towers.batches[-2:] == [["红"], ["绿", "蓝"]]
    assert index.asked == 4


def test_a_deadline_that_is_over_costs_nothing(
    own: Service, gateway: tuple[pb_grpc.SearchServiceStub, Nothing, Server]
) -> None:
    """A search whose time ran out before it came is DEADLINE_EXCEEDED, and nobody works for it."""
    stub, index, _ = gateway
    before = len(own.towers.batches)
    for seconds in (0, -1, 1e-6):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Search(pb.SearchRequest(text="红"), timeout=seconds)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(own.towers.batches) == before
    assert index.asked == 0


def test_the_encoder_s_time_is_the_caller_s(
    own: Service, gateway: tuple[pb_grpc.SearchServiceStub, Nothing, Server]
) -> None:
    """Behind a tower that hangs the gateway's own thread is free again at the caller's deadline."""
    stub, _, server = gateway
    with own.towers.held():
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            stub.Search(pb.SearchRequest(text="红"), timeout=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: server._boundary._running == 0)
        assert time.monotonic() - began < 3


class Overflowing(ColourEncoder):
    """An encoder whose vectors are no numbers."""

    def embed_texts(
        self, texts: object, text_release: str = "", timeout: float | None = None
    ) -> EncodedTexts:
        """See `ports.Encoder`."""
        found = super().embed_texts(["红"])
        found.vectors[0] = np.full_like(found.vectors[0], np.nan)
        return found


def test_a_vector_of_no_numbers_is_not_searched_with() -> None:
    """UNAVAILABLE, and not kept as what the text means; Milvus would rank by it without a word.

    Broken on purpose: without `_numbers` it is searched with, and the cache keeps it.
    """
    from cra.services.gateway.query import parse

    index, cache = Nothing(), QueryCache(10)
    engine = SearchEngine(
        Overflowing(),
        index,  # type: ignore[arg-type]
        S3ObjectStore(Settings()),
        PageTokens("key"),
        cache,
    )
    with pytest.raises(UnavailableError, match="no number"):
        engine.search(parse(pb.SearchRequest(text="红")))
    assert index.asked == 0
    assert not cache._entries
