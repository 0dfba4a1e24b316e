"""Replicas with addresses of their own, where there can be any: a short `make machines`."""

from pathlib import Path

import pytest

from tests.machines import rows
from tests.machines.fleet import running
from tests.machines.network import NoMachinesError


@pytest.mark.slow
def test_one_of_two_dies_and_one_is_cut_off(tmp_path: Path) -> None:
    """An embedding service is killed, a gateway cut off: no query fails, and nothing is lost.

    *Break:* without `grpc.keepalive_timeout_ms` in `rpc.open_channel`, queries that were sent to
    the gateway which is cut off wait for their deadline, and fail.
    """
    try:
        with running(tmp_path, "lite") as (fleet, tally):
            for part, how in (("embedding", rows.KILLED), ("gateway", rows.CUT_OFF)):
                row = rows.run(fleet, tally, part, how)
                assert row.problems == []
                assert row.queries > 100
                assert row.put + row.overwritten + row.deleted > 50
    except NoMachinesError as error:
        pytest.skip(f"NOTHING OF MACHINES WAS CHECKED: {error}")
