"""What the unit tests share: quiet torch, patient hypothesis, one tiny model."""

import sys

import hypothesis

hypothesis.settings.register_profile(
    # Other work shares the cores: a slow example says nothing.
    "unit",
    deadline=None,
    max_examples=150,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("unit")


def pytest_runtest_setup() -> None:
    """Give torch one thread, in tests that have imported it."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
