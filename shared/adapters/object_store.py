"""The object store port over the S3 API, by the minio SDK."""

import functools
import http.client
import urllib.parse
from collections.abc import Callable, Iterator
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, TypeVar

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, S3Error, ServerError

from cra.shared.domain import ObjectDetails, ObjectRef, StoredObject, Version
from cra.shared.errors import NotFoundError, PermissionDeniedError, UnavailableError
from cra.shared.metrics import DEPENDENCY_ERRORS
from cra.shared.settings import Settings

_METADATA_PREFIX = "x-amz-meta-"
_GONE = {"NoSuchKey", "NoSuchObject", "NoSuchVersion"}
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}

SILENCE_LASTS = 20.0
"""Seconds between two bytes after which the store is taken for dead."""

# Each metadata entry is a header. With the library's own limits, 100 headers and 64 KB for one, an
# object of more could not even be looked at, and would look like an outage of the store.
http.client._MAXHEADERS = 2**16  # type: ignore[attr-defined]
http.client._MAXLINE = 2**20  # type: ignore[attr-defined]

_ERRORS: Final = DEPENDENCY_ERRORS.labels("s3")

T = TypeVar("T")


class _NotAddressableError(Exception):
    """The SDK or the store refuses the very name of an object."""


def connect(settings: Settings, *, public: bool = False) -> Minio:
    """Return a client of the object store; it connects when first used.

    Args:
        settings: endpoint and credentials.
        public: name the public endpoint, for URLs that others will open.
    """
    endpoint = settings.s3_endpoint
    if public and settings.s3_public_endpoint:
        endpoint = settings.s3_public_endpoint
    return Minio(
        endpoint,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key.get_secret_value(),
        secure=settings.s3_secure,
        region=settings.s3_region,
        http_client=urllib3.PoolManager(
            maxsize=32,
            # Twice of it, with the retry, is less than a lease: silence must not look like a death.
            timeout=urllib3.Timeout(connect=5, read=SILENCE_LASTS),
            # The callers come back by themselves; waiting here would only hide the outage.
            retries=urllib3.Retry(total=1, backoff_factor=0.1),
        ),
    )


def encode_metadata(metadata: dict[str, str]) -> dict[str, Any]:
    """Return user metadata as S3 headers can carry it: percent-encoded UTF-8."""
    return {name: urllib.parse.quote(value, safe=" ") for name, value in metadata.items()}


def decode_metadata(headers: Any) -> dict[str, str]:
    """Return the user metadata in an object's response headers."""
    return {
        name.lower().removeprefix(_METADATA_PREFIX): urllib.parse.unquote(value)
        for name, value in headers.items()
        if name.lower().startswith(_METADATA_PREFIX)
    }


class S3ObjectStore:
    """Any store that speaks S3; see `ports.ObjectStore`."""

    def __init__(self, settings: Settings) -> None:
        self._client = connect(settings)
        self._public = connect(settings, public=True)
        self._url_lifetime = timedelta(seconds=settings.url_seconds)
        self._buckets = settings.buckets

    def list(self, bucket: str, prefix: str = "") -> Iterator[StoredObject]:
        listing = self._client.list_objects(bucket, prefix=prefix or None, recursive=True)
        while True:
            item = call_s3(lambda: next(listing, None))
            if item is None:
                return
            if item.is_dir or item.last_modified is None:
                continue
            yield StoredObject(
                ObjectRef(bucket, item.object_name),
                Version((item.etag or "").strip('"'), int(item.last_modified.timestamp())),
                item.size or 0,
            )

    def look(self, ref: ObjectRef) -> ObjectDetails | None:
        try:
            item = call_s3(lambda: _named(self._client.stat_object, ref), gone=True)
        except _NotAddressableError as error:
            return self._listed(ref, str(error))
        if item is None:
            return None
        return ObjectDetails(
            ref,
            Version((item.etag or "").strip('"'), int(item.last_modified.timestamp())),
            item.size or 0,
            decode_metadata(item.metadata),
        )

    def fetch(
        self, ref: ObjectRef, check: Callable[[ObjectDetails], None] = lambda _: None
    ) -> tuple[ObjectDetails, bytes] | None:
        def fetch() -> tuple[ObjectDetails, bytes]:
            response = _named(self._client.get_object, ref)
            try:
                headers = response.headers
                details = ObjectDetails(
                    ref,
                    Version(
                        headers["etag"].strip('"'),
                        int(parsedate_to_datetime(headers["last-modified"]).timestamp()),
                    ),
                    int(headers["content-length"]),
                    decode_metadata(headers),
                )
                check(details)
                # As it is stored: a Content-Encoding is only what its writer said, may be wrong,
                # and could unpack to more than the size that was checked.
                return details, bytes(response.read(decode_content=False))
            finally:
                response.close()
                response.release_conn()

        try:
            found: tuple[ObjectDetails, bytes] | None = call_s3(fetch, gone=True)
        except _NotAddressableError as error:
            details = self._listed(ref, str(error))
            if details is None:
                return None
            check(details)
            return details, b""
        return found

    def _listed(self, ref: ObjectRef, problem: str) -> ObjectDetails | None:
        """Return what a listing tells of an object that cannot be asked for by its name."""
        first = next(self.list(ref.bucket, ref.key), None)  # no longer key comes before it
        if first is None or first.ref != ref:
            return None
        return ObjectDetails(ref, first.version, first.size, problem=problem)

    def signed_url(self, ref: ObjectRef) -> str:
        return str(
            self._public.presigned_get_object(ref.bucket, ref.key, expires=self._url_lifetime)
        )

    def check(self) -> None:
        for bucket in self._buckets:
            if not call_s3(functools.partial(self._client.bucket_exists, bucket)):
                raise UnavailableError(f"the bucket {bucket!r} does not exist")


def _named(method: Callable[[str, str], T], ref: ObjectRef) -> T:
    """Call a method of the SDK about one object.

    Raises:
        _NotAddressableError: the object has a name that cannot be asked for.
    """
    try:
        return method(ref.bucket, ref.key)
    except ValueError as error:  # the SDK does not take the key
        raise _NotAddressableError(str(error)) from error
    except S3Error as error:
        if error.response.status == HTTPStatus.BAD_REQUEST:
            raise _NotAddressableError(f"the object store answers {error.code}") from error
        raise


def call_s3(function: Callable[[], T], *, gone: bool = False) -> Any:
    """Call the SDK; its errors become ours, and a missing object None if `gone` says so."""
    try:
        return function()
    except S3Error as error:
        if error.code in _GONE and gone:
            return None
        if error.code == "NoSuchBucket":
            raise NotFoundError(f"object store: {error.message}") from error
        _ERRORS.inc()
        if error.code in _DENIED:
            raise PermissionDeniedError(f"object store: {error.code}") from error
        raise UnavailableError(f"the object store answers {error.code}") from error
    except (urllib3.exceptions.HTTPError, OSError, InvalidResponseError, ServerError) as error:
        _ERRORS.inc()
        raise UnavailableError(f"the object store does not answer: {error}") from error
