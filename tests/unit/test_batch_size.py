"""The batch size that is found by measuring."""

import pytest

from cra.services.embedding.batch_size import measure


class Device:
    """Takes a set time for a call and a set time for each item, in parts of a width."""

    def __init__(self, call: float, item: float, width: int = 1) -> None:
        self.call, self.item, self.width = call, item, width
        self.now = 0.0
        self.sizes: list[int] = []

    def __call__(self, count: int) -> None:
        """Encode: time passes."""
        self.sizes.append(count)
        self.now += self.call + self.item * -(-count // self.width)

    def clock(self) -> float:
        """Return its time."""
        return self.now


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        pytest.param(Device(0.0, 0.001), 1, id="nothing is gained: a query waits for no other"),
        pytest.param(Device(0.01, 0.001), 256, id="a call costs much: as many as may be"),
        pytest.param(Device(0.0, 0.001, 16), 16, id="sixteen cost what one costs"),
    ],
)
def test_the_smallest_batch_of_nearly_the_best_rate(device: Device, expected: int) -> None:
    """It finds where the device gives all it has."""
    assert measure(device, 256, 10.0, device.clock) == expected


def test_a_busy_start_makes_no_batch_small() -> None:
    """What takes half of the device six times in ten is met by every size alike.

    Break: take the best of a few of each size: small batches fall between.
    """

    class Shared(Device):
        def __call__(self, count: int) -> None:
            """Encode, in steps of a millisecond."""
            for _ in range(round(1000 * (self.call + self.item * count))):
                self.now += 0.002 if self.now % 0.5 < 0.3 else 0.001

    device = Shared(0.03, 0.01)
    assert measure(device, 32, 10.0, device.clock) == 32


def test_it_ends_in_time() -> None:
    """A slow device is not kept busy: no size is begun after the time is over."""
    device = Device(0.0, 1.0)
    assert measure(device, 256, 2.0, device.clock) == 1
    assert max(device.sizes) == 1


def test_no_size_is_over_the_limit() -> None:
    """What does not fit into the device is not tried."""
    device = Device(1e-4, 1e-6)
    assert measure(device, 32, 10.0, device.clock) == 32
    assert max(device.sizes) == 32
