"""Who may search: API keys, each with its scope of buckets and its rate."""

import hmac
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from cra.shared.api_keys import ApiKey, digest_of, read_keys
from cra.shared.errors import FailedPreconditionError, ResourceExhaustedError, UnauthenticatedError
from cra.shared.tls import file_stamp

LOOK_AGAIN: Final = 1.0
"""Seconds between two looks at the file: a key that is revoked is out within two."""

_ROUNDING: Final = 1e-6
"""Of a token; who has waited as long as told is not sent away by the last bit."""

_log = structlog.get_logger()


class TokenBucket:
    """A rate with a burst.

    Args:
        rate: calls a second.
        burst: calls at once after a pause.
        clock: seconds that only grow.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate, self.burst = rate, burst
        self._clock = clock
        self._tokens = float(burst)
        self._filled = clock()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take a token and return 0; if there is none, return the seconds until there is."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self.burst, self._tokens + (now - self._filled) * self.rate)
            self._filled = now
            if self._tokens >= 1 - _ROUNDING:
                self._tokens -= 1
                return 0.0
            return math.ceil((1 - self._tokens) / self.rate * 1000) / 1000  # never a moment early


class KeyRing:
    """The API keys that are in force; the file is read again when it changes.

    Args:
        file: of keys; see `cra.shared.api_keys`.

    Raises:
        FailedPreconditionError: the file cannot be read, or says what it must not.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp = file_stamp(file)
        self._limits: dict[str, TokenBucket] = {}
        self._keys: tuple[ApiKey, ...] = ()
        self._use(read_keys(file))
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="api-keys", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Watch the file no more."""
        self._closing.set()
        self._thread.join()

    def authenticate(self, authorization: str) -> ApiKey:
        """Return the key that an `authorization` header holds.

        Raises:
            UnauthenticatedError: it holds none that is in force; it does not say why.
        """
        scheme, _, key = authorization.partition(" ")
        digest = digest_of(key)
        found = None
        # Every key is looked at, and each in the same time.
        for known in self._keys:
            if hmac.compare_digest(known.sha256, digest):
                found = known
        if found is None or scheme.lower() != "bearer":
            raise UnauthenticatedError("a valid API key is needed")
        return found

    def admit(self, authorization: str) -> ApiKey:
        """Return the key and count a call.

        Raises:
            UnauthenticatedError: as `authenticate`.
            ResourceExhaustedError: the key is over its rate; says when it no longer is.
        """
        key = self.authenticate(authorization)
        limit = self._limits.get(key.sha256)
        wait = limit.take() if limit else 0.0
        if wait:
            raise ResourceExhaustedError(
                f"this API key may search {key.rate:g} times a second", retry_after=wait
            )
        return key

    def _use(self, keys: tuple[ApiKey, ...]) -> None:
        limits = {}
        for key in keys:
            if key.rate is None:
                continue
            old = self._limits.get(key.sha256)
            same = old is not None and (old.rate, old.burst) == (key.rate, key.most_at_once)
            limits[key.sha256] = (
                old if old is not None and same else TokenBucket(key.rate, key.most_at_once)
            )
        self._limits, self._keys = limits, keys

    def _watch(self) -> None:
        while not self._closing.wait(LOOK_AGAIN):
            stamp = file_stamp(self._file)
            if stamp == self._stamp:
                continue
            self._stamp = stamp
            try:
                self._use(read_keys(self._file))
            except FailedPreconditionError as error:
                _log.error("the API keys of before stay in force", problem=error.message)
                continue
            _log.info("API keys read", keys=[key.name for key in self._keys])
