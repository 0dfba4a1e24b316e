"""Both towers on a GPU. Skipped, and said so, where torch sees none."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cra.services.embedding.towers import TowerProcesses
from cra.shared.model.checkpoints import ModelSource, find_model
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.runtime import Precision, Runtime
from cra.shared.model.text_tower import TextTower
from cra.shared.model.torch_forward import HIGH, LOW, TorchForward
from cra.shared.settings import Settings
from tests.checkpoints import make_checkpoint
from tests.unit.reference import TOLERANCE

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="THE GPU PATH IS NOT TESTED: torch sees no CUDA device"
)

TEXTS = ["红", "飞檐下的红色大门", "塔" * 60]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def source(folder: Path) -> ModelSource:
    """The same, found."""
    return find_model(str(folder))


def _pixels(count: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def test_it_is_what_auto_comes_to() -> None:
    """Where there is CUDA, `auto` takes it, with torch and in half the bits."""
    runtime = Runtime.choose(engine="auto")
    assert (runtime.engine, runtime.device) == ("torch", "cuda")
    assert runtime.precision in {"bf16", "fp16"}


def test_fp32_is_the_reference(source: ModelSource) -> None:
    """In fp32 both towers give the vectors that they give on CPU."""
    pixels = _pixels(5)
    found, flags = TextTower(source, "cuda", "fp32").encode(TEXTS)
    expected, cut = TextTower(source, "cpu", "fp32").encode(TEXTS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=10 * TOLERANCE)
    assert flags == cut
    there, here = ImageTower(source, "cuda", "fp32"), ImageTower(source, "cpu", "fp32")
    np.testing.assert_allclose(
        there.encode(pixels), here.encode(pixels), rtol=0, atol=10 * TOLERANCE
    )


def test_autocast_keeps_the_direction(source: ModelSource) -> None:
    """At the precision that `auto` comes to, vectors of both towers keep a cosine of 0.999."""
    texts, _ = TextTower(source, "cuda").encode(TEXTS)
    expected, _ = TextTower(source, "cpu", "fp32").encode(TEXTS)
    assert (texts * expected).sum(axis=1).min() >= 0.999
    images = ImageTower(source, "cuda").encode(_pixels(8))
    wanted = ImageTower(source, "cpu", "fp32").encode(_pixels(8))
    assert (images * wanted).sum(axis=1).min() >= 0.999


@pytest.mark.parametrize("count", [1, 2, 33, 256, 1000])
def test_a_vector_is_the_same_in_any_batch(source: ModelSource, count: int) -> None:
    """However many go at once, short ones beside long ones, each has the vector it has alone."""
    tower, images = TextTower(source, "cuda", "fp32"), ImageTower(source, "cuda", "fp32")
    texts = ["塔" * (1 + number % 50) for number in range(count)]
    pixels = _pixels(count)
    found, seen = tower.encode(texts)[0], images.encode(pixels)
    for number in {0, count // 2, count - 1}:
        alone, _ = tower.encode([texts[number]])
        np.testing.assert_allclose(found[number], alone[0], rtol=0, atol=10 * TOLERANCE)
        one = images.encode(pixels[number : number + 1])
        np.testing.assert_allclose(seen[number], one[0], rtol=0, atol=10 * TOLERANCE)


def test_callers_side_by_side(source: ModelSource) -> None:
    """Threads with streams of their own each have their own answers."""
    tower = ImageTower(source, "cuda")
    images = _pixels(64)
    alone = tower.encode(images)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            parts = list(pool.map(tower.encode, np.split(images, 4)))
            np.testing.assert_allclose(np.concatenate(parts), alone, rtol=0, atol=1e-2)


class _Seen:
    """Takes a batch to itself; notes the streams that it was called on."""

    def __init__(self) -> None:
        self.streams: list[torch.cuda.Stream] = []
        self.precise: list[torch.dtype] = []
        self._weights = torch.eye(8, device="cuda")
        torch.cuda.synchronize()  # made on another stream than those that read it

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        assert batch.is_cuda
        self.streams.append(torch.cuda.current_stream())
        product = batch @ self._weights
        self.precise.append(product.dtype)
        return product


@pytest.mark.parametrize("priority", [LOW, HIGH])
def test_each_thread_has_its_stream(priority: int) -> None:
    """None is the default stream, on which all would wait for each other; each has its priority."""
    module = _Seen()
    forward = TorchForward(module, Runtime.choose("cuda"), priority)
    batch = np.eye(8, dtype=np.float32)
    for _ in range(2):
        forward(batch)
    thread = threading.Thread(target=forward, args=(batch,))
    thread.start()
    thread.join()
    first, again, other = module.streams
    assert first == again != other
    assert torch.cuda.default_stream() not in module.streams
    assert {stream.priority for stream in module.streams} == {priority}


def test_copies_go_by_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes in is pinned and copied without waiting, and so is what comes out."""
    copied: list[tuple[bool, bool]] = []
    to, copy = torch.Tensor.to, torch.Tensor.copy_

    def spy(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        copied.append((tensor.is_pinned(), options.get("non_blocking", False)))
        return to(tensor, *args, **options)

    def spy_out(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        copied.append((tensor.is_pinned(), options.get("non_blocking", False)))
        return copy(tensor, *args, **options)

    forward = TorchForward(_Seen(), Runtime.choose("cuda"), HIGH)
    monkeypatch.setattr(torch.Tensor, "to", spy)
    monkeypatch.setattr(torch.Tensor, "copy_", spy_out)
    answer = forward(np.eye(8, dtype=np.float32))
    assert copied == [(True, True), (True, True)]
    assert torch.from_numpy(answer).is_pinned()
    np.testing.assert_array_equal(answer, np.eye(8))


def test_autocast_is_on_unless_fp32_is_asked_for() -> None:
    """Products are computed in the runtime's precision; what comes out is float32 all the same."""
    dtypes: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}
    for precision, dtype in dtypes.items():
        module = _Seen()
        runtime = Runtime.choose("cuda", precision)
        answer = TorchForward(module, runtime, HIGH)(np.eye(8, dtype=np.float32))
        assert module.precise == [dtype]
        assert answer.dtype == np.float32


def test_pictures_of_queries_go_first(source: ModelSource) -> None:
    """They have the same weights, and streams of the higher priority: they end before ingest's."""
    tower = ImageTower(source, "cuda")
    pictures = tower.for_queries()
    assert pictures.model is tower.model
    assert (tower._forward._stream().priority, pictures._forward._stream().priority) == (LOW, HIGH)
    np.testing.assert_allclose(
        pictures.encode(_pixels(3)), tower.encode(_pixels(3)), rtol=0, atol=1e-2
    )
    ingest = tower._forward._stream()
    with torch.cuda.stream(ingest):
        torch.cuda._sleep(2**31)  # type: ignore[no-untyped-call]  # cycles: over a second
    pictures.encode(_pixels(3))
    assert not ingest.query()
    ingest.synchronize()


@pytest.fixture(scope="module")
def towers(folder: Path) -> Iterator[TowerProcesses]:
    """The processes of the embedding service, on CUDA."""
    towers = TowerProcesses(Settings(model=str(folder), device="cuda"))
    yield towers
    towers.close()


def test_the_processes_run_on_it(towers: TowerProcesses, source: ModelSource) -> None:
    """Texts, images and pictures of queries at once are encoded there, in batches it measured."""
    info = towers.info
    assert (info.engine, info.device) == ("torch", "cuda")
    assert info.text_batch >= 1
    assert info.image_batch >= info.picture_batch >= 1
    texts, _ = TextTower(source, "cpu", "fp32").encode(TEXTS)
    pixels = _pixels(4)
    images = ImageTower(source, "cpu", "fp32").encode(pixels)
    with ThreadPoolExecutor(3) as pool:
        for _ in range(10):
            encoded = pool.submit(towers.encode_texts, info.release, TEXTS)
            bulk = pool.submit(towers.encode_images, list(pixels))
            pictures = pool.submit(towers.encode_pictures, list(pixels))
            found = np.stack([vector for vector, _ in encoded.result()])
            assert (found * texts).sum(axis=1).min() >= 0.999
            for answer in (bulk, pictures):
                assert (np.stack(answer.result()) * images).sum(axis=1).min() >= 0.999
