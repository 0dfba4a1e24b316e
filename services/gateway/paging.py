"""Page tokens: signed, and bound to query, scope, release, collection and the last hit."""

import base64
import functools
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from cra.shared.errors import InvalidArgumentError

_SIGNATURE_BYTES: Final = 16
_MAX_TOKEN: Final = 8192
NO_FIT: Final = "does not fit: it belongs to another query, release, collection or scope"


@dataclass(frozen=True)
class Position:
    """The last hit of a page."""

    rank: int
    score: float
    image_id: str
    text_release: str
    """The release that encoded the query; the next page uses it again."""


class PageTokens:
    """Makes and reads page tokens.

    Args:
        key: signs them; gateways that share it read each other's. Empty: one is made up.
    """

    def __init__(self, key: str = "") -> None:
        self._key = key.encode() or secrets.token_bytes(32)

    def make(self, digest: bytes, image_tower: str, position: Position) -> str:
        """Return the token for the page after `position`."""
        payload = orjson.dumps(
            [position.rank, position.score, position.image_id, position.text_release]
        )
        signature = self._sign(digest, image_tower, payload)
        return base64.urlsafe_b64encode(signature + payload).decode()

    def read(self, token: str, digest: bytes, image_towers: Sequence[str]) -> tuple[str, Position]:
        """Return which of the image towers a token was made for, and the position in it.

        Raises:
            InvalidArgumentError: it is damaged, forged, or made for another query, collection or
                scope.
        """
        try:
            raw = base64.urlsafe_b64decode(token[:_MAX_TOKEN].encode())
        except ValueError as error:
            raise InvalidArgumentError("page_token", "is not a page token") from error
        # Base64 has several spellings of the same bytes; only ours counts.
        if base64.urlsafe_b64encode(raw).decode() != token:
            raise InvalidArgumentError("page_token", "is not a page token")
        signature, payload = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        for image_tower in image_towers:
            if hmac.compare_digest(signature, self._sign(digest, image_tower, payload)):
                return image_tower, Position(*orjson.loads(payload))
        raise InvalidArgumentError("page_token", NO_FIT)

    def _sign(self, digest: bytes, image_tower: str, payload: bytes) -> bytes:
        # Fixed-length parts first, so that no two inputs run together.
        whole = hmac.digest(self._key, digest + _digest(image_tower) + payload, "sha256")
        return whole[:_SIGNATURE_BYTES]


@functools.lru_cache
def _digest(image_tower: str) -> bytes:
    return hashlib.sha256(image_tower.encode()).digest()
