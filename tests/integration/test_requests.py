"""Every field of every call, below, at and past its limits, and as what it is not.

The fields are those of the contract's descriptors: one that is added and has no case here fails.
"""

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.internal import encoder as wire

from cra.embedding.v1 import embedding_pb2 as embedding
from cra.ingest.v1 import ingest_pb2 as ingest
from cra.ingest.v1 import ingest_pb2_grpc
from cra.search.v1 import search_pb2 as search
from cra.search.v1 import search_pb2_grpc
from cra.services.gateway.paging import PageTokens
from cra.services.gateway.query_cache import QueryCache
from cra.services.gateway.search import SearchEngine
from cra.services.gateway.servicer import SearchServicer
from cra.services.ingest.ledger import Failure, Ledger
from cra.services.ingest.reconcile import Reconciler
from cra.services.ingest.servicer import IngestServicer
from cra.shared import rpc
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.client import SearchClient
from cra.shared.domain import ImageRecord, IndexedImage, ObjectRef, SearchFilter, Version
from cra.shared.errors import InvalidArgumentError, ResourceExhaustedError
from cra.shared.relevance import LEAST
from cra.shared.server import Server
from cra.shared.settings import Settings
from tests import embedding as fake_embedding
from tests.fakes import ColourEncoder, vector_of
from tests.field_cases import CASES, ID
from tests.servers import wait_until

MODULES: Final = (search, embedding, ingest)
SOON: Final = 30.0
RED: Final = search.SearchRequest(text="红").SerializeToString()


def _methods() -> dict[str, Any]:
    return {
        f"{service.full_name}/{method.name}": method
        for module in MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def _fields(of: Descriptor, inside: tuple[FieldDescriptor, ...] = ()) -> Iterator[Any]:
    """Yield the way to each field of a message, and of the messages in it."""
    for field in of.fields:
        way = (*inside, field)
        yield way
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            message = message.fields_by_name["value"].message_type
        if message is not None:
            yield from _fields(message, way)


def _path(way: Sequence[FieldDescriptor]) -> str:
    return ".".join(field.name for field in way)


def _id(value: Any) -> str:
    return value if isinstance(value, str) else _path(value)


WAYS: Final = [
    (name, way) for name, method in _methods().items() for way in _fields(method.input_type)
]


def test_every_field_of_every_call_has_cases() -> None:
    """Each has requests that are taken, and, but for those of two values, such that are not.

    Broken on purpose: with a field added to a request in proto/, or a case taken from the table,
    this fails.
    """
    found: dict[str, set[str]] = {name: set() for name in _methods()}
    for name, way in WAYS:
        found[name].add(_path(way))
    assert found == {name: set(cases) for name, cases in CASES.items()}
    for name, way in WAYS:
        cases = CASES[name][_path(way)]
        assert cases.good, (name, _path(way))
        assert cases.bad or way[-1].type == FieldDescriptor.TYPE_BOOL, (name, _path(way))


class Servers:
    """All three servers, and calls by name."""

    def __init__(self, ports: dict[str, int]) -> None:
        big = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.channels = {
            service: grpc.insecure_channel(f"127.0.0.1:{port}", big)
            for service, port in ports.items()
        }
        self.ports = ports

    def call(self, name: str, data: bytes) -> grpc.StatusCode | tuple[grpc.StatusCode, str]:
        """Send bytes as the one message of a call; return OK, or the status and its message."""
        channel, method = self.channels[name.split("/", maxsplit=1)[0]], _methods()[name]
        ends = (f"/{name}", lambda data: data, method.output_type._concrete_class.FromString)
        try:
            if method.client_streaming:
                (answer,) = channel.stream_stream(*ends)(iter([data]), timeout=SOON)
                if answer.HasField("error"):
                    return grpc.StatusCode[answer.error.code], answer.error.message
            elif method.server_streaming:
                list(channel.unary_stream(*ends)(data, timeout=SOON))
            else:
                channel.unary_unary(*ends)(data, timeout=SOON)
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK


@contextlib.contextmanager
def _served(service: str, add: Any) -> Iterator[int]:
    server = Server(Settings(max_calls=16, drain_seconds=5), service, 0, add, lambda: None)
    server.start()
    yield server.port
    server.stop()


@pytest.fixture(scope="module")
def served(milvus_lite: str, s3: Settings, redis_url: str) -> Iterator[Servers]:
    """The three servers, on real stores; only the model is a fake."""
    model = ColourEncoder(uuid.uuid4().hex[:16])
    tower = model.models().image_tower
    ledger = Ledger(redis_url, 60)
    ledger.fail([Failure(ObjectRef("images", "x"), "corrupt", "", Version("e", 0), 1, 0.0)])
    objects = S3ObjectStore(s3)
    with contextlib.ExitStack() as stack:
        vectors = stack.enter_context(
            contextlib.closing(MilvusVectorStore(Settings(milvus_uri=milvus_lite)))
        )
        vectors.ensure_collection(tower.fingerprint, tower.dimension)
        vector = vector_of(fake_embedding.prepare_red())
        record = ImageRecord(ObjectRef.parse(ID), Version("e", 1), "0" * 16, {}, 64, 48, 1000.0)
        others = np.random.default_rng(0).standard_normal((LEAST, tower.dimension))
        images = [IndexedImage(record, vector)]
        for number, other in enumerate(others):  # so many that there is a relevance
            ref = ObjectRef("others", f"{number}.png")
            unit = (other / np.linalg.norm(other)).astype(np.float32)
            images.append(IndexedImage(dataclasses.replace(record, ref=ref), unit))
        vectors.upsert(tower.fingerprint, images)
        wait_until(
            lambda: (
                len(vectors.search(tower.fingerprint, vector, 99, SearchFilter())) == len(images)
            ),
            "they are there",
        )
        engine = SearchEngine(model, vectors, objects, PageTokens("key"), QueryCache(0))
        engine.check()
        gateway = SearchServicer(engine, 16)
        stack.callback(gateway.close)
        # Of a tower of its own: it would find that the images above have no objects.
        empty = ColourEncoder(uuid.uuid4().hex[:16])
        vectors.ensure_collection(empty.fingerprint, tower.dimension)
        reconciler = Reconciler(objects, vectors, empty, ledger, ("images",), 0.1, lambda: None)
        line = IngestServicer(ledger, reconciler, ("images",), lambda: None)
        towers = stack.enter_context(fake_embedding.running(max_queue=256))
        services = {
            "cra.search.v1.SearchService": lambda server: (
                search_pb2_grpc.add_SearchServiceServicer_to_server(gateway, server)
            ),
            "cra.ingest.v1.IngestService": lambda server: (
                ingest_pb2_grpc.add_IngestServiceServicer_to_server(line, server)
            ),
        }
        ports = {name: stack.enter_context(_served(name, add)) for name, add in services.items()}
        yield Servers({**ports, "cra.embedding.v1.EmbeddingService": towers.server.port})


@pytest.mark.parametrize(("name", "way"), WAYS, ids=_id)
def test_a_field_within_its_limits_and_past_them(
    name: str, way: Sequence[FieldDescriptor], served: Servers
) -> None:
    """What is within is answered; what is past is refused in words that name field and limit.

    Broken on purpose: with any `MAX_` of a service one larger or smaller.
    """
    cases = CASES[name][_path(way)]
    for request in cases.good:
        assert served.call(name, request.SerializeToString()) is grpc.StatusCode.OK
    for bad in cases.bad:
        answer = served.call(name, bad.request.SerializeToString())
        assert isinstance(answer, tuple), bad
        assert (answer[0], bad.says in answer[1]) == (bad.code, True), answer


def _wrong(way: Sequence[FieldDescriptor]) -> bytes:
    """Return a message in which the last field of a way comes as another type."""
    *outer, field = way
    text = {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE}
    data = wire.TagBytes(field.number, 0) + b"\1"
    if field.type not in text and field.type != FieldDescriptor.TYPE_FLOAT:
        data = wire.TagBytes(field.number, 2) + b"\3abc"
    for one in reversed(outer):
        if one.message_type is not None and one.message_type.GetOptions().map_entry:
            data = _within(2, data)
        data = _within(one.number, data)
    return data


def _within(number: int, data: bytes) -> bytes:
    assert len(data) < 128, "one byte tells the length"
    return bytes([*wire.TagBytes(number, 2), len(data), *data])


@pytest.mark.parametrize(("name", "way"), WAYS, ids=_id)
def test_a_field_of_another_type_is_never_dropped_in_silence(
    name: str, way: Sequence[FieldDescriptor], served: Servers
) -> None:
    """A number for a text, a text for a number, a number for a filter: refused by the name.

    Broken on purpose: without `rpc.check_types`, protobuf leaves out what is of another type.
    """
    answer = served.call(name, _wrong(way))
    assert isinstance(answer, tuple)
    assert answer[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert f"{way[-1].name}: is of another type" in answer[1]


def test_a_condition_of_a_newer_contract_is_refused(served: Servers) -> None:
    """A filter that is not understood must not let everything through."""
    data = RED + _within(9, wire.TagBytes(77, 0) + b"\1")
    answer = served.call("cra.search.v1.SearchService/Search", data)
    assert isinstance(answer, tuple)
    assert answer[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert "filter: holds a condition (field 77)" in answer[1]
    elsewhere = RED + wire.TagBytes(77, 0) + b"\1"
    assert served.call("cra.search.v1.SearchService/Search", elsewhere) is grpc.StatusCode.OK


@pytest.mark.parametrize("service", rpc.MAX_MESSAGE_BYTES)
def test_a_message_that_is_too_large_harms_nobody(service: str, served: Servers) -> None:
    """RESOURCE_EXHAUSTED from the server, and by our own channel before it is sent.

    A call on the same connection at the same time is answered. Broken on purpose: without the
    limit on the server's side the message is read, and refused for what is in it.
    """
    name = next(name for name in _methods() if name.startswith(service))
    good = next(iter(CASES[name].values())).good[0].SerializeToString()
    data = bytes(rpc.MAX_MESSAGE_BYTES[service] + 1)
    call: Any = served.channels[service].unary_unary(f"/{name}")
    neighbour = call.future(good, timeout=SOON)
    answer = served.call(name, data)
    assert isinstance(answer, tuple)
    assert answer[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert neighbour.code() is grpc.StatusCode.OK
    with rpc.open_channel(f"127.0.0.1:{served.ports[service]}", service) as ours:
        method: Any = ours.unary_unary(f"/{name}")
        with pytest.raises(grpc.RpcError) as caught:
            method(data, timeout=SOON)
        assert isinstance(rpc.from_rpc_error(caught.value, "it"), ResourceExhaustedError)
        assert method(good, timeout=SOON) is not None


def test_the_client_names_the_field(served: Servers) -> None:
    """What the table tests in words, the client has as the error's field."""
    port = served.ports["cra.search.v1.SearchService"]
    with SearchClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(InvalidArgumentError) as caught:
            client.search("红", top_k=201)
        assert caught.value.field == "top_k"
