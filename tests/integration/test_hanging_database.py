"""A database that hangs in the middle of everything: a real one, that is stopped."""

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.errors import CraError, DeadlineExceededError, UnavailableError
from cra.shared.settings import Settings
from tests.fakes import ColourEncoder
from tests.integration.test_search import gateway
from tests.servers import milvus_process, wait_until


@pytest.fixture
def stopping(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A Milvus Lite of the test's own, and its process."""
    with milvus_process(tmp_path, "lite") as (uri, pid):
        yield uri, pid
        os.killpg(pid, signal.SIGCONT)


def test_a_search_ends_by_its_deadline_while_the_database_hangs(
    stopping: tuple[str, int], s3: Settings
) -> None:
    """20 searches at once are all told within moments of their own two seconds.

    Each error names Milvus, also of a deadline that is longer than that may take. When it goes on,
    so do searches. Broken on purpose: without `left` in the timeout of `_search`, the gateway's
    threads are held for up to three times `CRA_MILVUS_TIMEOUT`.
    """
    uri, pid = stopping
    settings = Settings(milvus_uri=uri, milvus_timeout=5)
    with contextlib.closing(MilvusVectorStore(settings)) as store:
        model = ColourEncoder(uuid.uuid4().hex[:16])
        tower = model.models().image_tower
        store.ensure_collection(tower.fingerprint, tower.dimension)
        with gateway(store, model, s3, max_calls=32) as client, ThreadPoolExecutor(20) as pool:
            client.search("红")
            engine_calls = store._searches
            os.killpg(pid, signal.SIGSTOP)

            told: list[str] = []

            def search(seconds: float) -> tuple[type[CraError] | None, float]:
                began = time.monotonic()
                client._timeout = seconds
                try:
                    client.search("红")
                except CraError as error:
                    told.append(error.message)
                    return type(error), time.monotonic() - began
                return None, time.monotonic() - began

            for kind, took in pool.map(search, [2.0] * 20):
                assert kind is DeadlineExceededError
                assert took < 3
            # On the gateway's side too: nobody is called for, and no line is left.
            # But for the check of readiness, which asks for one hit and has its own time.
            wait_until(
                lambda: all(alike.limit == 1 for alike in list(engine_calls._lines)),
                "the line is empty",
                2,
            )
            kind, took = search(20.0)
            assert kind is UnavailableError
            assert took < 10
            assert len(told) == 21
            assert all("Milvus" in message for message in told)
            os.killpg(pid, signal.SIGCONT)
            wait_until(lambda: search(20.0)[0] is None, "it is found again", 20)
