"""Each user of the object store may do what its part of the system does, and nothing else."""

import io
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from minio import Minio
from minio.error import S3Error

from cra.shared.adapters.object_store import S3ObjectStore, connect
from cra.shared.adapters.release_store import S3ReleaseStore
from cra.shared.domain import ObjectRef
from cra.shared.errors import PermissionDeniedError
from cra.shared.settings import Settings
from deploy.local.parts import S3User
from deploy.s3.policies import POLICIES

ROLES = ("gateway", "ingest", "embedding", "web", "operator")
BUCKETS = ("images", "releases", "others")
DOINGS: dict[str, Callable[[Minio, str], Any]] = {
    "read": lambda client, bucket: client.get_object(bucket, "there").close(),
    "look": lambda client, bucket: client.stat_object(bucket, "there"),
    "list": lambda client, bucket: list(client.list_objects(bucket)),
    "exists": lambda client, bucket: client.bucket_exists(bucket),
    "write": lambda client, bucket: client.put_object(bucket, "new", io.BytesIO(b"x"), 1),
    "overwrite": lambda client, bucket: client.put_object(bucket, "there", io.BytesIO(b"x"), 1),
    "delete": lambda client, bucket: client.remove_object(bucket, "new"),
    "make": lambda client, bucket: client.make_bucket(f"{bucket}-new"),
    "drop": lambda client, bucket: client.remove_bucket(bucket),
    "policy": lambda client, bucket: client.delete_bucket_policy(bucket),
}
READS, LISTS = {"read", "look", "exists"}, {"list"}
# SeaweedFS says whether a bucket exists to whoever may read it; S3 wants s3:ListBucket for that.
WRITES = {"write", "overwrite", "delete"}
ALLOWED = {
    ("gateway", "images"): READS,
    ("ingest", "images"): READS | LISTS,
    ("embedding", "releases"): READS | LISTS,
    # Its policy leaves deleting out; SeaweedFS has one word for all writing.
    ("web", "images"): READS | WRITES,
    ("operator", "images"): READS | LISTS | WRITES,
    ("operator", "releases"): READS | LISTS | WRITES,
}


@pytest.fixture(scope="module")
def users(s3: Settings, s3_folder: Path) -> dict[str, Settings]:
    """Settings of each user of a store with an object in each of three buckets."""
    admin = connect(s3)
    for bucket in BUCKETS:
        if not admin.bucket_exists(bucket):
            admin.make_bucket(bucket)
        admin.put_object(bucket, "there", io.BytesIO(b"x"), 1)
    found = {}
    for identity in json.loads((s3_folder / "s3" / "s3.json").read_text())["identities"]:
        (keys,) = identity["credentials"]
        user = S3User(keys["accessKey"], keys["secretKey"])
        found[identity["name"]] = user.take(s3)
    return found


def _may(doing: Callable[[Minio, str], Any], settings: Settings, bucket: str) -> bool:
    try:
        doing(connect(settings), bucket)
    except S3Error as error:
        if error.code == "AccessDenied":
            return False
        raise
    return True


@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("role", ROLES)
def test_a_user_may_do_its_part_and_nothing_else(
    role: str, bucket: str, users: dict[str, Settings]
) -> None:
    """Of all there is to do in each bucket, the store allows a user just what its policy says.

    Break: give a policy one action more or less, or `Admin` to all in `_configure_s3`.
    """
    allowed = {name for name, doing in DOINGS.items() if _may(doing, users[role], bucket)}
    assert allowed == ALLOWED.get((role, bucket), set())


def test_the_parts_do_their_jobs_as_their_users(users: dict[str, Settings], s3: Settings) -> None:
    """Each part's own code works with its own credentials.

    Break: leave `s3:ListBucket` out of a policy.
    """
    url = S3ObjectStore(users["gateway"]).signed_url(ObjectRef("images", "there"))
    with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310
        assert answer.read() == b"x"
    ingest = S3ObjectStore(users["ingest"])
    ingest.check()
    assert ObjectRef("images", "there") in {one.ref for one in ingest.list("images")}
    assert ingest.fetch(ObjectRef("images", "there")) is not None
    embedding, admin = S3ReleaseStore(users["embedding"]), S3ReleaseStore(s3)
    # Other tests may have left releases there.
    assert embedding.list() == admin.list()
    assert embedding.pointer() == admin.pointer()
    with pytest.raises(PermissionDeniedError):
        embedding.activate("halls-00000000", "f00d")


def test_policies_allow_no_wildcard() -> None:
    """The documents for other stores name each action and bucket.

    Break: an action `s3:*`, or a resource `arn:aws:s3:::*`.
    """
    assert {file.stem for file in POLICIES.glob("*.json")} == set(ROLES)
    for file in POLICIES.glob("*.json"):
        for statement in json.loads(file.read_text())["Statement"]:
            assert statement["Effect"] == "Allow"
            assert not [action for action in statement["Action"] if "*" in action]
            for resource in statement["Resource"]:
                bucket, _, rest = resource.removeprefix("arn:aws:s3:::").partition("/")
                assert bucket in {"images", "releases"}
                assert rest in {"", "*"}
