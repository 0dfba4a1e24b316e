"""The towers as this service runs them: each in a process of its own.

An image forward cannot be interrupted and takes long; in its own process, at low priority, it
never stands before a query.
"""

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import structlog

from cra.services.embedding import tower_process
from cra.services.embedding.engine import Engine
from cra.shared.errors import UnavailableError
from cra.shared.releases import Release
from cra.shared.settings import Settings

LOADED_YET: Final = 0.05
"""Seconds between two looks at whether a release is loaded."""

ENDS_WITHIN: Final = 5.0
"""Seconds that a process has to end by itself."""

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
    image_batch: int


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
        """Return for each prepared image its unit vector."""
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

    def close(self) -> None:
        """End the processes."""
        ...


class TowerProcesses:
    """The text towers and the image tower, each kind in its own process; see `Towers`.

    A process that dies fails the batch it was working on with UnavailableError and is replaced; the
    new one has the releases of the old one before it answers.

    Raises:
        FailedPreconditionError: the model cannot be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        engine = Engine.choose(settings)
        self._text = _TowerProcess(tower_process.load_text_towers, engine)
        self._image = _TowerProcess(tower_process.load_image_tower, engine)
        try:
            text = self._text.run(tower_process.text_info)
            image = self._image.run(tower_process.image_info)
        except BaseException:
            self.close()
            raise
        self.info = TowerInfo(**text, **image)

    def encode_texts(
        self, release: str, texts: Sequence[str]
    ) -> list[tuple[npt.NDArray[np.float32], bool]]:
        vectors, truncated = self._text.run(tower_process.encode_texts, release, list(texts))
        return list(zip(vectors, truncated, strict=True))

    def encode_images(
        self, pixels: Sequence[npt.NDArray[np.uint8]]
    ) -> list[npt.NDArray[np.float32]]:
        return list(self._image.run(tower_process.encode_images, np.stack(pixels)))

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

    def close(self) -> None:
        self._text.close()
        self._image.close()


class _TowerProcess:
    """A process that holds towers for as long as it lives; it does one thing at a time."""

    def __init__(self, load: tower_process.Load, engine: Engine) -> None:
        self._load, self._engine = load, engine
        self._lock = threading.Lock()
        self._kept: dict[str, Release] = {}
        self.generation = 0
        """How many processes have died."""
        self._start()

    def _start(self) -> None:
        # A fork would copy gRPC's threads and CUDA's state in whatever state they are.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=tower_process.serve,
            args=(theirs, self._load, self._engine, tuple(self._kept.values())),
            daemon=True,
        )
        self._process.start()
        theirs.close()

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Have the process call a function; return or raise what that does."""
        # Straight over a pipe: a pool's threads would each add a change of context to every query.
        with self._lock:
            try:
                self._pipe.send((function, args))
                succeeded, answer = self._pipe.recv()
            except (EOFError, OSError) as error:
                self._replace()
                raise UnavailableError("the tower's process died; a new one is starting") from error
        if not succeeded:
            raise answer
        return answer

    def _replace(self) -> None:
        _log.error("a tower's process died; starting another", tower=self._load.__name__)
        self._pipe.close()
        self._process.join()
        self.generation += 1
        self._start()

    def keep(self, release: Release, generation: int) -> None:
        """Have the processes that follow load a release that this one has."""
        with self._lock:
            if self.generation != generation:
                raise UnavailableError("the tower's process died; a new one is starting")
            self._kept[release.name] = release

    def forget(self, name: str) -> None:
        """Have the processes that follow do without a release."""
        with self._lock:
            self._kept.pop(name, None)

    def close(self) -> None:
        with self._lock:
            self._pipe.close()
            self._process.join(ENDS_WITHIN)
            self._process.kill()
            self._process.join()
