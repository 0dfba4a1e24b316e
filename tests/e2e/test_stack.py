"""The local stack as its users see it: every process real, driven from outside."""

import base64
import io
import os
import signal
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from minio.commonconfig import CopySource
from PIL import Image

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.shared import rpc
from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.errors import InvalidArgumentError, NotFoundError, UnauthenticatedError
from deploy.local.state import StateFile
from tests.servers import wait_until
from tests.stack import INGEST, Stack


def photograph(seed: int, kind: str = "JPEG", size: tuple[int, int] = (320, 240)) -> bytes:
    """Return a picture with large and small forms, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def test_a_dropped_image_is_found_without_anyone_asking(stack: Stack) -> None:
    """An image put into the bucket is searchable by text, by itself and by its id."""
    picture = photograph(1)
    stack.put("目录/图 1+a%.jpg", picture, {"caption": "红墙"})
    stack.follows(picture, "目录/图 1+a%.jpg")
    hits = stack.search.search("红墙", top_k=200).hits
    (hit,) = [hit for hit in hits if hit.key == "目录/图 1+a%.jpg"]
    assert hit.image_id == "images/目录/图 1+a%.jpg"
    assert dict(hit.metadata) == {"caption": "红墙"}
    assert (hit.width, hit.height) == (320, 240)
    stack.search.search(image_id=hit.image_id)


def test_overwrite_rename_and_delete_are_followed(stack: Stack) -> None:
    """The index follows each change of the bucket."""
    first, second = photograph(2), photograph(3)
    stack.put("changing.jpg", first)
    stack.follows(first, "changing.jpg")
    stack.put("changing.jpg", second)
    stack.follows(second, "changing.jpg")
    found = {hit.key: hit.score for hit in stack.search.search(image=first, top_k=200).hits}
    assert found["changing.jpg"] < 0.99  # whatever other tests have left that is like it
    stack.bucket.copy_object("images", "renamed.jpg", CopySource("images", "changing.jpg"))
    stack.bucket.remove_object("images", "changing.jpg")
    stack.follows(second, "renamed.jpg")

    def gone() -> bool:
        try:
            stack.search.search(image_id="images/changing.jpg")
        except NotFoundError:
            return True
        return False

    wait_until(gone, "the deleted image is not found any more")


def test_a_bad_file_is_listed_with_its_reason(stack: Stack) -> None:
    """A file that is no image is on the failure list, can be retried, and leaves it when mended."""
    stack.put("坏.jpg", b"this is text")

    def failures() -> dict[str, str]:
        page = stack.ingest.ListFailures(ingest.ListFailuresRequest(), timeout=20)
        return {failure.image_id: failure.reason for failure in page.failures}

    wait_until(lambda: failures().get("images/坏.jpg") == "not_an_image", "it is listed")
    answer = stack.ingest.RetryFailures(
        ingest.RetryFailuresRequest(image_ids=["images/坏.jpg", "images/none.jpg"])
    )
    assert (answer.retried, list(answer.unknown)) == (1, ["images/none.jpg"])
    stack.put("坏.jpg", photograph(4))
    stack.follows(photograph(4), "坏.jpg")
    wait_until(lambda: "images/坏.jpg" not in failures(), "it is no failure any more")


def test_status_adds_up(stack: Stack) -> None:
    """Objects are all indexed, waiting or failed; nothing is unaccounted, stale or orphaned."""
    for number in range(10, 40):
        stack.put(f"many/{number}.jpg", photograph(number))
    wait_until(stack.settled, "all are indexed", 60)
    status = stack.status()
    assert status.objects >= 30
    assert status.objects == status.indexed + status.failed


def test_put_of_photographs(stack: Stack, tmp_path: Path) -> None:
    """`cra put` of a folder indexes every JPEG; each finds itself first, above 0.99."""
    sizes = [(1600, 1200), (640, 960), (800, 800), (333, 777)]
    pictures = {f"photo {n}.jpg": photograph(100 + n, size=sizes[n % 4]) for n in range(12)}
    for name, content in pictures.items():
        (tmp_path / name).write_bytes(content)
    done = stack.cra("put", str(tmp_path), "--prefix", "photos/")
    assert done.returncode == 0, done.stderr
    assert "12 of 12" in done.stdout
    wait_until(stack.settled, "all are indexed", 60)
    for name, content in pictures.items():
        stack.follows(content, f"photos/{name}")


def test_the_command_line(stack: Stack) -> None:
    """`cra` searches, shows status and failures, reconciles, and says what is wrong in a line."""
    stack.put("cli.jpg", photograph(5))
    stack.follows(photograph(5), "cli.jpg")
    assert "images/" in stack.cra("search", "红墙", "--json").stdout
    assert "indexed" in stack.cra("status").stdout
    assert stack.cra("failures").returncode == 0
    assert "objects" in stack.cra("reconcile", "--dry-run").stdout
    wrong = stack.cra("search", "墙" * 1001, "--json")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("Error: text: has 1001 ")


def test_sync_by_hand_needs_credentials(stack: Stack) -> None:
    """Changing calls of ingest and the embedding service refuse callers without credentials."""
    request = ingest.SyncObjectsRequest(image_ids=["images/cli.jpg"])
    assert stack.ingest.SyncObjects(request).accepted == 1
    for token in ("", "wrong"):
        with pytest.raises(grpc.RpcError) as caught:
            stack.ingest_stub(token).SyncObjects(request)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(UnauthenticatedError):
            RemoteEncoder(
                stack.settings.embedding_target, token, tls=stack.settings.client_tls
            ).embed_texts(["红"])
    stack.ingest_stub("").GetStatus(ingest.GetStatusRequest())
    with pytest.raises(grpc.RpcError) as caught:
        stack.ingest.SyncObjects(ingest.SyncObjectsRequest(image_ids=["elsewhere/a.jpg"]))
    error = rpc.from_rpc_error(caught.value, "the server")
    assert isinstance(error, InvalidArgumentError)
    assert error.field == "image_ids[0]"


def test_events_need_their_token(stack: Stack) -> None:
    """The receiver takes events with its bearer token only."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{stack.settings.events_port}/events",
        data=b'{"Records": []}',
        headers={"Authorization": "Bearer wrong"},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)  # noqa: S310
    assert caught.value.code == 401


def test_every_server_has_health_and_reflection(stack: Stack) -> None:
    """Standard health says SERVING, for the service and over all; reflection lists it."""
    services = {
        "cra.search.v1.SearchService": stack.settings.gateway_target,
        "cra.embedding.v1.EmbeddingService": stack.settings.embedding_target,
        INGEST: stack.settings.ingest_target,
    }
    # The stubs' types know neither of the two in full.
    health_stub: Any = health_pb2_grpc.HealthStub
    reflection_stub: Any = reflection_pb2_grpc.ServerReflectionStub
    for service, target in services.items():
        with rpc.open_channel(target, service, tls=stack.settings.client_tls) as channel:
            health = health_stub(channel)
            for name in ("", service):
                answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            reflection = reflection_stub(channel)
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            (listed,) = reflection.ServerReflectionInfo(iter([asked]), timeout=10)
            names = {one.name for one in listed.list_services_response.service}
            assert {service, "grpc.health.v1.Health"} <= names


def test_the_page_uploads_finds_and_shows(stack: Stack) -> None:
    """Over HTTP alone a picture is put, is indexed, is found by itself, and is shown.

    The page speaks mutual TLS to the gateway and to ingest, with its API key and service token.
    """
    page = f"http://127.0.0.1:{stack.settings.web_port}"
    with httpx.Client(base_url=page, timeout=20) as client:
        put = client.put(
            "/api/images",
            params={"name": "门.jpg"},
            content=photograph(77),
            headers={"X-CRA-Request": "1"},
        ).json()

        def indexed() -> bool:
            return bool(client.get("/api/images/state", params=put).json()["state"] == "indexed")

        wait_until(indexed, "it is indexed")
        image = base64.b64encode(photograph(77)).decode()
        (hit,) = client.post("/api/search", json={"image": image, "top_k": 1}).json()["hits"]
        assert hit["image_id"] == put["image_id"]
        shown = Image.open(io.BytesIO(client.get(hit["thumbnail"]).content))
        assert (shown.format, shown.size) == ("WEBP", (320, 240))
        assert client.get(hit["original"], follow_redirects=True).content == photograph(77)
        releases = client.get("/api/releases").json()["releases"]
        assert [one["base"] for one in releases if one["active"]] == [True]


def test_reconcile_over_grpc_reports_the_end(stack: Stack) -> None:
    """Reconcile streams to a last message with everything counted."""
    wait_until(stack.settled, "nothing is under way", 60)
    *_, last = stack.ingest.Reconcile(ingest.ReconcileRequest())
    assert last.done
    assert (last.summary.missing, last.summary.stale, last.summary.orphaned) == (0, 0, 0)
    assert stack.status().last_reconcile.objects == last.summary.objects


def test_events_wait_while_the_receiver_is_started_again(stack: Stack) -> None:
    """None is refused: the object store would not send it a second time.

    Break: let ingest bind the port itself.
    """
    state = StateFile(Path(stack.env["CRA_DATA_DIR"])).running()
    assert state is not None
    (pid,) = (part.pid for part in state.parts if part.name == "ingest")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    token = stack.settings.event_token.get_secret_value()
    answer = httpx.post(
        f"http://127.0.0.1:{stack.settings.events_port}/events",
        headers={"Authorization": f"Bearer {token}"},
        json={"event_type": "delete", "key": "/buckets/images/none.png", "message": {}},
        timeout=60,
    )
    assert answer.status_code == HTTPStatus.OK, answer.text
    wait_until(stack.settled, "ingest answers again", 60, every=0.5)
