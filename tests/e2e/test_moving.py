"""A whole move to another image tower: see tests/moving.py."""

import sys
from pathlib import Path

import pytest

from tests.moving import K, move

COUNT = 240


@pytest.mark.slow
def test_a_move_a_rollback_and_a_move_again_under_a_stream(tmp_path: Path) -> None:
    """No search fails, each is of the image tower and release that it names, both are measured.

    The second collection is filled by an ingest, worker and beat of its own while the first one
    answers; a move to an empty collection, and one that would lose recall, are refused with the
    numbers; both sets keep lines and failures of their own, and follow the bucket.

    Break: have `Towers._named` return the other one when the one that was chosen fails; give the
    second set the first one's Redis database; leave out `images.check` or `recall.check`.
    """
    moved = move(tmp_path, COUNT)
    sys.stdout.write(f"\n{moved.table()}\n")  # for `pytest -s`
    assert moved.failures == []
    assert f"holds 0 images, the old one's {COUNT}" in moved.refused_empty
    before, after = moved.recall
    assert after - before > 0.05
    said = moved.flips["flip"]
    assert (said["recall"]["before"], said["recall"]["after"]) == moved.recall
    assert said["images"] == {"before": COUNT, "after": COUNT}
    assert [one["moved"] for one in moved.flips.values()] == [True, True, True]
    assert all(one["seconds"] < 10 for one in moved.flips.values())
    assert all(seconds < 5 for seconds in moved.windows.values())
    assert f"recall@{K}" in moved.refused_worse
    assert "would fall" in moved.refused_worse
    for status in moved.statuses:
        assert (status.objects, status.indexed, status.failed) == (COUNT + 2, COUNT + 1, 1)
    assert min(moved.searches.values()) > 20
    assert set(moved.searches) == {"text", "image_id", "pages", "token"}
