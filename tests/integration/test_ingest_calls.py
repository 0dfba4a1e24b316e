"""The ingest service's calls, over gRPC, on real stores of which some are down."""

import contextlib
import io
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
import redis

from cra.ingest.v1 import ingest_pb2 as pb
from cra.ingest.v1 import ingest_pb2_grpc as pb_grpc
from cra.services.ingest.ledger import Failure, Ledger
from cra.services.ingest.reconcile import Reconciler, Status
from cra.services.ingest.servicer import SERVICE, IngestServicer
from cra.services.ingest.sync import Synchronizer
from cra.shared import rpc
from cra.shared.adapters.object_store import S3ObjectStore, connect
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.domain import ObjectRef, Version
from cra.shared.errors import InvalidArgumentError, UnavailableError
from cra.shared.ports import Models
from cra.shared.server import Server
from cra.shared.settings import Settings
from tests.fakes import COLOURS, ColourEncoder, picture
from tests.servers import free_ports

RED = COLOURS["红"]


class Encoder(ColourEncoder):
    """An encoder that can be down."""

    down = False

    def models(self) -> Models:
        """See `ports.Encoder`."""
        if self.down:
            raise UnavailableError("the embedding service does not answer")
        return super().models()


@dataclass
class Ingest:
    """The service, what it stands on, and a client."""

    stub: pb_grpc.IngestServiceStub
    ledger: Ledger
    encoder: Encoder
    objects: S3ObjectStore
    reconciler: Reconciler
    servicer: IngestServicer

    def status(self) -> pb.GetStatusResponse:
        """Count now."""
        return self.stub.GetStatus(pb.GetStatusRequest(refresh=True), timeout=20)


@pytest.fixture
def ingest(s3: Settings, vectors: MilvusVectorStore, redis_url: str) -> Iterator[Ingest]:
    """The service, with one object indexed, one in line and one failed."""
    ledger = Ledger(redis_url, 60)
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    encoder, objects = Encoder(uuid.uuid4().hex[:16]), S3ObjectStore(s3)
    store = connect(s3)
    for item in store.list_objects("images", recursive=True):
        store.remove_object("images", item.object_name or "")
    refs = [ObjectRef("images", f"{name}.png") for name in ("indexed", "waiting", "failed")]
    for ref in refs:
        content = picture(RED)
        store.put_object(ref.bucket, ref.key, io.BytesIO(content), len(content))
    Synchronizer(objects, vectors, encoder, 10**6, ("images",)).sync(refs[:1])
    ledger.add(refs[1:2])
    details = objects.look(refs[2])
    assert details is not None
    ledger.fail([Failure(refs[2], "corrupt", "no image", details.version, 1, 0.0)])
    reconciler = Reconciler(objects, vectors, encoder, ledger, ("images",), 0.1, wake=lambda: None)
    servicer = IngestServicer(ledger, reconciler, ("images",), wake=lambda: None)
    server = Server(
        s3,
        SERVICE,
        0,
        add=lambda server: pb_grpc.add_IngestServiceServicer_to_server(servicer, server),
        ready=ledger.ping,
    )
    server.start()
    with rpc.open_channel(f"127.0.0.1:{server.port}", SERVICE) as channel:
        yield Ingest(
            pb_grpc.IngestServiceStub(channel), ledger, encoder, objects, reconciler, servicer
        )
    server.stop()


def test_status_without_the_encoder_counts_the_index_seen_last(ingest: Ingest) -> None:
    """An outage of the embedding service is said, and hides nothing of what is known."""
    before = ingest.status()
    assert (before.objects, before.indexed, before.waiting, before.failed) == (3, 1, 1, 1)
    assert (before.unaccounted, list(before.down)) == (0, [])
    ingest.encoder.down = True
    after = ingest.status()
    assert (after.objects, after.indexed, after.waiting, after.failed) == (3, 1, 1, 1)
    assert after.image_tower == before.image_tower
    assert list(after.down) == ["the embedding service does not answer"]


def test_status_of_a_tower_never_seen_is_unknown_and_not_zero(ingest: Ingest) -> None:
    """Started without the encoder, it knows of no index: what needs one is not set."""
    ingest.encoder.down = True
    status = ingest.status()
    assert (status.objects, status.waiting, status.failed) == (3, 1, 1)
    for name in ("indexed", "unaccounted", "stale", "orphaned"):
        assert not status.HasField(name)
    assert status.image_tower == ""


def test_status_without_the_index_says_what_is_known(ingest: Ingest) -> None:
    """Objects, line and failures are counted without Milvus, which is named."""
    (port,) = free_ports(1)
    settings = Settings(milvus_uri=f"http://127.0.0.1:{port}", milvus_timeout=1)
    with contextlib.closing(MilvusVectorStore(settings)) as down:
        ingest.reconciler._vectors = down
        status = ingest.status()
    assert (status.objects, status.waiting, status.failed) == (3, 1, 1)
    assert not status.HasField("indexed")
    assert not status.HasField("unaccounted")
    assert len(status.down) == 1
    assert "Milvus" in status.down[0]


def test_who_is_gone_spoils_nobodys_status(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited for a count until its own time was up counts nothing; nor does its deadline count.

    Break: count in the context of the call, or without asking first whether anybody waits.
    """
    counted: list[object] = []
    count = ingest.reconciler.status

    def counting() -> Status:
        counted.append(rpc.caller.get())
        return count()

    monkeypatch.setattr(ingest.reconciler, "status", counting)
    with ingest.servicer._counting, pytest.raises(grpc.RpcError) as caught:
        ingest.stub.GetStatus(pb.GetStatusRequest(refresh=True), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert ingest.status().indexed == 1
    assert counted == [None]


def test_failures_are_paged_and_a_made_up_token_is_refused(ingest: Ingest) -> None:
    """A token that no page gave is no end of the list."""
    ref = ObjectRef("images", "worse.png")
    ingest.ledger.fail([Failure(ref, "corrupt", "no image", Version("e", 0), 1, 0.0)])
    page = ingest.stub.ListFailures(pb.ListFailuresRequest(page_size=1), timeout=20)
    assert [one.image_id for one in page.failures] == ["images/failed.png"]
    rest = pb.ListFailuresRequest(page_token=page.next_page_token)
    page = ingest.stub.ListFailures(rest, timeout=20)
    assert [one.image_id for one in page.failures] == ["images/worse.png"]
    assert page.next_page_token == ""
    with pytest.raises(grpc.RpcError) as caught:
        ingest.stub.ListFailures(pb.ListFailuresRequest(page_token="x"), timeout=20)
    refused = rpc.from_rpc_error(caught.value, "ingest")
    assert isinstance(refused, InvalidArgumentError)
    assert refused.field == "page_token"
