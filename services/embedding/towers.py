"""The towers as this service runs them: each in a process of its own.

An image forward cannot be interrupted and takes long; in its own process, at low priority, it
never stands before a query.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import structlog

from cra.shared.errors import UnavailableError
from cra.shared.settings import Settings

if TYPE_CHECKING:
    from cra.shared.model.image_tower import ImageTower
    from cra.shared.model.text_tower import TextTower

IMAGE_NICENESS: Final = 10

_log = structlog.get_logger()


@dataclass(frozen=True)
class TowerInfo:
    """What the processes have loaded."""

    name: str
    release: str
    normalizer: str
    image_tower: str
    """Fingerprint."""
    dimension: int
    input_size: int
    preprocessing: str
    """Fingerprint."""
    device: str
    precision: str


class Towers(Protocol):
    """Encodes batches; the one part of this service that tests replace."""

    info: TowerInfo

    def encode_texts(self, texts: Sequence[str]) -> list[tuple[npt.NDArray[np.float32], bool]]:
        """Return for each text its unit vector and whether it was cut."""
        ...

    def encode_images(
        self, pixels: Sequence[npt.NDArray[np.uint8]]
    ) -> list[npt.NDArray[np.float32]]:
        """Return for each prepared image its unit vector."""
        ...

    def close(self) -> None:
        """End the processes."""
        ...


class TowerProcesses:
    """The text tower and the image tower, each in its own process; see `Towers`.

    A process that dies fails the batch it was working on with UnavailableError and is replaced.

    Raises:
        FailedPreconditionError: the model cannot be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self._text = _TowerProcess(_load_text_tower, settings)
        self._image = _TowerProcess(_load_image_tower, settings)
        try:
            text, image = self._text.run(_text_info), self._image.run(_image_info)
        except BaseException:
            self.close()
            raise
        self.info = TowerInfo(**text, **image)

    def encode_texts(self, texts: Sequence[str]) -> list[tuple[npt.NDArray[np.float32], bool]]:
        vectors, truncated = self._text.run(_encode_texts, list(texts))
        return list(zip(vectors, truncated, strict=True))

    def encode_images(
        self, pixels: Sequence[npt.NDArray[np.uint8]]
    ) -> list[npt.NDArray[np.float32]]:
        return list(self._image.run(_encode_images, np.stack(pixels)))

    def close(self) -> None:
        self._text.close()
        self._image.close()


class _TowerProcess:
    """A process that holds one tower for as long as it lives."""

    def __init__(self, load: Callable[[Settings], None], settings: Settings) -> None:
        self._load, self._settings = load, settings
        self._lock = threading.Lock()
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(
            1,
            # A fork would copy gRPC's threads and CUDA's state in whatever state they are.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_remember_problem,
            initargs=(self._load, self._settings),
        )
        # The process starts with its first work; this way both towers load side by side.
        pool.submit(int)
        return pool

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        pool = self._pool
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            with self._lock:
                if self._pool is pool:
                    _log.error(
                        "a tower's process died; starting another", tower=self._load.__name__
                    )
                    pool.shutdown(wait=False)
                    self._pool = self._start()
            raise UnavailableError("the tower's process died; a new one is starting") from error

    def close(self) -> None:
        self._pool.shutdown()


# What follows runs inside the tower processes.

_text_tower: "TextTower"
_image_tower: "ImageTower"
_problem: Exception | None = None


def _remember_problem(load: Callable[[Settings], None], settings: Settings) -> None:
    """Load a tower; if that fails, keep the reason for the first call instead of dying with it."""
    global _problem  # noqa: PLW0603 - one tower a process
    # Ctrl-C reaches the whole group; the parent drains first and then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        load(settings)
    except Exception as error:  # raised again by _check
        _problem = error


def _end_with_parent() -> None:
    """End this process when the service was killed: nobody else would, and it holds a model."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _check() -> None:
    if _problem is not None:
        raise _problem


def _load_text_tower(settings: Settings) -> None:
    global _text_tower  # noqa: PLW0603
    from cra.shared.model.text_tower import TextTower  # noqa: PLC0415 - torch, only here

    _limit_threads(settings)
    _text_tower = TextTower(_source(settings), settings.device, settings.precision)


def _load_image_tower(settings: Settings) -> None:
    global _image_tower  # noqa: PLW0603
    from cra.shared.model.image_tower import ImageTower  # noqa: PLC0415

    os.nice(IMAGE_NICENESS)
    _limit_threads(settings)
    _image_tower = ImageTower(_source(settings), settings.device, settings.precision)


def _limit_threads(settings: Settings) -> None:
    import torch  # noqa: PLC0415

    torch.set_num_threads(settings.tower_threads)


def _source(settings: Settings) -> Any:
    from cra.shared.model.checkpoints import find_model  # noqa: PLC0415

    cache = Path(settings.model_cache) if settings.model_cache else None
    return find_model(settings.model, settings.config, cache)


def _text_info() -> dict[str, Any]:
    _check()
    tower = _text_tower
    return {
        "release": tower.release,
        "normalizer": tower.tokenizer.normalizer,
        "device": tower.runtime.device,
        "precision": tower.runtime.precision,
    }


def _image_info() -> dict[str, Any]:
    _check()
    tower = _image_tower
    return {
        "name": tower.name,
        "image_tower": tower.image_tower,
        "dimension": tower.dimension,
        "input_size": tower.preprocessing.input_size,
        "preprocessing": tower.preprocessing.fingerprint,
    }


def _encode_texts(texts: list[str]) -> tuple[npt.NDArray[np.float32], list[bool]]:
    _check()
    return _text_tower.encode(texts)


def _encode_images(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    _check()
    return _image_tower.encode(pixels)
