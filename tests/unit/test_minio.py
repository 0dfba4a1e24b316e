"""MinIO as compose runs it: its settings against its documentation, its events, its users.

No package brings MinIO, so what it documents stands in: the variables and the event of its guide to
bucket notifications (docs/bucket/notifications), the names of its event types
(internal/event/name.go), and the admin calls of its own SDK.
"""

import io
import json
import re
import shlex
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Final
from xml.etree import ElementTree

import pytest
import urllib3
from minio.crypto import decrypt
from pydantic import SecretStr
from starlette.testclient import TestClient

from cra.services.ingest.receiver import create_receiver
from cra.shared.domain import ObjectRef
from cra.shared.settings import Settings
from deploy.s3.__main__ import is_minio, set_up
from deploy.s3.minio import EVENTS, EVENTS_ARN
from deploy.s3.policies import ROLES
from tests.unit.test_compose import COMPOSE_ENV, OWN_ENV, SERVICES
from tests.unit.test_receiver import Line

S3: Final = SERVICES["s3"]
WEBHOOK: Final = "MINIO_NOTIFY_WEBHOOK"
DOCUMENTED: Final = {
    "ENABLE": "on|off",
    "ENDPOINT": r"http://[a-z0-9-]+:\d+/\S*",
    "AUTH_TOKEN": r"\S+|Bearer \S+",
    "QUEUE_DIR": "/.+",
    "QUEUE_LIMIT": r"\d+",
    "COMMENT": ".*",
}
"""The variables of a webhook target, and what each takes."""
KINDS: Final = {
    "s3:ObjectCreated:*": [
        *("CompleteMultipartUpload", "Copy", "Post", "Put"),
        *("PutRetention", "PutLegalHold", "PutTagging", "DeleteTagging"),
    ],
    "s3:ObjectRemoved:*": ["Delete", "DeleteMarkerCreated", "NoOP", "DeleteAllVersions"],
}
"""What each group of event types stands for."""


def webhook() -> dict[str, str]:
    """Return the webhook's variables in compose, without the target's name."""
    said = dict(S3["environment"])
    (command,) = S3["command"]
    export = re.search(r"export (\w+)=(\"[^\"]*\")", command.replace("$$", "$"))
    assert export
    (value,) = shlex.split(export.group(2))
    token = OWN_ENV["events"]["CRA_EVENT_TOKEN"] or ""
    said[export.group(1)] = value.replace("$CRA_EVENT_TOKEN", token)
    (target,) = {name.rpartition("_")[2] for name in said if name.startswith(WEBHOOK)}
    assert f"arn:minio:sqs::{target}:webhook" == EVENTS_ARN
    return {
        name.removeprefix(f"{WEBHOOK}_").removesuffix(f"_{target}"): value
        for name, value in said.items()
        if name.startswith(WEBHOOK)
    }


def test_the_webhook_is_set_as_documented() -> None:
    """Each variable is one that MinIO documents, with a value that it takes.

    Break: QUEUE_FOLDER for QUEUE_DIR, or `true` for `on`.
    """
    said = webhook()
    assert {"ENABLE", "ENDPOINT", "AUTH_TOKEN", "QUEUE_DIR"} <= set(said)
    for name, value in said.items():
        assert re.fullmatch(DOCUMENTED[name], value), f"{name}={value}"
    assert said["ENABLE"] == "on"
    assert set(S3["environment"]) - {f"{WEBHOOK}_{name}_CRA" for name in said} == {
        "MINIO_API_SYNC_EVENTS"
    }


def test_events_that_wait_are_kept() -> None:
    """Those that are not yet delivered wait on the store's volume."""
    (volume,) = S3["volumes"]
    assert webhook()["QUEUE_DIR"].startswith(volume.partition(":")[2] + "/")


def test_the_webhook_reaches_the_receiver() -> None:
    """Endpoint and token are those of the receiver in compose, and MinIO's question is answered.

    Before it sends, MinIO asks with HEAD whether somebody is there; any answer means yes.
    """
    said = webhook()
    url = urllib.parse.urlsplit(said["ENDPOINT"])
    assert (url.hostname, url.port) == ("ingest", Settings.model_fields["events_port"].default)
    line = Line()
    token = OWN_ENV["events"]["CRA_EVENT_TOKEN"] or ""
    with TestClient(create_receiver(line, ("images",), token, line.wake)) as client:  # type: ignore[arg-type]
        headers = {"Authorization": said["AUTH_TOKEN"]}
        assert client.head(url.path, headers=headers).status_code < 500
        answer = client.post(url.path, json=event("s3:ObjectCreated:Put", "a.jpg"), headers=headers)
    assert answer.json() == {"accepted": 1}


def event(kind: str, key: str, bucket: str = "images") -> dict[str, Any]:
    """Return the webhook's message as MinIO's guide shows it, of this kind."""
    thing: dict[str, Any] = {"key": urllib.parse.quote_plus(key), "sequencer": "15C32494527B46C5"}
    if ":ObjectRemoved:" not in kind:
        thing |= {
            "size": 6474,
            "eTag": "430f89010c77aa34fc8760696da62d08-1",
            "contentType": "image/jpeg",
            "userMetadata": {"content-type": "image/jpeg"},
            "versionId": "1",
        }
    return {
        "EventName": kind,
        "Key": f"{bucket}/{key}",
        "Records": [
            {
                "eventVersion": "2.0",
                "eventSource": "minio:s3",
                "awsRegion": "",
                "eventTime": "2019-09-10T17:41:54Z",
                "eventName": kind,
                "userIdentity": {"principalId": "AKIAIOSFODNN7EXAMPLE"},
                "requestParameters": {
                    "accessKey": "AKIAIOSFODNN7EXAMPLE",
                    "region": "",
                    "sourceIPAddress": "192.0.2.1",
                },
                "responseElements": {
                    "x-amz-request-id": "15C3249451E12784",
                    "x-minio-deployment-id": "751a8ba6-acb2-42f6-a297-4cdf1cf1fa4f",
                    "x-minio-origin-endpoint": "http://192.0.2.2:9000",
                },
                "s3": {
                    "s3SchemaVersion": "1.0",
                    "configurationId": "Config",
                    "bucket": {
                        "name": bucket,
                        "ownerIdentity": {"principalId": "AKIAIOSFODNN7EXAMPLE"},
                        "arn": f"arn:aws:s3:::{bucket}",
                    },
                    "object": thing,
                },
                "source": {"host": "192.0.2.1", "port": "", "userAgent": "MinIO (linux; amd64)"},
            }
        ],
    }


@pytest.mark.parametrize(
    "kind", [f"{group[:-1]}{kind}" for group in EVENTS for kind in KINDS[group]]
)
def test_each_kind_of_event_puts_its_object_in_line(kind: str) -> None:
    """Whatever the buckets are told to send, the object is looked at again, under its own key."""
    key = "大殿/歇山顶 1+1=2.jpg"
    line = Line()
    with TestClient(create_receiver(line, ("images",), "t", line.wake)) as client:  # type: ignore[arg-type]
        answer = client.post(
            "/events", json=event(kind, key), headers={"Authorization": "Bearer t"}
        )
    assert answer.json() == {"accepted": 1}
    assert line.refs == [ObjectRef("images", key)]


class FakeMinio(BaseHTTPRequestHandler):
    """The calls that setting up makes, by S3's and MinIO's admin API; what they said is kept."""

    buckets: ClassVar[set[str]]
    users: ClassVar[dict[str, str]]
    policies: ClassVar[dict[str, Any]]
    attached: ClassVar[set[tuple[str, str]]]
    notifications: ClassVar[dict[str, str]]

    def version_string(self) -> str:
        """Return what MinIO calls itself."""
        return "MinIO"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  of the standard library
        """Say nothing."""

    def _answer(self, status: int, body: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    def _asked(self) -> tuple[str, dict[str, str], bytes]:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return url.path.strip("/"), query, body

    def do_HEAD(self) -> None:
        """Tell whether there is a bucket."""
        path, _, _ = self._asked()
        self._answer(200 if path in self.buckets else 404)

    def do_GET(self) -> None:
        """Return a bucket's notifications."""
        path, query, _ = self._asked()
        if "notification" in query:
            none = '<NotificationConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>'
            self._answer(200, self.notifications.get(path, none))
        else:
            self._answer(403)

    def do_PUT(self) -> None:
        """Make a bucket, a user, a policy; set notifications."""
        path, query, body = self._asked()
        if path == "minio/admin/v3/add-user":
            told = json.loads(self._open(body))
            assert told["status"] == "enabled"
            self.users[query["accessKey"]] = told["secretKey"]
        elif path == "minio/admin/v3/add-canned-policy":
            self.policies[query["name"]] = json.loads(body)
        elif "notification" in query:
            self.notifications[path] = body.decode()
        else:
            self.buckets.add(path)
        self._answer(200)

    def do_POST(self) -> None:
        """Attach a policy to a user, once."""
        path, _, body = self._asked()
        assert path == "minio/admin/v3/idp/builtin/policy/attach"
        told = json.loads(self._open(body))
        pair = (told["user"], *told["policies"])
        if pair in self.attached:
            code = "XMinioAdminPolicyChangeAlreadyApplied"
            self._answer(400, json.dumps({"Code": code, "Message": "already in effect"}))
            return
        self.attached.add(pair)
        self._answer(204)

    def _open(self, body: bytes) -> bytes:
        sealed = urllib3.HTTPResponse(io.BytesIO(body), preload_content=False)
        return decrypt(sealed, "root-secret")


@pytest.fixture
def store() -> Iterator[tuple[Settings, type[FakeMinio]]]:
    """A fake MinIO, and settings with its root's credentials."""

    class Fresh(FakeMinio):
        buckets: ClassVar[set[str]] = set()
        users: ClassVar[dict[str, str]] = {}
        policies: ClassVar[dict[str, Any]] = {}
        attached: ClassVar[set[tuple[str, str]]] = set()
        notifications: ClassVar[dict[str, str]] = {}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Fresh)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    settings = Settings(
        s3_endpoint=f"127.0.0.1:{server.server_port}",
        s3_access_key="root",
        s3_secret_key=SecretStr("root-secret"),
        buckets=("images", "more"),
    )
    yield settings, Fresh
    server.shutdown()
    thread.join()
    server.server_close()


def test_setting_up_makes_all_and_twice_is_once(store: tuple[Settings, type[FakeMinio]]) -> None:
    """Buckets, a user with its own policy for each role, and the events of buckets with images.

    Break: raise on a policy that is attached already, or leave a bucket of `CRA_BUCKETS` out of the
    policies.
    """
    settings, minio = store
    users = {role: (f"key-{role}", f"secret-{role}") for role in ROLES}
    assert is_minio(settings)
    for _ in range(2):
        set_up(settings, users)
        assert minio.buckets == {"images", "more", "releases"}
        assert minio.users == dict(users.values())
        assert minio.attached == {(f"key-{role}", f"cra-{role}") for role in ROLES}
        assert set(minio.notifications) == {"images", "more"}
        for text in minio.notifications.values():
            (queue,) = ElementTree.fromstring(text)  # noqa: S314  our own
            told = [(one.tag.rpartition("}")[2], one.text) for one in queue]
            assert ("Queue", EVENTS_ARN) in told
            assert [value for tag, value in told if tag == "Event"] == EVENTS
    (read,) = minio.policies["cra-gateway"]["Statement"]
    assert read["Resource"] == ["arn:aws:s3:::images/*", "arn:aws:s3:::more/*"]


def test_the_receiver_s_buckets_are_those_that_send() -> None:
    """Compose sets up the buckets that ingest takes events of: both read one setting."""
    assert "CRA_BUCKETS" in COMPOSE_ENV
    for name in ("s3-setup", "ingest"):
        assert "deploy/compose.env" in SERVICES[name]["env_file"]
