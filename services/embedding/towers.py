"""The towers as this service runs them: those of texts and of images in processes of their own.

An image forward cannot be interrupted and takes long; in another process than texts, at low
priority, it never stands before a query. Pictures of queries have the image tower once more, at the
priority of texts.
"""

import math
import multiprocessing
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import structlog

from cra.services.embedding import metrics, tower_process
from cra.services.embedding.engine import Engine
from cra.shared import tracing
from cra.shared.errors import UnavailableError
from cra.shared.releases import Release
from cra.shared.settings import Settings

LOADED_YET: Final = 0.05
"""Seconds between two looks at whether a release is loaded."""
LOADS_WITHIN: Final = 600.0
"""Seconds that a process may take to load its towers."""
ENDS_WITHIN: Final = 10.0
"""Seconds that a process may take to end by itself."""
IDLE_SHARE: Final = 4
"""How many times as long a batch of images may take as one of texts: they are encoded on cores
that nothing else wants."""

_STARTING: Final = "a new one is starting"

_log = structlog.get_logger()


@dataclass(frozen=True)
class TowerInfo:
    """What the processes have loaded."""

    name: str
    release: str
    """The model's own text tower."""
    normalizer: str
    image_tower: str
    """Fingerprint."""
    dimension: int
    input_size: int
    preprocessing: str
    """Fingerprint."""
    engine: str
    device: str
    precision: str
    text_batch: int
    """Texts that the text tower takes at once."""
    text_lanes: int
    """Batches of texts that its process has at once: the second, a full one, waits there."""
    image_batch: int
    image_lanes: int
    """Batches of images that are encoded at once."""
    picture_batch: int
    """Pictures of queries that are encoded at once."""


class Towers(Protocol):
    """Encodes batches; the one part of this service that tests replace."""

    info: TowerInfo

    def encode_texts(
        self, release: str, texts: Sequence[str]
    ) -> list[tuple[npt.NDArray[np.float32], bool]]:
        """Return for each text the unit vector that a release gives it, and whether it was cut."""
        ...

    def encode_images(
        self, pixels: Sequence[npt.NDArray[np.uint8]]
    ) -> list[npt.NDArray[np.float32]]:
        """Return for each prepared image its unit vector, when nothing else is to be computed."""
        ...

    def encode_pictures(
        self, pixels: Sequence[npt.NDArray[np.uint8]]
    ) -> list[npt.NDArray[np.float32]]:
        """Return the same for pictures of queries, beside the images and before them."""
        ...

    def load_release(self, release: Release) -> None:
        """Load a release beside the others; encoding goes on meanwhile.

        Raises:
            FailedPreconditionError: it does not load.
            UnavailableError: the process died meanwhile.
        """
        ...

    def unload_release(self, name: str) -> None:
        """Let a release go; one that is not loaded is no error."""
        ...

    def loaded_releases(self) -> set[str]:
        """Return the releases that answer, the model's own among them."""
        ...

    @property
    def text_deaths(self) -> int:
        """How many processes of the text tower have died or were given up."""
        ...

    def close(self) -> None:
        """End the processes."""
        ...


class TowerProcesses:
    """The text towers and the image tower, each kind in its own process; see `Towers`.

    A process that dies, or does not answer in time, fails the batch it was working on with
    UnavailableError and is replaced; the new one has the releases of the old one before it answers.

    Raises:
        FailedPreconditionError: the model cannot be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        engine = Engine.choose(settings)
        seconds = self._pictures_within = settings.batch_seconds
        self._text = _TowerProcess(
            "text", tower_process.load_text_towers, engine, seconds, engine.text_lanes
        )
        self._image = _TowerProcess(
            "image",
            tower_process.load_image_tower,
            engine,
            IDLE_SHARE * seconds,
            engine.image_lanes,
        )
        try:
            # When all is loaded, which is not done at low priority alone, each is measured alone.
            self._text.run(tower_process.loaded)
            image = self._image.encode(tower_process.image_info, seconds=LOADS_WITHIN)
            text = self._text.encode(tower_process.text_info, seconds=LOADS_WITHIN)
        except BaseException:
            self.close()
            raise
        self.info = TowerInfo(
            **text, **image, text_lanes=engine.text_lanes, image_lanes=engine.image_lanes
        )

    def encode_texts(
        self, release: str, texts: Sequence[str]
    ) -> list[tuple[npt.NDArray[np.float32], bool]]:
        vectors, truncated = self._text.encode(tower_process.encode_texts, release, list(texts))
        return list(zip(vectors, truncated, strict=True))

    def encode_images(
        self, pixels: Sequence[npt.NDArray[np.uint8]]
    ) -> list[npt.NDArray[np.float32]]:
        return list(self._image.encode(tower_process.encode_images, np.stack(pixels)))

    def encode_pictures(
        self, pixels: Sequence[npt.NDArray[np.uint8]]
    ) -> list[npt.NDArray[np.float32]]:
        pictures = np.stack(pixels)
        return list(
            self._image.run(tower_process.encode_pictures, pictures, seconds=self._pictures_within)
        )

    def load_release(self, release: Release) -> None:
        pause = threading.Event()
        generation = self._text.generation
        self._text.run(tower_process.start_loading, release)
        while not self._text.run(tower_process.is_loaded, release.name):
            pause.wait(LOADED_YET)
        # Kept only now: a release that kills its process must not kill the next one too.
        self._text.keep(release, generation)

    def unload_release(self, name: str) -> None:
        self._text.forget(name)
        self._text.run(tower_process.unload, name)

    def loaded_releases(self) -> set[str]:
        found: set[str] = self._text.run(tower_process.loaded)
        return found

    @property
    def text_deaths(self) -> int:
        return self._text.generation

    def close(self) -> None:
        self._text.close()
        self._image.close()


class _Pipe:
    """One way to speak to a process, which says by itself when it has loaded its towers."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection = connection
        self._loaded = False
        # A batch of images fills the pipe: sending waits too for a process that is stopped.
        limit = struct.pack("ll", math.ceil(seconds), 0)
        with socket.socket(fileno=os.dup(connection.fileno())) as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def ask(self, seconds: float, function: Callable[..., Any], *args: Any) -> Any:
        """Have the process call a function; return whether it succeeded, and its answer.

        Raises:
            TimeoutError: there is none within so many seconds of its having loaded.
            EOFError, OSError: the process has died.
        """
        if not self._loaded:
            self._await(LOADS_WITHIN)
            self._connection.recv()
            self._loaded = True
        try:
            self._connection.send((function, args, tracing.sampled()))
        except BlockingIOError as error:
            raise TimeoutError("it did not take what was sent") from error
        self._await(seconds)
        return self._connection.recv()

    def _await(self, seconds: float) -> None:
        if not self._connection.poll(seconds):
            raise TimeoutError(f"it did not answer for {seconds:g} s")

    def close(self) -> None:
        self._connection.close()


class _Life:
    """One process, from its start to its death, and the free ones of the pipes to it.

    One pipe is for what does not wait for a turn at the others, which under load is long.
    """

    def __init__(
        self,
        name: str,
        load: tower_process.Load,
        engine: Engine,
        seconds: float,
        lanes: int,
        releases: tuple[Release, ...],
    ) -> None:
        # A fork would copy gRPC's threads and CUDA's state in whatever state they are.
        context = multiprocessing.get_context("spawn")
        self.lanes: queue.SimpleQueue[_Pipe] = queue.SimpleQueue()
        self.control: queue.SimpleQueue[_Pipe] = queue.SimpleQueue()
        ours, theirs = zip(*(context.Pipe() for _ in range(lanes + 1)), strict=True)
        self.process = context.Process(
            target=tower_process.serve,
            name=f"{name}-tower",
            args=(theirs, load, engine, releases),
            daemon=True,
        )
        self.process.start()
        for pipe in theirs:
            pipe.close()
        self.control.put(_Pipe(ours[0], seconds))
        for pipe in ours[1:]:
            self.lanes.put(_Pipe(pipe, seconds))


class _TowerProcess:
    """A process that holds towers for as long as it lives.

    A call goes straight over a pipe: a pool's threads would cost each query changes of context.

    Args:
        name: of the tower, `text` or `image`.
        load: loads the towers, in the process.
        engine: likewise.
        seconds: that a call may take.
        lanes: batches that it encodes at once.
    """

    def __init__(
        self,
        name: str,
        load: tower_process.Load,
        engine: Engine,
        seconds: float,
        lanes: int = 1,
    ) -> None:
        self._name = name
        self._restarts = metrics.RESTARTS.labels(name)
        self._load, self._engine, self._lanes = load, engine, lanes
        self._seconds = seconds
        self._lock = threading.Lock()
        self._closed = False
        self._kept: dict[str, Release] = {}
        self.generation = 0
        """How many processes have died or were given up."""
        self._life = _Life(name, load, engine, seconds, lanes, ())

    def encode(self, function: Callable[..., Any], *args: Any, seconds: float | None = None) -> Any:
        """Have the process call a function that encodes; return or raise what that does."""
        life = self._life
        return self._call(life, life.lanes, seconds or self._seconds, function, *args)

    def run(self, function: Callable[..., Any], *args: Any, seconds: float | None = None) -> Any:
        """Have the process call a function between two batches or beside one."""
        life = self._life
        return self._call(life, life.control, seconds or self._seconds, function, *args)

    def _call(
        self,
        life: _Life,
        pipes: "queue.SimpleQueue[_Pipe]",
        seconds: float,
        function: Callable[..., Any],
        *args: Any,
    ) -> Any:
        pipe = pipes.get()
        try:
            succeeded, answer = pipe.ask(seconds, function, *args)
        except TimeoutError as error:
            self._replace(life, str(error))
            raise UnavailableError(f"the tower's process hung: {error}; {_STARTING}") from error
        except (EOFError, OSError) as error:
            self._replace(life, "it died")
            raise UnavailableError(f"the tower's process died; {_STARTING}") from error
        finally:
            pipes.put(pipe)
        if not succeeded:
            raise answer
        return answer

    def _replace(self, dead: _Life, problem: str) -> None:
        with self._lock:
            if self._closed or self._life is not dead:
                return
            _log.error("starting another process for a tower", tower=self._name, problem=problem)
            dead.process.kill()  # it may only have given up one pipe
            dead.process.join()
            self.generation += 1
            self._restarts.inc()
            self._life = _Life(
                self._name,
                self._load,
                self._engine,
                self._seconds,
                self._lanes,
                tuple(self._kept.values()),
            )

    def keep(self, release: Release, generation: int) -> None:
        """Have the processes that follow load a release that this one has."""
        with self._lock:
            if self.generation != generation:
                raise UnavailableError(f"the tower's process died; {_STARTING}")
            self._kept[release.name] = release

    def forget(self, name: str) -> None:
        """Have the processes that follow do without a release."""
        with self._lock:
            self._kept.pop(name, None)

    def close(self) -> None:
        """End the process, when what it is doing is done."""
        with self._lock:
            self._closed = True
            life = self._life
        # Without the lock, for which a call that fails asks before it gives its pipe back.
        for _ in range(self._lanes):
            life.lanes.get().close()
        life.control.get().close()
        life.process.join(ENDS_WITHIN)
        life.process.kill()
        life.process.join()
