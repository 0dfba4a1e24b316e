"""Servers that tests share: started when the first test asks, stopped after the last."""

import contextlib
from collections.abc import Iterator

import pytest

from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.settings import Settings
from tests import servers


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server."""
    with servers.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """An S3 server with the bucket `images`, as settings that reach it."""
    with servers.object_store(tmp_path_factory.mktemp("s3")) as settings:
        yield settings


@pytest.fixture(scope="session")
def milvus_lite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Milvus Lite's server."""
    with servers.milvus(tmp_path_factory.mktemp("lite"), "lite") as uri:
        yield uri


@pytest.fixture(scope="session", params=["lite", "server"])
def any_milvus(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Each kind of Milvus in turn."""
    if request.param == "lite":
        yield request.getfixturevalue("milvus_lite")
        return
    pytest.importorskip("milvus", reason="the Milvus server's wheel does not install here")
    with servers.milvus(tmp_path_factory.mktemp("milvus"), "server") as uri:
        yield uri


@pytest.fixture
def vectors(milvus_lite: str) -> Iterator[MilvusVectorStore]:
    """A vector store on Milvus Lite."""
    with contextlib.closing(MilvusVectorStore(Settings(milvus_uri=milvus_lite))) as store:
        yield store
