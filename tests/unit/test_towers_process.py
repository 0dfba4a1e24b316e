"""The towers in processes of their own: real ones, with a tiny model."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cra.services.embedding.towers import (
    IMAGE_NICENESS,
    TowerProcesses,
    _load_text_tower,
    _text_info,
    _TowerProcess,
)
from cra.shared.errors import FailedPreconditionError, UnavailableError
from cra.shared.model.pixels import Preprocessing, prepare
from cra.shared.settings import Settings
from tests.checkpoints import make_checkpoint
from tests.unit.pictures import FILES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def towers(folder: Path) -> Iterator[TowerProcesses]:
    """Its towers."""
    towers = TowerProcesses(Settings(model=str(folder), device="cpu"))
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
    encoded = towers.encode_texts(["红色的塔", "飞檐" * 60])
    vectors, truncated = text.encode(["红色的塔", "飞檐" * 60])
    np.testing.assert_allclose([vector for vector, _ in encoded], vectors, atol=1e-6)
    assert [cut for _, cut in encoded] == truncated == [False, True]
    pixels = [prepare(FILES[name], Preprocessing(32)).pixels for name in ("JPEG", "PNG, RGBA")]
    np.testing.assert_allclose(
        towers.encode_images(pixels), image.encode(np.stack(pixels)), atol=1e-6
    )


def test_images_run_at_low_priority(towers: TowerProcesses) -> None:
    """Law 6: text and image inference run in two processes, the image one as a nice one."""
    text, image = towers._text.run(os.getpid), towers._image.run(os.getpid)
    assert len({text, image, os.getpid()}) == 3
    own = os.getpriority(os.PRIO_PROCESS, os.getpid())
    assert os.getpriority(os.PRIO_PROCESS, text) == own
    assert os.getpriority(os.PRIO_PROCESS, image) == min(19, own + IMAGE_NICENESS)


def test_a_process_that_dies_is_replaced(towers: TowerProcesses) -> None:
    """A killed tower fails the call that needs it with UnavailableError; the next one works."""
    before = towers.encode_texts(["红门"])[0][0]
    victim = towers._text.run(os.getpid)
    image = towers._image.run(os.getpid)
    with pytest.raises(UnavailableError, match="died"):
        # It dies in the middle of the call, as a process that is killed for its memory does.
        towers._text.run(os.kill, victim, signal.SIGKILL)
    assert towers._image.run(os.getpid) == image
    np.testing.assert_array_equal(towers.encode_texts(["红门"])[0][0], before)
    assert towers._text.run(os.getpid) != victim


def test_ctrl_c_is_for_the_parent(towers: TowerProcesses) -> None:
    """SIGINT, which a terminal sends to the whole group, does not end a tower before its parent."""
    os.kill(towers._text.run(os.getpid), signal.SIGINT)
    assert towers.encode_texts(["红门"])


def test_a_model_that_does_not_load() -> None:
    """The reason crosses the process boundary in its own words, before anything is served."""
    tower = _TowerProcess(_load_text_tower, Settings(model="no-such-model", device="cpu"))
    with pytest.raises(FailedPreconditionError, match="no model 'no-such-model'"):
        tower.run(_text_info)
    tower.close()
