"""Sets up the object store: `python -m deploy.s3` once it is up, as often as one likes.

Makes the buckets; in MinIO a user for each role, too, and the events of buckets with images.
SeaweedFS reads users and events from files when it starts: `python -m deploy.s3 --seaweedfs FOLDER`
writes them. The root's credentials are `MINIO_ROOT_USER` and `MINIO_ROOT_PASSWORD`; those of a role
are in `ROLE.env` of the folder that `--users` names.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import urllib3
from dotenv import dotenv_values
from minio.error import MinioException
from pydantic import SecretStr

from cra.shared.adapters import object_store
from cra.shared.errors import FailedPreconditionError
from cra.shared.settings import Settings
from deploy.s3 import minio, seaweedfs
from deploy.s3.policies import ROLES

ANSWERS_WITHIN: Final = 180.0
"""Seconds that the store may take to start."""


def read_users(folder: Path) -> dict[str, tuple[str, str]]:
    """Return access and secret key of each role.

    Raises:
        FailedPreconditionError: names the file and variable that is missing.
    """
    users = {}
    for role in ROLES:
        values = dotenv_values(folder / f"{role}.env")
        keys = [values.get(name) for name in ("CRA_S3_ACCESS_KEY", "CRA_S3_SECRET_KEY")]
        access_key, secret_key = (key or "" for key in keys)
        if not access_key or not secret_key:
            raise FailedPreconditionError(
                f"{folder / role}.env: CRA_S3_ACCESS_KEY and CRA_S3_SECRET_KEY are needed"
            )
        users[role] = (access_key, secret_key)
    return users


def set_up(settings: Settings, users: Mapping[str, tuple[str, str]]) -> None:
    """Make what is missing in a store that is up.

    Args:
        settings: with credentials of the root.
        users: access and secret key by role.

    Raises:
        MinioException: the store refuses.
    """
    client = object_store.connect(settings)
    for bucket in (*settings.buckets, settings.releases_bucket):
        if not client.bucket_exists(bucket):
            client.make_bucket(bucket)
            print(f"made the bucket {bucket}")
    if not is_minio(settings):
        print("its users and events stand in its own files")
        return
    minio.add_users(settings, users)
    for bucket in settings.buckets:
        minio.send_events(client, bucket)
    print(f"users {', '.join(users)}; events of {', '.join(settings.buckets)} are sent")


def is_minio(settings: Settings) -> bool:
    """Tell whether the store is MinIO, by the name that it gives itself."""
    scheme = "https" if settings.s3_secure else "http"
    answer = urllib3.request("GET", f"{scheme}://{settings.s3_endpoint}/", retries=False, timeout=5)
    return answer.headers.get("Server", "").startswith("MinIO")


def await_store(settings: Settings) -> None:
    """Return once the store answers.

    Raises:
        FailedPreconditionError: it does not.
    """
    client = object_store.connect(settings)
    end = time.monotonic() + ANSWERS_WITHIN
    while True:
        try:
            client.list_buckets()
            return
        except (MinioException, urllib3.exceptions.HTTPError) as error:
            if time.monotonic() > end:
                raise FailedPreconditionError(
                    f"the object store at {settings.s3_endpoint} does not answer: {error}"
                ) from error
        time.sleep(1)


def main() -> None:
    """Set up, or write the files."""
    parser = argparse.ArgumentParser(prog="python -m deploy.s3", description=__doc__)
    parser.add_argument("--users", type=Path, required=True, help="folder of env files of roles")
    parser.add_argument("--seaweedfs", type=Path, help="folder that SeaweedFS's files go to")
    parser.add_argument("--events", help="URL of the receiver of events, for SeaweedFS's files")
    options = parser.parse_args()
    try:
        root = (os.environ["MINIO_ROOT_USER"], os.environ["MINIO_ROOT_PASSWORD"])
        settings = Settings.load().model_copy(
            update={"s3_access_key": root[0], "s3_secret_key": SecretStr(root[1])}
        )
        users = read_users(options.users)
        if options.seaweedfs:
            users = {seaweedfs.ADMIN: root, **users}
            seaweedfs.configure(options.seaweedfs, settings, users, options.events)
            return
        await_store(settings)
        set_up(settings, users)
    except KeyError as error:
        sys.exit(f"{error} is not set")
    except (FailedPreconditionError, MinioException) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
