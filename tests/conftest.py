"""Servers that tests share: started when the first test asks, stopped after the last."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cra.shared.adapters.object_store import connect
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.settings import Settings
from tests import releases, servers


def pytest_configure() -> None:
    """Have Ctrl-C mean something to what tests start: a shell's background jobs ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _converted_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have each model be converted once for all tests and their processes, and nowhere else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRA_CONVERTED_MODELS", str(tmp_path_factory.getbasetemp() / "converted"))
        yield


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server."""
    with servers.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def s3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the S3 server keeps its data and its configuration."""
    return tmp_path_factory.mktemp("s3")


@pytest.fixture(scope="session")
def s3(s3_folder: Path) -> Iterator[Settings]:
    """An S3 server with the bucket `images`, as settings that reach it and may do everything."""
    with servers.object_store(s3_folder) as settings:
        yield settings


@pytest.fixture
def releases_s3(s3: Settings) -> Settings:
    """The S3 server with an empty bucket of releases."""
    client = connect(s3)
    # One for all tests: SeaweedFS sets room aside for each bucket.
    if client.bucket_exists(s3.releases_bucket):
        releases.empty(client, s3.releases_bucket)
    else:
        client.make_bucket(s3.releases_bucket)
    return s3


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
