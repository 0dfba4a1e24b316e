"""Towers converted for OpenVINO are the reference's: 1e-4 in fp32, a cosine of 0.999 if faster."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from cra.services.embedding.engine import Engine
from cra.services.training.buildings.dataset import write_dataset
from cra.services.training.miniature import data
from cra.shared.errors import FailedPreconditionError
from cra.shared.model import converted as store
from cra.shared.model.checkpoints import find_model
from cra.shared.model.converted import Converted
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.openvino_towers import OpenVinoImageTower, OpenVinoTextTower
from cra.shared.model.pixels import Preprocessing, prepare
from cra.shared.model.runtime import Precision, Runtime
from cra.shared.model.text_tower import TextTower
from cra.shared.settings import Settings
from tests.checkpoints import Vision, make_checkpoint
from tests.releases import make_tower_release
from tests.unit.reference import TOLERANCE

TEXTS = ["红", "飞檐下的红色大门", "塔" * 60, "庑殿顶、盝顶", "Art Deco大楼", "[MASK] 🏯", "亭"]


def runtime(precision: Precision) -> Runtime:
    """Return OpenVINO at a precision; skips where the processor lacks it."""
    try:
        return Runtime.choose("cpu", precision, "openvino")
    except FailedPreconditionError as error:
        pytest.skip(error.message)


@pytest.fixture(scope="module", params=["vit", "resnet"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Converted]:
    """A tiny model of each kind, and what was made of it."""
    vision: Vision = request.param
    folder = make_checkpoint(tmp_path_factory.mktemp(vision), vision=vision)
    return folder, store.convert_model(str(folder), "", "", tmp_path_factory.mktemp("converted"))


def pixels(count: int) -> Any:
    """Return prepared images."""
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def test_texts(model: tuple[Path, Converted]) -> None:
    """In fp32 a text has the reference's vector, whatever its neighbours, and the same flags."""
    folder, converted = model
    expected, cut = TextTower(find_model(str(folder)), "cpu").encode(TEXTS)
    tower = OpenVinoTextTower(converted, runtime("fp32"), 1)
    found, flags = tower.encode(TEXTS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert flags == cut
    many, _ = tower.encode(TEXTS * 3)
    np.testing.assert_allclose(many, np.tile(expected, (3, 1)), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_what_is_faster_ranks_as_fp32_does(precision: Precision, tmp_path: Path) -> None:
    """Law 3: the shipped model's vectors keep a cosine of 0.999 with the reference's.

    And R@20 of pictures that nobody trained on stays within half a point.
    """
    write_dataset(tmp_path / "test", "test", 400)
    images = data.load(tmp_path, "test", 1).dataset.images
    shipped = "deploy/models/miniature"
    converted = store.convert_model(shipped, "", "", tmp_path / "converted")
    preprocessing = Preprocessing(96)
    prepared = np.stack([prepare(image.read(), preprocessing).pixels for image in images])
    captions = [image.captions[0] for image in images]
    source, chosen = find_model(shipped), runtime(precision)
    ranked = []
    found = [
        (TextTower(source, "cpu").encode(captions)[0], ImageTower(source, "cpu").encode(prepared)),
        (
            OpenVinoTextTower(converted, chosen, 1).encode(captions)[0],
            OpenVinoImageTower(converted, chosen, 1).encode(prepared),
        ),
    ]
    for exact, quick in zip(*found, strict=True):
        assert (exact * quick).sum(axis=1).min() >= 0.999
    for texts, pictures in found:
        scores = texts @ pictures.T
        better = (scores > np.diag(scores)[:, None]).sum(axis=1)
        ranked.append((better < 20).mean())
    assert 0.3 < ranked[0] < 1  # of 400, a twentieth would be chance
    assert abs(ranked[0] - ranked[1]) <= 0.005


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_images(model: tuple[Path, Converted], count: int, threads: int) -> None:
    """In fp32 an image has the reference's vector, however a batch is shared among streams.

    So has a picture of a query.
    """
    folder, converted = model
    expected = ImageTower(find_model(str(folder)), "cpu").encode(pixels(count))
    tower = OpenVinoImageTower(converted, runtime("fp32"), threads)
    for one in (tower, tower.for_queries()):
        np.testing.assert_allclose(one.encode(pixels(count)), expected, rtol=0, atol=TOLERANCE)


def test_images_at_the_precision_that_is_chosen(model: tuple[Path, Converted]) -> None:
    """At the precision that `auto` comes to for this tower, the direction is kept.

    With a ResNet in bf16 it is not: the tiny one's cosine is 0.998, that of RN50's shape 0.96.
    """
    folder, converted = model
    expected = ImageTower(find_model(str(folder)), "cpu").encode(pixels(8))
    chosen = runtime(converted.info.image_precision)
    found = OpenVinoImageTower(converted, chosen, 1).encode(pixels(8))
    assert (found * expected).sum(axis=1).min() >= 0.999


def test_int8_where_it_keeps_the_vectors(tmp_path: Path) -> None:
    """A service that is asked for int8 takes it for the towers whose vectors it keeps.

    Not for the images of a ResNet, nor for texts of layers so small that rounding tells: those take
    what they take for `auto`, and the log says so.

    *Break:* have `int8_weights.load_if_kept` return `quick` whatever the cosine.
    """
    runtime("int8")
    chosen = {}
    for name, folder in {
        "shipped": Path("deploy/models/miniature"),
        "small": make_checkpoint(tmp_path / "small", vision="vit"),
    }.items():
        settings = Settings(
            model=str(folder), precision="int8", converted_models=str(tmp_path / "converted")
        )
        engine = Engine.choose(settings)
        with structlog.testing.capture_logs() as lines:
            texts, images = engine.text_tower(), engine.image_tower()
            assert images.for_queries().runtime == images.runtime
        chosen[name] = texts.runtime.precision, images.runtime.precision
        (line,) = [line for line in lines if line["event"].startswith("not in int8")]
        assert line["log_level"] == "warning"
    auto = Runtime.choose("cpu", "auto", "openvino").precision
    assert chosen == {"shipped": ("int8", "fp32"), "small": (auto, "int8")}


def test_what_is_known_of_a_model(model: tuple[Path, Converted]) -> None:
    """Names and fingerprints are the reference's: converting makes no other tower of it."""
    folder, converted = model
    source = find_model(str(folder))
    text, image = TextTower(source, "cpu"), ImageTower(source, "cpu")
    info = converted.info
    assert (info.release, info.image_tower) == (text.release, image.image_tower)
    assert (info.dimension, info.input_size) == (text.dimension, 32)


def test_callers_side_by_side(model: tuple[Path, Converted]) -> None:
    """Threads that share a tower each have their own answers."""
    _, converted = model
    tower = OpenVinoImageTower(converted, runtime("fp32"), 2)
    images = pixels(32)
    alone = tower.encode(images)
    barrier = threading.Barrier(4)

    def encode(part: int) -> Any:
        barrier.wait()
        return [tower.encode(images[part * 8 : part * 8 + 8]) for _ in range(10)]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(encode, range(4)))
    for repeated in zip(*answers, strict=True):
        np.testing.assert_allclose(np.concatenate(repeated), alone, rtol=0, atol=1e-5)


def test_a_release(tmp_path: Path) -> None:
    """A release is converted under its own name and has its own vectors."""
    folder = make_checkpoint(tmp_path / "model")
    release = make_tower_release(tmp_path, folder, make_checkpoint(tmp_path / "other", text_seed=1))
    converted = store.convert_release(release, tmp_path / "converted")
    found, _ = OpenVinoTextTower(converted, runtime("fp32"), 1).encode(TEXTS)
    np.testing.assert_allclose(found, TextTower(release, "cpu").encode(TEXTS)[0], atol=TOLERANCE)
    assert converted.info.release == release.name
    with pytest.raises(FailedPreconditionError, match="no image tower"):
        OpenVinoImageTower(converted, runtime("fp32"), 1)


def test_a_model_is_converted_once(model: tuple[Path, Converted]) -> None:
    """What is there is used; another checkpoint under the same name is another model."""
    folder, converted = model
    parent = converted.folder.parent
    weights = converted.text.with_suffix(".bin")
    before = weights.stat().st_mtime_ns
    assert store.convert_model(str(folder), "", "", parent) == converted
    assert weights.stat().st_mtime_ns == before
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"normalizer": "cra-1"}))
    try:
        assert store.convert_model(str(folder), "", "", parent).folder != converted.folder
    finally:
        (folder / "config.json").write_text(json.dumps(config))


def test_damaged_files_are_named(model: tuple[Path, Converted], tmp_path: Path) -> None:
    """What does not load is said to be removed, not served."""
    _, converted = model
    for name in ("text.xml", "text.bin"):
        (tmp_path / name).write_bytes((converted.folder / name).read_bytes()[:100])
    with pytest.raises(FailedPreconditionError, match="remove its folder"):
        OpenVinoTextTower(Converted(tmp_path, converted.info), runtime("fp32"), 1)


def test_nothing_half_made_is_left(tmp_path: Path) -> None:
    """A conversion that fails leaves nothing that a later one would take for whole."""

    def fail(folder: Path) -> None:
        (folder / "text.xml").write_text("half")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        store.place(tmp_path / "store", "model", fail)
    assert list((tmp_path / "store").iterdir()) == []


def test_it_reports_to_nobody() -> None:
    """OpenVINO's converter has a stub for telemetry, in whatever order things are imported.

    Without `quiet_openvino` it has the real one, which sends unless each user opted out.
    """
    code = "from openvino.tools.ovc import telemetry_utils as t; print(t.tm.__name__)"
    for before, expected in (
        ("import cra.shared.model.convert", "openvino.tools.ovc.telemetry_stub"),
        ("from cra.shared.model import openvino_towers", "openvino.tools.ovc.telemetry_stub"),
        ("pass", "openvino_telemetry"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", f"{before}\n{code}"], capture_output=True, text=True, check=True
        )
        assert done.stdout.split()[-1] == expected


@pytest.mark.parametrize(
    "wrong", [{"device": "cuda:99"}, {"precision": "int8", "runtime": "torch"}]
)
def test_a_choice_that_cannot_be_names_the_settings(wrong: dict[str, str]) -> None:
    """Who starts the service with a device or precision that is not there learns which setting."""
    with pytest.raises(FailedPreconditionError) as caught:
        Engine.choose(Settings(**wrong))  # type: ignore[arg-type]
    for name, value in wrong.items():
        assert f"CRA_{name.upper()}={value}" in caught.value.message


def test_the_runtime_that_is_chosen() -> None:
    """On CPU `auto` is OpenVINO; torch has it only when asked; no engine has what it has not."""
    assert Runtime.choose("cpu", engine="auto").engine == "openvino"
    assert Runtime.choose("cpu") == Runtime("torch", "cpu", "fp32")
    with pytest.raises(FailedPreconditionError, match="no device"):
        Runtime.choose("cuda:99", engine="openvino")
    with pytest.raises(FailedPreconditionError, match="int8 needs the runtime openvino"):
        Runtime.choose("cpu", "int8", "torch")
