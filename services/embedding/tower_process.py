"""What runs inside the tower processes.

In the one are the text tower and its releases; in the other the image tower for ingest, and once
more for pictures of queries.
"""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from cra.services.embedding import batch_size
from cra.services.embedding.engine import Engine
from cra.shared import budget, tracing
from cra.shared.errors import FailedPreconditionError, UnavailableError
from cra.shared.releases import Release
from cra.shared.telemetry import configure_logging

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from cra.shared.model.encoders import ImageEncoder, TextEncoder

PICTURES_ON_CPU: Final = 2
"""Of queries, in a batch: with ViT-B/16 on two cores one took 55 ms, each of two 47, of four 43."""

_TYPICAL: Final = "飞檐翘角的大殿前有一对石狮和红色的大门"
"""A query of 21 tokens."""

Load = Callable[[Engine, Sequence[Release]], None]

_engine: Engine
_image_tower: "ImageEncoder"
_picture_tower: "ImageEncoder"
"""The same, for pictures of queries."""
_base_tower: "TextEncoder"
_text_towers: "dict[str, TextEncoder]" = {}
"""By release."""
_turn: Final = threading.Lock()
"""Of texts: parts of two batches would alternate, and the first be done as late as the second."""
_loading: "dict[str, Future[TextEncoder]]" = {}
_loader: ThreadPoolExecutor
_problem: Exception | None = None


def serve(
    pipes: "Sequence[Connection]", load: Load, engine: Engine, releases: Sequence[Release]
) -> None:
    """Load towers, then do what comes through the pipes until they are closed.

    If they cannot be loaded, every call fails with the reason.
    """
    global _problem  # noqa: PLW0603 - one tower a process
    # Ctrl-C reaches the whole group; the parent drains first and then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name, settings = multiprocessing.current_process().name, engine.settings
    configure_logging(name, settings.log_format, settings.log_level)
    tracing.configure(name, settings)
    try:
        load(engine, releases)
    except Exception as error:  # raised again by _check
        _problem = error
    threads = [threading.Thread(target=_answer, args=(pipe,)) for pipe in pipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracing.close()


def _answer(pipe: "Connection") -> None:
    # The pipe ends with the parent, even one that was killed; and with this thread, whatever that
    # dies of, so that the parent does not wait for an answer.
    with pipe, contextlib.suppress(EOFError, OSError):
        pipe.send("loaded")
        while True:
            function, args, trace = pipe.recv()
            try:
                with tracing.shared_span(function.__name__, [trace]):
                    answer = (True, function(*args))
            except Exception as error:  # goes to the caller, whatever it is
                answer = (False, error)
            pipe.send(answer)


def _check() -> None:
    if _problem is not None:
        raise _problem


def load_text_towers(engine: Engine, releases: Sequence[Release]) -> None:
    """Load the model's own text tower, and the releases that an earlier process had."""
    global _engine, _base_tower, _loader  # noqa: PLW0603
    _engine = engine
    _base_tower = engine.text_tower()
    _text_towers[_base_tower.release] = _base_tower
    _loader = ThreadPoolExecutor(1, "load", initializer=engine.limit_threads)
    for release in releases:
        start_loading(release)
    for release in releases:
        # What fails is missed by the parent, which asks what is there and loads it anew.
        if _loading[release.name].exception() is None:
            is_loaded(release.name)


def load_image_tower(engine: Engine, releases: Sequence[Release]) -> None:
    """Load the image tower for ingest, at low priority, and beside it for pictures of queries."""
    global _engine, _image_tower, _picture_tower  # noqa: PLW0603
    _engine = engine
    # Its threads have the priority of the one that makes it.
    with ThreadPoolExecutor(1, "load", initializer=budget.only_when_idle) as pool:
        _image_tower = pool.submit(engine.image_tower).result()
    _picture_tower = _image_tower.for_queries()


def text_info() -> dict[str, Any]:
    """Return the text tower's part of `TowerInfo`."""
    _check()
    return {
        "release": _base_tower.release,
        "normalizer": _base_tower.tokenizer.normalizer,
        "engine": _base_tower.runtime.engine,
        "device": _base_tower.runtime.device,
        "precision": _base_tower.runtime.precision,
        "text_batch": _measure(_encode_texts),
    }


def image_info() -> dict[str, Any]:
    """Return the image tower's part of `TowerInfo`."""
    _check()
    _give_way()
    tower = _image_tower
    batch = _measure(_encode_images)
    return {
        "name": tower.name,
        "image_tower": tower.image_tower,
        "dimension": tower.dimension,
        "input_size": tower.preprocessing.input_size,
        "preprocessing": tower.preprocessing.fingerprint,
        "image_batch": batch,
        "picture_batch": min(batch, PICTURES_ON_CPU) if tower.runtime.device == "cpu" else batch,
    }


def _measure(encode: Callable[[int], None]) -> int:
    """Return the batch size of a tower: what was set, or else what is found by trying."""
    most = 32 if _engine.runtime.device == "cpu" else 256
    return _engine.max_batch or batch_size.measure(encode, most)


def _encode_texts(count: int) -> None:
    _base_tower.encode([_TYPICAL] * count)


def _encode_images(count: int) -> None:
    side = _image_tower.preprocessing.input_size
    _image_tower.encode(np.zeros((count, side, side, 3), np.uint8))


def encode_texts(release: str, texts: list[str]) -> tuple[npt.NDArray[np.float32], list[bool]]:
    """Encode texts with one release."""
    _check()
    tower = _text_towers.get(release)
    if tower is None:
        raise FailedPreconditionError(f"the text release {release} is not loaded")
    with _turn:
        return tower.encode(texts)


def encode_images(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Encode prepared images for ingest."""
    _check()
    _give_way()
    return _image_tower.encode(pixels)


def _give_way() -> None:
    """Have this thread compute only when nothing else does, if it is the one that computes.

    Not where the tower has threads of its own: this one would hold the interpreter while it is put
    aside, and pictures of queries wait for that.
    """
    if _image_tower.runtime.engine == "torch":
        budget.only_when_idle()


def encode_pictures(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Encode prepared pictures of queries."""
    _check()
    return _picture_tower.encode(pixels)


def start_loading(release: Release) -> None:
    """Begin to load a release beside the others, on a thread: queries go on meanwhile."""
    _check()
    _loading[release.name] = _loader.submit(_load, release)


def _load(release: Release) -> "TextEncoder":
    tower = _engine.text_tower(release)
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
