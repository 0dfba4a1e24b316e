"""What goes on while a fault hits: a writer who knows what must be there, and askers."""

import functools
import hashlib
import io
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from minio import Minio
from minio.error import MinioException
from PIL import Image
from urllib3.exceptions import HTTPError

from cra.shared.client import SearchClient
from cra.shared.errors import (
    CraError,
    DeadlineExceededError,
    ResourceExhaustedError,
    UnavailableError,
)
from cra.shared.rpc import code_of
from cra.shared.settings import Settings

BUCKET: Final = "images"
BAD_EVERY: Final = 50
"""One put in so many is of a file that is no image."""

ASKERS: Final = 2
PAUSE: Final = 0.1
"""Seconds between two queries of one asker."""

HONEST: Final = (UnavailableError, DeadlineExceededError, ResourceExhaustedError)

FOUND: Final = 0.999
"""Least cosine of a picture with itself."""


def picture(seed: int) -> bytes:
    """Return a small JPEG with large forms, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.resize((96, 72), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Content:
    """What was put under a key last."""

    seed: int
    good: bool

    @property
    def data(self) -> bytes:
        """The object's bytes."""
        return picture(self.seed) if self.good else f"no image {self.seed}".encode()

    @functools.cached_property
    def etag(self) -> str:
        """What S3 calls it, when it was put in one piece."""
        return hashlib.md5(self.data, usedforsecurity=False).hexdigest()


@dataclass
class Record:
    """What must be in the bucket, kept beside it by who writes."""

    there: dict[str, Content] = field(default_factory=dict)
    puts: int = 0
    overwrites: int = 0
    """Of the puts, those of a key that was there."""
    deletions: int = 0
    seeds: int = 0


class Writer:
    """Puts, overwrites and deletes, each until the store has acknowledged it.

    Args:
        bucket: the store.
        record: of what must be there; it goes on where the last writer left it.
        keys: how many there may be.
        seed: of what is done.
    """

    def __init__(self, bucket: Minio, record: Record, keys: int, seed: int) -> None:
        self._bucket, self._record = bucket, record
        self._keys = [f"{number % 7}/图 {number}.jpg" for number in range(keys)]
        self._rng = np.random.default_rng(seed)
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.done = 0
        self.problem: BaseException | None = None

    def start(self, operations: int, seconds: float) -> None:
        """Do so many things in about so many seconds, on a thread."""
        self._thread = threading.Thread(target=self._run, args=(operations, seconds))
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait until all is done, and raise what kept it from being done."""
        assert self._thread is not None
        self._thread.join(timeout)
        if self._thread.is_alive():
            self.stop()
            raise AssertionError(f"the writer is stuck after {self.done} operations")
        if self.problem is not None:
            raise self.problem

    def stop(self) -> None:
        """Give up."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def put(self, key: str, *, good: bool = True) -> None:
        """Put other content under a key."""
        record = self._record
        record.seeds += 1
        content = Content(record.seeds, good)
        data = content.data
        if self._until_done(
            lambda: self._bucket.put_object(BUCKET, key, io.BytesIO(data), len(data))
        ):
            record.puts += 1
            record.overwrites += key in record.there
            record.there[key] = content

    def delete(self, key: str) -> None:
        """Delete a key."""
        if self._until_done(lambda: self._bucket.remove_object(BUCKET, key)):
            self._record.there.pop(key, None)
            self._record.deletions += 1

    def _run(self, operations: int, seconds: float) -> None:
        began = time.monotonic()
        try:
            for number in range(operations):
                self._stop.wait(began + number * seconds / operations - time.monotonic())
                if self._stop.is_set():
                    return
                self._one(number)
                self.done += 1
        except BaseException as error:  # raised again by join
            self.problem = error

    def _one(self, number: int) -> None:
        key = self._keys[int(self._rng.integers(len(self._keys)))]
        if key in self._record.there and self._rng.random() < 0.3:
            self.delete(key)
        else:
            self.put(key, good=number % BAD_EVERY != BAD_EVERY - 1)

    def _until_done(self, act: Callable[[], object]) -> bool:
        """Try until the store has acknowledged it; False if told to give up."""
        while not self._stop.is_set():
            try:
                act()
            except (MinioException, HTTPError, OSError):
                # It may or may not have been done: done again, it is known.
                self._stop.wait(0.5)
            else:
                return True
        return False


@dataclass
class Answers:
    """What askers were told."""

    asked: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """By status."""
    wrong: list[str] = field(default_factory=list)
    """Empty or incomplete answers, and errors that are not honest."""
    told: Counter[str] = field(default_factory=Counter)
    """Messages of failures."""
    slowest: float = 0.0
    """Seconds."""
    releases: set[str] = field(default_factory=set)
    """That answered."""


class Askers:
    """Ask through the gateway, by text and by picture, until stopped.

    Args:
        settings: of the stack, whose gateway is asked.
        anchors: pictures that nobody changes, by key: each must always be found.
        names: what an UNAVAILABLE may name: a pattern.
    """

    def __init__(self, settings: Settings, anchors: Mapping[str, bytes], names: str) -> None:
        self._client = SearchClient.of(settings)
        self._anchors: Sequence[tuple[str, bytes]] = list(anchors.items())
        self._names = re.compile(names)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answers = Answers()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(ASKERS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> Answers:
        """Stop asking; return what was answered."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._client.close()
        return self.answers

    def _run(self, number: int) -> None:
        turn = number
        while not self._stop.wait(PAUSE):
            turn += ASKERS
            began = time.monotonic()
            try:
                problem = self._ask(turn)
            except CraError as error:
                self._note_failure(error)
            else:
                with self._lock:
                    self.answers.asked += 1
                    if problem:
                        self.answers.wrong.append(problem)
            with self._lock:
                self.answers.slowest = max(self.answers.slowest, time.monotonic() - began)

    def _ask(self, turn: int) -> str:
        """Ask one thing; return what is wrong with the answer."""
        if turn % 3 == 0:
            # Another text each time: what was remembered proves little.
            answer = self._client.search(f"红墙{turn}", top_k=5)
            found = len(answer.hits)
            with self._lock:
                self.answers.releases.add(answer.text_release)
            return "" if found == 5 else f"{found} of 5 hits for a text"
        key, data = self._anchors[turn % len(self._anchors)]
        hits = self._client.search(image=data, top_k=5).hits
        if any(hit.key == key and hit.score > FOUND for hit in hits):
            return ""
        best = [(hit.key, round(hit.score, 4)) for hit in hits]
        return f"{key} is not found by its own picture: {best}"

    def _note_failure(self, error: CraError) -> None:
        with self._lock:
            self.answers.asked += 1
            status = code_of(error).name
            self.answers.failed[status] += 1
            self.answers.told[f"{status}: {error.message[:200]}"] += 1
            if not isinstance(error, HONEST):
                self.answers.wrong.append(f"{status}: {error.message}")
            elif isinstance(error, UnavailableError) and not self._names.search(error.message):
                self.answers.wrong.append(f"{status} does not say what is down: {error.message}")
