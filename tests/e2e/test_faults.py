"""The short form of `make faults`: a few parts killed, few objects, on Milvus Lite."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import rows
from tests.faults.faults import FAULTS
from tests.faults.stand import Stand
from tests.faults.traffic import BUCKET
from tests.servers import wait_until
from tests.stack import Stack


@pytest.fixture(scope="module")
def stand(stack: Stack) -> Iterator[Stand]:
    """The stack, emptied before and after: the writer's record is all there is."""
    _empty(stack)
    with contextlib.closing(Stand(stack, Path(stack.env["CRA_DATA_DIR"]), {})) as stand:
        stand.fill()
        yield stand
    _empty(stack)


def _empty(stack: Stack) -> None:
    for item in stack.bucket.list_objects(BUCKET, recursive=True):
        stack.bucket.remove_object(BUCKET, item.object_name or "")
    wait_until(stack.settled, "the index is empty", 60, every=0.5)


@pytest.mark.parametrize("name", ["kill-worker", "kill-embedding", "kill-redis"])
def test_nothing_is_lost(stand: Stand, name: str) -> None:
    """Whatever is killed, all adds up within a minute, and no query is answered wrongly.

    Break, seen red for the worker: leases that never end, in the script that claims. For others see
    tests/faults/faults.py.
    """
    row = rows.run(stand, FAULTS[name], operations=150, heals_within=60)
    assert row.problems == []
    assert row.put > 100
    assert row.asked > 10
    assert row.failed.get("not_an_image", 0) + row.indexed == row.objects
