"""The sign of life of the processes that no call reaches: ingest workers and beat."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cra.services.ingest.heartbeat import Heartbeat
from cra.shared.errors import UnavailableError
from tests.servers import wait_until


class Broker:
    """A broker that may be down."""

    down = False

    def ping(self) -> None:
        """Answer, unless it is down."""
        if self.down:
            raise UnavailableError("Redis does not answer")


@pytest.fixture
def broker() -> Broker:
    """A broker that answers."""
    return Broker()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What is touched; its folder is not there yet."""
    return tmp_path / "run" / "worker"


@pytest.fixture
def heartbeat(file: Path, broker: Broker) -> Iterator[Heartbeat]:
    """A heartbeat in a hurry."""
    heartbeat = Heartbeat(file, broker.ping, stuck=1.0, period=0.01)
    heartbeat.start()
    yield heartbeat
    heartbeat.close()


def _is_touched(file: Path) -> bool:
    """Tell whether a file is touched once more; it is made anew to see it."""
    file.unlink(missing_ok=True)
    try:
        wait_until(file.exists, "it is touched", 0.8)
    except AssertionError:
        return False
    return True


def test_a_loop_that_turns_is_shown(heartbeat: Heartbeat, file: Path) -> None:
    """The file is made with its folder, and touched again and again while the loop turns."""
    for _ in range(5):
        heartbeat.turn()
        assert _is_touched(file)


def test_a_loop_that_is_stuck_is_not(heartbeat: Heartbeat, file: Path) -> None:
    """Nothing is touched any more, until the loop turns again.

    Broken on purpose: a thread that only touches, without asking for turns, shows a loop that
    has been stuck for hours as well as any.
    """
    wait_until(lambda: not _is_touched(file), "it is seen to be stuck", 10)
    heartbeat.turn()
    assert _is_touched(file)


def test_a_broker_that_is_down_is_no_reason(
    heartbeat: Heartbeat, file: Path, broker: Broker
) -> None:
    """A loop that cannot turn without its broker is not stuck; it is when that has been back."""
    broker.down = True
    for _ in range(4):
        assert _is_touched(file)
    broker.down = False
    wait_until(lambda: not _is_touched(file), "it is seen to be stuck", 10)
