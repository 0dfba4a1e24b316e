"""Addresses of pictures: signed, so that only what a Search has answered can be fetched."""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from typing import Final

from cra.shared.domain import ObjectRef
from cra.shared.errors import NotFoundError

_SIGNATURE_BYTES: Final = 16
_MAX_TOKEN: Final = 8192


class Links:
    """Makes and reads the tokens in addresses of pictures.

    A token is good for one to two times `lifetime`, and stays the same for `lifetime`: what a
    browser has kept of a picture it need not ask for again.

    Args:
        key: signs them; replicas that share it read each other's. Empty: one is made up.
        lifetime: seconds.
        clock: Unix seconds.
    """

    def __init__(self, key: str, lifetime: int, clock: Callable[[], float] = time.time) -> None:
        self._key = key.encode() or secrets.token_bytes(32)
        self._lifetime = lifetime
        self._clock = clock

    def make(self, ref: ObjectRef, etag: str) -> str:
        """Return the token of one version of an object."""
        until = (int(self._clock()) // self._lifetime + 2) * self._lifetime
        payload = json.dumps([ref.bucket, ref.key, etag, until], ensure_ascii=False).encode()
        return base64.urlsafe_b64encode(self._sign(payload) + payload).decode().rstrip("=")

    def read(self, token: str) -> tuple[ObjectRef, str, int]:
        """Return the object, its ETag and the Unix second until which the token is good.

        Raises:
            NotFoundError: it is damaged, forged or too old.
        """
        try:
            raw = base64.urlsafe_b64decode(token[:_MAX_TOKEN] + "=" * (-len(token) % 4))
        except ValueError:
            raw = b""
        signature, payload = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._sign(payload)):
            raise NotFoundError("this is no address of a picture: search for it")
        bucket, key, etag, until = json.loads(payload)
        if until <= self._clock():
            raise NotFoundError("this address of a picture is no longer good: search again")
        return ObjectRef(bucket, key), etag, until

    def _sign(self, payload: bytes) -> bytes:
        return hmac.new(self._key, payload, hashlib.sha256).digest()[:_SIGNATURE_BYTES]
