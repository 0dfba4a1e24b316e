"""What runs inside the tower processes: one tower in each, the text one with its releases."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from cra.shared.errors import FailedPreconditionError, UnavailableError
from cra.shared.releases import Release
from cra.shared.settings import Settings

if TYPE_CHECKING:
    from cra.shared.model.image_tower import ImageTower
    from cra.shared.model.text_tower import TextTower

IMAGE_NICENESS: Final = 10

Load = Callable[[Settings, Sequence[Release]], None]

_image_tower: "ImageTower"
_base_tower: "TextTower"
_text_towers: "dict[str, TextTower]" = {}
"""By release."""
_loading: "dict[str, Future[TextTower]]" = {}
_loader: ThreadPoolExecutor
_problem: Exception | None = None


def begin(load: Load, settings: Settings, releases: Sequence[Release]) -> None:
    """Load a tower; if that fails, keep the reason for the first call instead of dying with it."""
    global _problem  # noqa: PLW0603 - one tower a process
    # Ctrl-C reaches the whole group; the parent drains first and then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        load(settings, releases)
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


def load_text_towers(settings: Settings, releases: Sequence[Release]) -> None:
    """Load the model's own text tower, and the releases that an earlier process had."""
    global _base_tower, _loader  # noqa: PLW0603
    from cra.shared.model.text_tower import TextTower  # noqa: PLC0415 - torch, only here

    _limit_threads(settings)
    _base_tower = TextTower(_source(settings), settings.device, settings.precision)
    _text_towers[_base_tower.release] = _base_tower
    _loader = ThreadPoolExecutor(1, "load", initializer=_limit_threads, initargs=(settings,))
    for release in releases:
        start_loading(release, settings)
    for release in releases:
        # What fails is missed by the parent, which asks what is there and loads it anew.
        if _loading[release.name].exception() is None:
            is_loaded(release.name)


def load_image_tower(settings: Settings, releases: Sequence[Release]) -> None:
    """Load the image tower, and work at low priority from now on."""
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


def text_info() -> dict[str, Any]:
    """Return the text tower's part of `TowerInfo`."""
    _check()
    return {
        "release": _base_tower.release,
        "normalizer": _base_tower.tokenizer.normalizer,
        "device": _base_tower.runtime.device,
        "precision": _base_tower.runtime.precision,
    }


def image_info() -> dict[str, Any]:
    """Return the image tower's part of `TowerInfo`."""
    _check()
    tower = _image_tower
    return {
        "name": tower.name,
        "image_tower": tower.image_tower,
        "dimension": tower.dimension,
        "input_size": tower.preprocessing.input_size,
        "preprocessing": tower.preprocessing.fingerprint,
    }


def encode_texts(release: str, texts: list[str]) -> tuple[npt.NDArray[np.float32], list[bool]]:
    """Encode texts with one release."""
    _check()
    tower = _text_towers.get(release)
    if tower is None:
        raise FailedPreconditionError(f"the text release {release} is not loaded")
    return tower.encode(texts)


def encode_images(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Encode prepared images."""
    _check()
    return _image_tower.encode(pixels)


def start_loading(release: Release, settings: Settings) -> None:
    """Begin to load a release beside the others, on a thread: queries go on meanwhile."""
    _check()
    _loading[release.name] = _loader.submit(_load, release, settings)


def _load(release: Release, settings: Settings) -> "TextTower":
    from cra.shared.model.text_tower import TextTower  # noqa: PLC0415

    tower = TextTower(release, settings.device, settings.precision)
    # The first pass costs more than the others; and weights that overflow must not come to answer.
    vectors, _ = tower.encode(["建筑"])
    if not np.isfinite(vectors).all():
        raise FailedPreconditionError(f"release {release.name} encodes to what is no number")
    return tower


def is_loaded(name: str) -> bool:
    """Tell whether a release has come to be loaded since `start_loading`; raise what failed."""
    _check()
    if name not in _loading:
        raise UnavailableError("the text tower's process was replaced")
    if not _loading[name].done():
        return False
    _text_towers[name] = _loading.pop(name).result()
    return True


def unload(name: str) -> None:
    """Let a release go."""
    _text_towers.pop(name, None)


def loaded() -> set[str]:
    """Return the releases that answer, the model's own among them."""
    _check()
    return set(_text_towers)
