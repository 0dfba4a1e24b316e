"""Every bad or odd object that the catalogue has, on the local stack, among good neighbours."""

import sys
from pathlib import Path

import pytest

from tests import bad_inputs
from tests.odd_objects import ODD_OBJECTS
from tests.servers import wait_until
from tests.stack import local_stack

MEMORY_AT_MOST = 2 * 2**30 + 512 * 2**20
"""Bytes of one worker process: two readers, each with the largest image there may be."""

MEMORY_KEPT = 128 * 2**20
"""Bytes that one worker process may hold more than before, when it has nothing to do."""


def test_bad_inputs_harm_nobody(tmp_path: Path) -> None:
    """Good odd ones are indexed upright and right, bad ones listed with the reason; nobody is hurt.

    Neighbours are indexed, the worker's processes are the ones that were there before and their
    memory is what it was, nothing is left in line, and a reconcile finds nothing to mend.

    Fails when `_see_one` catches no BadImageError, when `_turn` returns None, when Pillow's blocks
    keep their size (for the memory), and when the limits of parts are lifted (for the pids).
    """
    data = tmp_path / "data"
    with local_stack(data, bad_inputs.MODEL, "lite") as stack:
        stack.put("first.jpg", bad_inputs.make_neighbour(0))
        stack.follows(bad_inputs.make_neighbour(0), "first.jpg")
        before = bad_inputs.worker_processes(data)
        bad_inputs.put_all(stack)
        bad_inputs.settle(stack)
        rows = bad_inputs.look(stack)
        assert [row for row in rows if row.got != row.expected] == []
        for ref in bad_inputs.neighbours():
            stack.search.search(image_id=ref.image_id)  # NotFoundError if it is not indexed
        bad = sum(bool(odd.reason) for odd in ODD_OBJECTS)
        good = len(ODD_OBJECTS) - bad + len(bad_inputs.neighbours()) + 1

        def adds_up() -> bool:
            status = stack.status()
            listed = len(bad_inputs.failures(stack))
            return (status.indexed, status.failed, listed, status.waiting) == (good, bad, bad, 0)

        # A reconcile that began among the puts may have put one in line again.
        wait_until(adds_up, "as many are indexed and failed as there are")
        bad_inputs.settle(stack)
        last = stack.status().last_reconcile
        assert (last.missing, last.stale, last.orphaned) == (0, 0, 0)
        if sys.platform == "linux":
            after = bad_inputs.worker_processes(data)
            assert after.pids == before.pids
            assert after.peak < MEMORY_AT_MOST
            wait_until(
                lambda: bad_inputs.worker_processes(data).memory < before.memory + MEMORY_KEPT,
                "the workers hold no more than they need",
            )


def test_every_reason_is_a_sentence_for_people(written: list[tuple[str, ...]]) -> None:
    """What the failure list says of a bad object is a sentence, and no name of an exception."""
    for kind, expected, _, message in written:
        if not expected.startswith("indexed"):
            assert len(message.split()) >= 4, (kind, message)
            assert "Error" not in message.split()[-1], (kind, message)


def test_the_document_is_of_this_catalogue(written: list[tuple[str, ...]]) -> None:
    """docs/bad-inputs.md has a row for each kind, as expected: `make bad-inputs` writes it."""
    expected = [(odd.kind, odd.expected, odd.expected) for odd in ODD_OBJECTS]
    assert [row[:3] for row in written] == expected, "write it with: make bad-inputs"


@pytest.fixture
def written() -> list[tuple[str, ...]]:
    """The table as it stands in the document."""
    return bad_inputs.read_table(bad_inputs.DOCUMENT.read_text(encoding="utf-8"))
