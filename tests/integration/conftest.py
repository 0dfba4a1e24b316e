"""What integration tests share."""

from collections.abc import Iterator

import pytest

from cra.shared.settings import Settings
from tests import swap


@pytest.fixture(scope="package")
def world(
    s3: Settings, milvus_lite: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[swap.World]:
    """Two embedding services on one bucket of releases, an index and a gateway."""
    with swap.running(s3, milvus_lite, tmp_path_factory.mktemp("swap")) as world:
        yield world
