"""The towers in processes of their own: real ones, with a tiny model."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest

from cra.services.embedding.towers import TowerProcesses
from cra.shared.errors import FailedPreconditionError, UnavailableError
from cra.shared.model.pixels import Preprocessing, prepare
from cra.shared.releases import WEIGHTS, Release, write_release
from cra.shared.settings import Settings
from tests.checkpoints import make_checkpoint
from tests.embedding import wait_until
from tests.pictures import FILES
from tests.releases import make_tower_release
from tests.unit.reference import TOLERANCE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=["torch", "openvino"])
def towers(folder: Path, request: pytest.FixtureRequest) -> Iterator[TowerProcesses]:
    """Its towers, on each engine in turn."""
    settings = Settings(model=str(folder), device="cpu", precision="fp32", runtime=request.param)
    towers = TowerProcesses(settings)
    assert towers.info.engine == request.param
    yield towers
    towers.close()


def test_the_processes_run_the_towers(towers: TowerProcesses, folder: Path) -> None:
    """What the processes answer is what the towers answer, and they say what they have loaded."""
    from cra.shared.model.checkpoints import find_model
    from cra.shared.model.image_tower import ImageTower
    from cra.shared.model.text_tower import TextTower

    source = find_model(str(folder))
    text, image = TextTower(source, "cpu"), ImageTower(source, "cpu")
    assert towers.info.release == text.release
    assert towers.info.image_tower == image.image_tower
    assert towers.info.preprocessing == Preprocessing(towers.info.input_size).fingerprint
    assert (towers.info.name, towers.info.device, towers.info.precision) == ("tiny", "cpu", "fp32")
    encoded = towers.encode_texts(text.release, ["红色的塔", "飞檐" * 60])
    vectors, truncated = text.encode(["红色的塔", "飞檐" * 60])
    np.testing.assert_allclose([vector for vector, _ in encoded], vectors, atol=tolerance(towers))
    assert [cut for _, cut in encoded] == truncated == [False, True]
    pixels = [prepare(FILES[name], Preprocessing(32)).pixels for name in ("JPEG", "PNG, RGBA")]
    np.testing.assert_allclose(
        towers.encode_images(pixels), image.encode(np.stack(pixels)), atol=tolerance(towers)
    )


def tolerance(towers: TowerProcesses) -> float:
    """Return how near to the reference an engine is in fp32."""
    return 1e-6 if towers.info.engine == "torch" else TOLERANCE


@pytest.fixture(scope="module")
def release(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A text tower of other weights, for the same image tower."""
    parent = tmp_path_factory.mktemp("releases")
    return make_tower_release(parent, folder, make_checkpoint(parent / "other", text_seed=1))


def test_releases_are_loaded_beside_the_model(towers: TowerProcesses, release: Release) -> None:
    """A release is loaded while texts are encoded, answers by its name, and can be let go."""
    from cra.shared.model.text_tower import TextTower

    base = towers.info.release
    before = towers.encode_texts(base, ["红门"])[0][0]
    done = threading.Event()
    answers: list[npt.NDArray[np.float32]] = []

    def ask() -> None:
        while not done.is_set():
            answers.append(towers.encode_texts(base, ["红门"])[0][0])

    thread = threading.Thread(target=ask)
    thread.start()
    towers.load_release(release)
    done.set()
    thread.join()
    assert len(answers) > 2
    np.testing.assert_array_equal(answers, [before] * len(answers))
    assert towers.loaded_releases() == {base, release.name}
    expected = TextTower(release, "cpu").encode(["红门"])[0][0]
    tuned = towers.encode_texts(release.name, ["红门"])[0][0]
    np.testing.assert_allclose(tuned, expected, atol=tolerance(towers))
    assert float(tuned @ before) < 0.99
    towers.unload_release(release.name)
    towers.unload_release(release.name)
    assert towers.loaded_releases() == {base}
    with pytest.raises(FailedPreconditionError, match=release.name):
        towers.encode_texts(release.name, ["红门"])


def test_a_release_that_does_not_load(
    towers: TowerProcesses, folder: Path, release: Release, tmp_path: Path
) -> None:
    """Weights of another shape, torn ones and such that are no numbers are refused, in words."""
    import torch

    from cra.shared.model.text_tower import encode_weights, load_text_model

    torn = make_tower_release(tmp_path, folder, folder, "torn")
    torn.weights.write_bytes(torn.weights.read_bytes()[:-100])
    model = load_text_model(release)
    torch.nn.init.constant_(model.text_projection, torch.nan)
    fields = release.manifest.model_dump(exclude={"files"}) | {"label": "nan"}
    nan = write_release(tmp_path, {WEIGHTS: encode_weights(model)}, **fields)
    shape = make_tower_release(
        tmp_path, folder, make_checkpoint(tmp_path / "wide", dimension=64), "shape"
    )
    # The converter checks a release's files before it loads them.
    torn_reason = "do not fit" if towers.info.engine == "torch" else "is torn"
    for bad, reason in ((torn, torn_reason), (nan, "no number"), (shape, "do not fit")):
        with pytest.raises(FailedPreconditionError, match=reason):
            towers.load_release(bad)
    assert towers.loaded_releases() == {towers.info.release}


def test_a_new_process_has_the_old_one_s_releases(towers: TowerProcesses, release: Release) -> None:
    """After a process died, the first call for a release is answered by it."""
    towers.load_release(release)
    before = towers.encode_texts(release.name, ["红门"])[0][0]
    victim = towers._text.run(os.getpid)
    with pytest.raises(UnavailableError, match="died"):
        towers._text.run(os.kill, victim, signal.SIGKILL)
    np.testing.assert_array_equal(towers.encode_texts(release.name, ["红门"])[0][0], before)
    towers.unload_release(release.name)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="priorities are Linux's")
def test_images_run_at_low_priority(towers: TowerProcesses) -> None:
    """Law 6: text and image inference are two processes; images are encoded when cores are free.

    That is, by threads of the lowest class; pictures of queries, and texts, by others.

    Break: load the image tower, or make its `for_queries`, on the other one's thread; with torch,
    leave the lanes as they are.
    """
    text, image = towers._text.run(os.getpid), towers._image.run(os.getpid)
    assert len({text, image, os.getpid()}) == 3
    pixels = list(np.zeros((32, 32, 32, 3), np.uint8))
    release = towers.info.release
    low = _share_of_the_lowest(image, lambda: towers.encode_images(pixels))
    assert low > 0.5, "what is left is what comes by the pipe, and goes"
    assert _share_of_the_lowest(image, lambda: towers.encode_pictures(pixels)) == 0
    assert _share_of_the_lowest(text, lambda: towers.encode_texts(release, ["塔"] * 32)) == 0


def _share_of_the_lowest(pid: int, encode: Callable[[], object]) -> float:
    """Return which share of a process's time threads of the lowest class have."""

    def worked() -> list[int]:
        found = [0, 0]
        for thread in Path(f"/proc/{pid}/task").iterdir():
            is_low = os.sched_getscheduler(int(thread.name)) == os.SCHED_IDLE
            found[is_low] += int((thread / "schedstat").read_text().split()[0])
        return found

    def at_rest() -> bool:
        """Tell whether no thread of the lowest class still has to end what it did before."""
        states = [
            (thread / "stat").read_text().rpartition(")")[2].split()[0]
            for thread in Path(f"/proc/{pid}/task").iterdir()
            if os.sched_getscheduler(int(thread.name)) == os.SCHED_IDLE
        ]
        return all(state == "S" for state in states)

    for _ in range(4):  # each lane has done it before
        encode()
    wait_until(at_rest)
    before = worked()
    for _ in range(8):
        encode()
    usual, low = (after - at_first for after, at_first in zip(worked(), before, strict=True))
    return low / (usual + low)


def _wait_for(file: Path) -> None:
    wait_until(file.exists)


def test_pictures_of_queries_wait_for_no_images(towers: TowerProcesses, tmp_path: Path) -> None:
    """While every lane of images is taken, a picture is encoded, and to the same vector.

    Break: `encode_pictures` goes by a lane of images.
    """
    pixels = [prepare(FILES["JPEG"], Preprocessing(32)).pixels]
    expected = towers.encode_images(pixels)
    go_on = tmp_path / "go on"
    with ThreadPoolExecutor(towers.info.image_lanes) as pool:
        held = [
            pool.submit(towers._image.encode, _wait_for, go_on)
            for _ in range(towers.info.image_lanes)
        ]
        found = towers.encode_pictures(pixels)
        assert not any(one.done() for one in held)
        go_on.touch()
    for one in held:
        one.result()
    np.testing.assert_allclose(found, expected, atol=tolerance(towers))


def test_a_process_that_dies_is_replaced(towers: TowerProcesses) -> None:
    """A killed tower fails the call that needs it with UnavailableError; the next one works."""
    before = towers.encode_texts(towers.info.release, ["红门"])[0][0]
    victim = towers._text.run(os.getpid)
    image = towers._image.run(os.getpid)
    with pytest.raises(UnavailableError, match="died"):
        # It dies in the middle of the call, as a process that is killed for its memory does.
        towers._text.run(os.kill, victim, signal.SIGKILL)
    assert towers._image.run(os.getpid) == image
    np.testing.assert_array_equal(towers.encode_texts(towers.info.release, ["红门"])[0][0], before)
    assert towers._text.run(os.getpid) != victim


def _unspeakable() -> object:
    return threading.Lock()


def test_an_answer_that_cannot_be_sent(towers: TowerProcesses) -> None:
    """A thread of the process that dies of its answer leaves nobody waiting; the next call works.

    Without closing its pipe, the caller waits for ever.
    """
    with pytest.raises(UnavailableError, match="died"):
        towers._text.encode(_unspeakable)
    assert towers.encode_texts(towers.info.release, ["红门"])


@pytest.fixture
def hasty(folder: Path) -> Iterator[TowerProcesses]:
    """Towers whose batches may take a second."""
    settings = Settings(
        model=str(folder), device="cpu", precision="fp32", runtime="torch", batch_seconds=1
    )
    towers = TowerProcesses(settings)
    yield towers
    towers.close()


def test_a_process_that_is_stopped_is_replaced(hasty: TowerProcesses) -> None:
    """SIGSTOP: the call that meets it is UNAVAILABLE in time, and the next one is answered.

    Broken on purpose: with `recv()` alone in place of `poll(seconds)` the call never returns.
    """
    before = hasty.encode_texts(hasty.info.release, ["红门"])[0][0]
    victim = hasty._text.run(os.getpid)
    os.kill(victim, signal.SIGSTOP)
    with pytest.raises(UnavailableError, match="hung: it did not answer for 1 s"):
        hasty.encode_texts(hasty.info.release, ["红门"])
    np.testing.assert_array_equal(hasty.encode_texts(hasty.info.release, ["红门"])[0][0], before)
    assert hasty._text.run(os.getpid) != victim


def test_a_process_that_takes_nothing_is_replaced(hasty: TowerProcesses) -> None:
    """A batch that is larger than the pipe does not hang in being sent to a stopped process.

    Broken on purpose: without SO_SNDTIMEO the call never returns.
    """
    victim = hasty._text.run(os.getpid)
    os.kill(victim, signal.SIGSTOP)
    with pytest.raises(UnavailableError, match="hung: it did not take what was sent"):
        hasty._text.encode(len, b"x" * 2**23)
    assert hasty._text.encode(len, b"x" * 2**23) == 2**23


def _for_ever() -> None:
    while True:
        pass


def test_a_forward_without_end_is_replaced(hasty: TowerProcesses) -> None:
    """A batch that computes for ever is given up, and so is its process."""
    with pytest.raises(UnavailableError, match="hung"):
        hasty._text.encode(_for_ever)
    assert hasty.encode_texts(hasty.info.release, ["红门"])


def test_the_end_waits_for_no_lock_of_a_call_that_hangs(folder: Path) -> None:
    """A service that ends while a process is given up ends, and starts no other one.

    Broken on purpose: with the pipes taken under the lock, each waits for the other for ever.
    """
    towers = TowerProcesses(Settings(model=str(folder), device="cpu", runtime="torch"))
    life = towers._text._life
    with ThreadPoolExecutor(2) as pool:
        hanging = pool.submit(towers._text.run, _for_ever, seconds=2.0)
        wait_until(life.control.empty)
        pool.submit(towers.close).result(60)
        assert isinstance(hanging.exception(20), UnavailableError)
    assert towers._text._life is life


def test_ctrl_c_is_for_the_parent(towers: TowerProcesses) -> None:
    """SIGINT, which a terminal sends to the whole group, does not end a tower before its parent."""
    os.kill(towers._text.run(os.getpid), signal.SIGINT)
    assert towers.encode_texts(towers.info.release, ["红门"])


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_model_that_does_not_load(runtime: Literal["torch", "openvino"]) -> None:
    """The reason crosses the process boundary in its own words, before anything is served."""
    settings = Settings(model="no-such-model", device="cpu", runtime=runtime)
    with pytest.raises(FailedPreconditionError, match="no model 'no-such-model'"):
        TowerProcesses(settings)
