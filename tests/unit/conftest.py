"""What the unit tests share: quiet torch, patient hypothesis, one tiny model."""

import sys
from collections.abc import Iterator

import hypothesis
import pytest

from tests import embedding

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


@pytest.fixture(scope="module")
def service() -> Iterator[embedding.Service]:
    """An embedding service that the tests of a file share; nobody breaks it."""
    with embedding.running() as service:
        yield service


@pytest.fixture
def own() -> Iterator[embedding.Service]:
    """An embedding service of the test's own."""
    with embedding.running() as service:
        yield service
