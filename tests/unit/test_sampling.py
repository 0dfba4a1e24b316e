"""The soak's look at processes can fail: a leak is seen, and noise is none."""

import os
import random

import pytest

from tests.load.sampling import KINDS, Sampler, Samples, look
from tests.servers import wait_until


def _samples(kind: str, values: list[float]) -> Samples:
    samples = Samples(times=[float(5 * n) for n in range(len(values))])
    samples.values[kind] = values
    return samples


@pytest.mark.parametrize(
    ("kind", "start", "leak"),
    [("memory", 400, 0.3), ("threads", 40, 0.05), ("descriptors", 90, 0.1)],
)
def test_a_slow_leak_is_seen(kind: str, start: float, leak: float) -> None:
    """So little for each sample that the noise hides it from one to the next."""
    rng = random.Random(1)
    noise = [rng.uniform(-3, 3) for _ in range(360)]
    leaking = _samples(kind, [start + n * leak + e for n, e in enumerate(noise)])
    assert not leaking.is_flat(kind)
    assert leaking.growth(kind) == pytest.approx(0.7 * 360 * leak, rel=0.2)
    assert _samples(kind, [start + e for e in noise]).is_flat(kind)


def test_warming_up_and_a_moment_of_more_are_no_leak() -> None:
    """What grows at first and then stays is flat, and so is what was more once."""
    values = [min(400.0, 200.0 + 4 * n) for n in range(360)]
    values[200:206] = [900.0] * 6
    assert _samples("memory", values).is_flat("memory")


def test_a_process_is_looked_at_with_its_children() -> None:
    """All three kinds are there, again and again, until it ends."""
    assert all(value > 0 for value in look(os.getpid()))
    with Sampler(lambda: {"me": os.getpid()}, 0.01) as sampler:
        wait_until(lambda: "me" in sampler.samples and len(sampler.samples["me"].times) > 3, "more")
    assert {len(sampler.samples["me"].values[kind]) for kind in KINDS} == {
        len(sampler.samples["me"].times)
    }
