"""Who gets what from a gateway with API keys: the right status, its own buckets, nothing else."""

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf import message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from cra.search.v1 import search_pb2 as pb
from cra.search.v1 import search_pb2_grpc as pb_grpc
from cra.services.gateway.keys import KeyRing
from cra.services.gateway.paging import PageTokens
from cra.services.gateway.query_cache import QueryCache
from cra.services.gateway.search import SearchEngine
from cra.services.gateway.servicer import SearchServicer
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.api_keys import ApiKey, change_keys, digest_of, new_key
from cra.shared.client import SearchClient
from cra.shared.domain import ImageRecord, IndexedImage, ObjectRef, SearchFilter, Version
from cra.shared.errors import (
    CraError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from cra.shared.model.pixels import prepare
from cra.shared.server import Server
from cra.shared.settings import Settings
from tests.embedding import details_of
from tests.fakes import ColourEncoder, picture, vector_of
from tests.servers import wait_until

SERVICE: Final = "cra.search.v1.SearchService"
BUCKETS: Final = ("images", "plans", "secret")
EACH: Final = 12
"""Images of each bucket."""


@dataclass
class Guarded:
    """A gateway with API keys, over three buckets of equal pictures."""

    target: str
    file: Path
    keys: dict[str, str]
    encoder: ColourEncoder
    vectors: MilvusVectorStore

    def client(self, name: str, **options: Any) -> SearchClient:
        """Return a client with a key, or with none if it is called so."""
        return SearchClient(self.target, self.keys.get(name, ""), timeout=20, **options)


@pytest.fixture(scope="module")
def guarded(
    milvus_lite: str, s3: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    """The gateway; nobody breaks it."""
    encoder = ColourEncoder(uuid.uuid4().hex[:16])
    tower = encoder.models().image_tower
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    scopes: dict[str, tuple[str, ...]] = {
        "all": (), "images": ("images",), "plans": ("plans",), "two": ("images", "plans"),
        "slow": (), "revoked": (),
    }  # fmt: skip
    keys = {name: new_key() for name in scopes}
    change_keys(
        file,
        lambda _: [
            ApiKey(
                name=name,
                sha256=digest_of(keys[name]),
                buckets=scope,
                **({"rate": 0.5, "burst": 3} if name == "slow" else {}),
            )
            for name, scope in scopes.items()
        ],
    )
    with contextlib.ExitStack() as stack:
        vectors = stack.enter_context(
            contextlib.closing(MilvusVectorStore(Settings(milvus_uri=milvus_lite)))
        )
        vectors.ensure_collection(tower.fingerprint, tower.dimension)
        images = []
        for bucket in BUCKETS:
            for number in range(EACH):
                pixels = prepare(picture((200, number, 30)), encoder.preprocessing).pixels
                record = ImageRecord(
                    ObjectRef(bucket, f"{number:02}.png"), Version("e", 1), "0" * 16,
                    {"bucket": bucket}, 64, 48, 1000.0,
                )  # fmt: skip
                images.append(IndexedImage(record, vector_of(pixels)))
        vectors.upsert(tower.fingerprint, images)
        everything = len(images)
        wait_until(
            lambda: (
                len(vectors.search(tower.fingerprint, images[0].vector, 99, SearchFilter()))
                == everything
            ),
            "all are searchable",
        )
        ring = stack.enter_context(contextlib.closing(KeyRing(file)))
        engine = SearchEngine(encoder, vectors, S3ObjectStore(s3), PageTokens("key"), QueryCache(9))
        servicer = stack.enter_context(contextlib.closing(SearchServicer(engine, 16, ring)))
        server = Server(
            Settings(max_calls=16, drain_seconds=5),
            SERVICE,
            0,
            lambda server: pb_grpc.add_SearchServiceServicer_to_server(servicer, server),
            engine.check,
            check=servicer.check,
        )
        server.start()
        stack.callback(server.stop)
        yield Guarded(f"dns:///127.0.0.1:{server.port}", file, keys, encoder, vectors)


def raw(guarded: Guarded, method: str, body: bytes, key: str | None) -> grpc.RpcError:
    """Send bytes to a method and return how it is refused."""
    options = [("grpc.max_send_message_length", 64 * 2**20)]
    metadata = () if key is None else (("authorization", key),)
    with grpc.insecure_channel(guarded.target, options) as channel:
        call: Any = channel.stream_stream(f"/{SERVICE}/{method}")
        answers = call(iter([body]), timeout=20, metadata=metadata)
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
    return caught.value


@pytest.mark.parametrize("method", ["Search", "SearchStream", "Nonesuch"])
@pytest.mark.parametrize(
    "body",
    [pb.SearchRequest(text="红").SerializeToString(), b"", b"\xff\xff", bytes(20 * 2**20)],
    ids=["good", "empty", "broken", "too large"],
)
@pytest.mark.parametrize("key", [None, "Bearer cra_wrong", "Basic eA==", "Bearer  ~"])
def test_a_stranger_gets_the_status_and_nothing_else(
    method: str, body: bytes, key: str | None, guarded: Guarded
) -> None:
    """No key or a wrong one: UNAUTHENTICATED in the same words, whatever is sent to whatever.

    Break: authenticate in the servicer, where a broken message is INTERNAL before it, one that is
    too large RESOURCE_EXHAUSTED, and an unknown method UNIMPLEMENTED.
    """
    error = raw(guarded, method, body, key)
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "a valid API key is needed",
    )
    details: dict[str, message.Message] = details_of(error)
    assert details == {
        "ErrorInfo": error_details_pb2.ErrorInfo(reason="UNAUTHENTICATED", domain="cra")
    }
    refused: Any = error
    assert {name for name, _ in refused.trailing_metadata()} <= {"grpc-status-details-bin"}
    assert not refused.initial_metadata()


def test_a_revoked_key_is_a_wrong_one(guarded: Guarded) -> None:
    """Revoked, a key is refused within two seconds, and its open stream ends at the next request.

    Break: authenticate a stream once, when it is opened.
    """
    with guarded.client("revoked") as client:
        assert client.search("红").hits
        given: Any = iter([pb.SearchRequest(text="红", top_k=1)])

        def requests() -> Iterator[pb.SearchRequest]:
            yield next(given)
            change_keys(guarded.file, lambda there: [k for k in there if k.name != "revoked"])
            wait_until(lambda: _refused(client), "it is out", 2)
            yield pb.SearchRequest(text="红", top_k=1)

        answers = client.stream(requests())
        assert next(answers).response.hits
        with pytest.raises(UnauthenticatedError, match="a valid API key is needed"):
            next(answers)


def _refused(client: SearchClient) -> bool:
    try:
        client.search("红", top_k=1)
    except UnauthenticatedError:
        return True
    return False


def test_over_its_rate_a_key_is_told_when_to_come_back(guarded: Guarded) -> None:
    """Past its burst: RESOURCE_EXHAUSTED and the real waiting time, in a stream for each request.

    Break: count a stream as one call, or a fixed `retry_after`.
    """
    with guarded.client("slow") as client:
        requests = [pb.SearchRequest(request_id=f"r{n}", text="红", top_k=1) for n in range(6)]
        answers = list(client.stream(requests))
        assert sum(answer.HasField("response") for answer in answers) == 3
        waits = [
            answer.error.retry_after.ToNanoseconds() / 1e9
            for answer in answers
            if answer.error.code == "RESOURCE_EXHAUSTED"
        ]
        assert len(waits) == 3
        with pytest.raises(ResourceExhaustedError) as caught:
            client.search("红", top_k=1)
        # One every two seconds, and some of the two have passed.
        assert all(0 < wait <= 2.001 for wait in [*waits, caught.value.retry_after])
        error = raw(guarded, "Search", b"\xff\xff", f"Bearer {guarded.keys['slow']}")
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert set(details_of(error)) == {"ErrorInfo", "RetryInfo"}
    with guarded.client("slow", tries=2) as client:  # waits as long as it was told
        assert client.search("红", top_k=1).hits
    with guarded.client("all") as client:  # nobody else is slowed down
        assert client.search("红", top_k=1).hits


@pytest.mark.parametrize(
    ("name", "buckets"),
    [("images", {"images"}), ("plans", {"plans"}), ("two", {"images", "plans"}),
     ("all", set(BUCKETS))],
)  # fmt: skip
@pytest.mark.parametrize("asked", [(), BUCKETS, ("images",), ("secret",), ("images", "secret")])
def test_a_scope_is_anded_into_every_filter(
    name: str, buckets: set[str], asked: tuple[str, ...], guarded: Guarded
) -> None:
    """What a key finds is what the filter finds of its buckets, all of it, URLs included.

    Break: `where=_filter(request.filter)` without the scope in `parse`, or a scope that replaces
    the filter's buckets.
    """
    with guarded.client(name) as client:
        where = pb.Filter(buckets=asked)
        page = client.search("红", top_k=200, where=where, include_url=True)
    expected = buckets & set(asked) if asked else buckets
    assert {hit.bucket for hit in page.hits} == expected
    assert len(page.hits) == EACH * len(expected)
    assert all(f"/{hit.bucket}/{hit.key}?" in hit.url for hit in page.hits)


def _like(image_id: str) -> pb.SearchRequest:
    return pb.SearchRequest(image_id=image_id)


def _term(image_id: str) -> pb.SearchRequest:
    return pb.SearchRequest(text="红", terms=[pb.Term(image_id=image_id, weight=-1)])


@pytest.mark.parametrize("make", [_like, _term])
def test_an_image_out_of_scope_is_one_that_does_not_exist(
    make: Callable[[str], pb.SearchRequest], guarded: Guarded
) -> None:
    """An image_id out of scope is NOT_FOUND in the words for one that is nowhere, at equal cost.

    Break: `allowed = refs` in `SearchEngine._encode`; or look in the index first and then at the
    scope, which is what the count of look-ups sees.
    """

    def refusal(client: SearchClient, image_id: str) -> str:
        with pytest.raises(NotFoundError) as caught:
            client.call(make(image_id))
        return caught.value.message.replace(image_id, "IT")

    with guarded.client("images") as client, guarded.client("all") as whole:
        looked: list[list[ObjectRef]] = []
        fetch = guarded.vectors.fetch

        def counted(tower: str, refs: Sequence[ObjectRef]) -> list[IndexedImage]:
            looked.append(list(refs))
            return fetch(tower, refs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(guarded.vectors, "fetch", counted)
            hidden = {refusal(client, f"secret/{key}") for key in ("00.png", "none.png")}
            assert hidden == {refusal(client, "images/none.png")}
            assert looked == [[ObjectRef("images", "none.png")]]
        assert whole.call(make("secret/00.png")).hits
        assert client.call(make("images/00.png")).hits


def test_a_page_token_opens_no_other_scope(guarded: Guarded) -> None:
    """A token goes with the scope it was made under: with another key it fits or is refused.

    Break: leave the scope out of `_digest`.
    """
    with (
        guarded.client("all") as whole,
        guarded.client("images") as images,
        guarded.client("plans") as plans,
    ):
        made = {
            client: client.search("红", top_k=5).next_page_token
            for client in (whole, images, plans)
        }
        for maker, token in made.items():
            for client in made:
                if client is maker:
                    assert len(client.search("红", top_k=5, page_token=token).hits) == 5
                    continue
                with pytest.raises(InvalidArgumentError) as caught:
                    client.search("红", top_k=5, page_token=token)
                assert caught.value.field == "page_token"
        walked = [
            h for page in images.pages(pb.SearchRequest(text="红", top_k=5)) for h in page.hits
        ]
        assert {hit.bucket for hit in walked} == {"images"}
        assert len(walked) == EACH


def test_health_and_reflection_tell_strangers_no_secret(guarded: Guarded) -> None:
    """Both answer without a key; neither holds a key, a digest, a key's name or a bucket.

    Break: refuse methods that do not begin with `/cra.` too.
    """
    with grpc.insecure_channel(guarded.target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        wait_until(
            lambda: stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status == 1, "serving"
        )
        answer = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=20)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        database = ProtoReflectionDescriptorDatabase(channel)
        told = repr(answer) + repr(list(database.get_services()))
        told += repr(database.FindFileContainingSymbol(SERVICE))
    for name, key in guarded.keys.items():
        assert key not in told
        assert digest_of(key) not in told
        assert f"'{name}'" not in told
    assert "secret" not in told


def test_an_open_gateway_asks_for_nothing(s3: Settings, guarded: Guarded) -> None:
    """Without a file of keys anybody may search everything, with a key or without.

    Break: refuse in `SearchServicer.check` when there are no keys.
    """
    engine = SearchEngine(
        guarded.encoder, guarded.vectors, S3ObjectStore(s3), PageTokens("key"), QueryCache(9)
    )
    servicer = SearchServicer(engine, 4)
    server = Server(
        Settings(drain_seconds=5),
        SERVICE,
        0,
        lambda server: pb_grpc.add_SearchServiceServicer_to_server(servicer, server),
        engine.check,
        check=servicer.check,
    )
    server.start()
    try:
        for key in ("", "any"):
            with SearchClient(f"dns:///127.0.0.1:{server.port}", key, timeout=20) as client:
                assert len(client.search("红", top_k=200).hits) == EACH * len(BUCKETS)
    finally:
        server.stop()
        servicer.close()


def test_errors_hold_no_key(guarded: Guarded) -> None:
    """What a client makes of a refusal names no key, not even its own.

    Break: put the header into the message of `authenticate`.
    """
    with SearchClient(guarded.target, "cra_my-own-secret", timeout=20) as client:
        with pytest.raises(CraError) as caught:
            client.search("红")
        assert "my-own-secret" not in f"{caught.value!r} {caught.value.__cause__!r}"
