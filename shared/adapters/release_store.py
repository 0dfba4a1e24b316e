"""The release store port over the S3 API: one bucket of releases, and the pointer beside them.

A release is `NAME/release.json` and the files that this manifest names; `active.json` is the
pointer.
"""

import datetime
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import urllib3
from minio.error import S3Error

from cra.shared.adapters.object_store import call_s3, connect
from cra.shared.errors import (
    AbortedError,
    CraError,
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from cra.shared.releases import (
    MANIFEST,
    MAX_MANIFEST,
    NAME,
    Manifest,
    Pointer,
    PublishedRelease,
    Release,
    name_of,
    parse_manifest,
    read_release,
)
from cra.shared.settings import Settings

POINTER: Final = "active.json"
MAX_POINTER: Final = 2**20
"""Bytes."""

_MADE: Final = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}
_LOST: Final = {404, 409, 412}
"""What a conditional write is answered when its condition does not hold."""


class S3ReleaseStore:
    """Any store that speaks S3 and knows conditional writes; see `ports.ReleaseStore`."""

    def __init__(self, settings: Settings) -> None:
        self._client = connect(settings)
        self._bucket = settings.releases_bucket
        self._http = urllib3.PoolManager(timeout=urllib3.Timeout(connect=5, read=30), retries=False)

    def list(self) -> list[PublishedRelease]:
        objects: dict[str, list[Any]] = {}
        for item in call_s3(lambda: list(self._client.list_objects(self._bucket, recursive=True))):
            name, _, file = item.object_name.partition("/")
            if file and NAME.fullmatch(name):
                objects.setdefault(name, []).append(item)
        found = []
        for name, items in objects.items():
            # The manifest comes last: without it, somebody is still at it, or was cut short.
            manifest = next((i for i in items if i.object_name == f"{name}/{MANIFEST}"), None)
            if manifest is not None:
                found.append(PublishedRelease(name, _state(items), manifest.last_modified))
        return sorted(found, key=lambda one: (one.published_at, one.name), reverse=True)

    def manifest(self, name: str) -> Manifest:
        return parse_manifest(self._encoded_manifest(name))

    def fetch(self, name: str, parent: Path) -> Release:
        target = parent / name
        encoded = self._encoded_manifest(name)
        manifest = parse_manifest(encoded)
        if target.exists():
            try:
                return _named(read_release(target), name)
            except FailedPreconditionError:
                shutil.rmtree(target)
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=parent) as temporary:
            folder = Path(temporary) / name
            folder.mkdir()
            (folder / MANIFEST).write_bytes(encoded)
            for file, expected in manifest.files.items():
                size = self._size(f"{name}/{file}")
                if size != expected.size:
                    raise FailedPreconditionError(
                        f"release {name}: {file} "
                        + ("is missing" if size is None else f"is torn: it has {size} bytes")
                        + f", the manifest says {expected.size}"
                    )
                self._download(f"{name}/{file}", folder / file)
            try:
                release = _named(read_release(folder), name)
            except FailedPreconditionError as error:
                raise FailedPreconditionError(f"release {name}: {error.message}") from error
            try:
                folder.rename(target)
            except OSError:
                if not target.exists():
                    raise
                return _named(read_release(target), name)  # somebody else was faster
            return replace(release, folder=target)

    def publish(self, folder: Path) -> Release:
        release = read_release(folder)
        if release.name != folder.resolve().name:
            raise FailedPreconditionError(
                f"the folder {folder.name} holds what should be named {release.name}: it was "
                f"renamed, or its {MANIFEST} was changed"
            )
        encoded = (folder / MANIFEST).read_bytes()
        self._make_bucket()
        key = f"{release.name}/{MANIFEST}"
        there = self._read(key, MAX_MANIFEST)
        if there is not None and there[0] != encoded:
            raise FailedPreconditionError(f"another release has the name {release.name}")
        for file, expected in release.manifest.files.items():
            # The name vouches for these bytes: what a torn publication left may be replaced.
            name = f"{release.name}/{file}"
            if there is None or self._digest(name) != expected.sha256:
                source = str(folder / file)
                call_s3(functools.partial(self._client.fput_object, self._bucket, name, source))
        if there is not None or self._write(key, encoded, {"If-None-Match": "*"}):
            return release
        # Somebody else was faster, with the same release as a rule.
        if not self._is_there(key, encoded):
            raise FailedPreconditionError(f"another release has the name {release.name}")
        return release

    def remove(self, name: str) -> None:
        encoded = self._encoded_manifest(name)
        if self._is_held(name):
            raise FailedPreconditionError(
                f"{name} is active, or a rollback would go back to it: activate others first"
            )
        # Without its manifest a release is none: from here on nobody can choose it.
        manifest = f"{name}/{MANIFEST}"
        call_s3(lambda: self._client.remove_object(self._bucket, manifest))
        if self._is_held(name):
            self._write(manifest, encoded, {})
            raise AbortedError(f"somebody has just chosen {name}; it is still there")
        for file in call_s3(lambda: list(self._client.list_objects(self._bucket, f"{name}/"))):
            call_s3(functools.partial(self._client.remove_object, self._bucket, file.object_name))

    def _is_held(self, name: str) -> bool:
        pointer = self.pointer()
        return name in {pointer.release, *(choice.release for choice in pointer.history[-1:])}

    def pointer(self) -> Pointer:
        return self._pointer()[0]

    def activate(self, release: str, image_tower: str) -> Pointer:
        self._make_bucket()
        return self._change(lambda pointer: pointer.activated(release, image_tower))

    def rollback(self) -> Pointer:
        return self._change(Pointer.rolled_back)

    def _change(self, change: Callable[[Pointer], Pointer]) -> Pointer:
        """Write a changed pointer in the place of the one that was read, and of no other."""
        before, etag = self._pointer()
        after = change(before)
        if after is before:
            return before
        condition = {"If-Match": f'"{etag}"'} if etag else {"If-None-Match": "*"}
        if not self._write(POINTER, after.encode(), condition):
            raise AbortedError("somebody else has just changed which release is active; look again")
        return after

    def _pointer(self) -> tuple[Pointer, str]:
        """Return the pointer and the ETag of its object, empty if there is none."""
        found = self._read(POINTER, MAX_POINTER)
        if found is None:
            return Pointer(), ""
        try:
            return Pointer.parse(found[0]), found[1]
        except FailedPreconditionError as error:
            raise FailedPreconditionError(
                f"{self._bucket}/{POINTER}: {error.message}; remove the object to begin anew"
            ) from error

    def _encoded_manifest(self, name: str) -> bytes:
        """Read a manifest and check that it is the one that the name promises."""
        found = self._read(f"{name}/{MANIFEST}", MAX_MANIFEST) if NAME.fullmatch(name) else None
        if found is None:
            raise NotFoundError(f"there is no text release {name!r}")
        if name_of(found[0]) != name:
            raise FailedPreconditionError(
                f"release {name}: its manifest was changed, or belongs to {name_of(found[0])}"
            )
        return found[0]

    def _make_bucket(self) -> None:
        def make() -> None:
            try:
                self._client.make_bucket(self._bucket)
            except S3Error as error:
                if error.code not in _MADE:
                    raise

        if not call_s3(lambda: self._client.bucket_exists(self._bucket)):
            call_s3(make)

    def _read(self, key: str, most: int) -> tuple[bytes, str] | None:
        """Return an object's content and ETag, or None if there is no such object."""

        def read() -> tuple[bytes, str]:
            response = self._client.get_object(self._bucket, key)
            try:
                return response.read(most + 1), response.headers.get("etag", "").strip('"')
            finally:
                response.close()
                response.release_conn()

        found: tuple[bytes, str] | None = call_s3(read, gone=True)
        if found is not None and len(found[0]) > most:
            raise FailedPreconditionError(f"{self._bucket}/{key} has over {most} bytes")
        return found

    def _size(self, key: str) -> int | None:
        item = call_s3(lambda: self._client.stat_object(self._bucket, key), gone=True)
        return None if item is None else int(item.size)

    def _digest(self, key: str) -> str | None:
        """Return the hex SHA-256 of an object as it is there, or None if it is not."""

        def digest() -> str:
            response = self._client.get_object(self._bucket, key)
            try:
                whole = hashlib.sha256()
                for part in response.stream(2**20):
                    whole.update(part)
                return whole.hexdigest()
            finally:
                response.close()
                response.release_conn()

        found: str | None = call_s3(digest, gone=True)
        return found

    def _download(self, key: str, file: Path) -> None:
        call_s3(lambda: self._client.fget_object(self._bucket, key, str(file)))

    def _write(self, key: str, content: bytes, condition: Mapping[str, str]) -> bool:
        """Put an object if the condition holds; tell whether it stands there now.

        The SDK has no conditional writes; a URL that it signs does, since a signature leaves room
        for headers that it does not name.
        """

        def put() -> int:
            url = self._client.get_presigned_url(
                "PUT", self._bucket, key, expires=datetime.timedelta(minutes=5)
            )
            return self._http.request("PUT", url, body=content, headers=dict(condition)).status

        try:
            status: int = call_s3(put)
        except CraError:
            # It may have been written all the same.
            if self._is_there(key, content):
                return True
            raise
        if status in _LOST:
            return False
        if status == 403:
            raise PermissionDeniedError("object store: AccessDenied")
        if status != 200:
            raise UnavailableError(f"the object store answers {status}")
        return True

    def _is_there(self, key: str, content: bytes) -> bool:
        found = self._read(key, MAX_MANIFEST)
        return found is not None and found[0] == content


def _state(items: list[Any]) -> str:
    lines = sorted(f"{item.object_name} {item.etag} {item.size}" for item in items)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _named(release: Release, name: str) -> Release:
    if release.name != name:
        raise FailedPreconditionError(f"the manifest belongs to {release.name}")
    return release
