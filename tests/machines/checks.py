"""What must hold while nothing is wrong: replicas share the load, and agree about the release."""

import contextlib
import time
from dataclasses import dataclass
from typing import Final

from cra.shared.adapters.release_store import S3ReleaseStore
from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.client import SearchClient
from cra.shared.errors import CraError
from cra.shared.ports import ReleaseState
from deploy.demo.releases import shipped
from tests.faults.tally import Tally
from tests.faults.traffic import Writer
from tests.machines.fleet import TARGETS, Callers, Fleet, names_of
from tests.servers import last, wait_until

WATCHED: Final = 15.0
"""Seconds over which shares are taken."""
SHARED: Final = ("gateway", "embedding")
FAIR: Final = 0.25
"""The least share of one of two replicas."""
FOLLOWS_WITHIN: Final = 5.0
"""Seconds from when a release is activated until every replica answers with it."""


@dataclass(frozen=True)
class Check:
    """One of them."""

    claim: str
    seen: str
    holds: bool


def load_spreads(fleet: Fleet, tally: Tally) -> list[Check]:
    """Each replica answers a quarter of its part's calls at least."""
    names = [name for part in SHARED for name in names_of(part)]
    writer = Writer(tally.bucket, tally.record, 200, seed=1)
    callers = Callers(fleet, tally.anchors)
    try:
        writer.start(100_000, 10_000)
        before = {name: fleet.uses(name) or 0.0 for name in names}
        last(WATCHED)
        done = {name: (fleet.uses(name) or 0.0) - before[name] for name in names}
    finally:
        writer.stop()
        callers.kill()
    found = []
    for part in SHARED:
        counts = [done[name] for name in names_of(part)]
        shares = [count / max(1.0, sum(counts)) for count in counts]
        found.append(
            Check(
                f"each {part} answers at least {FAIR:.0%} of the calls",
                " and ".join(f"{share:.0%}" for share in shares) + f" of {sum(counts):.0f}",
                min(shares) >= FAIR,
            )
        )
    return found


def releases_agree(fleet: Fleet) -> Check:
    """A release that is activated is soon that of every replica and every gateway."""
    settings = fleet.outside
    store = S3ReleaseStore(settings)
    with contextlib.ExitStack() as stack:
        encoders = [RemoteEncoder.of(settings, target) for target in _targets(fleet, "embedding")]
        for encoder in encoders:
            stack.callback(encoder.close)
        gateways = [
            stack.enter_context(SearchClient(target)) for target in _targets(fleet, "gateway")
        ]
        release = store.publish(shipped())

        def loaded() -> bool:
            return all(
                any(
                    (one.name, one.state) == (release.name, ReleaseState.LOADED)
                    for one in encoder.models().releases
                )
                for encoder in encoders
            )

        wait_until(loaded, f"{release.name} is loaded everywhere", 60, every=0.2)
        tower = encoders[0].models().image_tower.fingerprint
        began = time.monotonic()
        store.activate(release.name, tower)

        def follow() -> bool:
            try:
                told = {one.models().active_release.name for one in encoders}
                told |= {one.search("红墙", top_k=1).text_release for one in gateways}
            except CraError:
                return False
            return told == {release.name}

        wait_until(follow, f"{release.name} is active everywhere", 60, every=0.1)
        took = time.monotonic() - began
    return Check(
        f"a release that is activated answers on every replica within {FOLLOWS_WITHIN:.0f} s",
        f"{took:.1f} s",
        took <= FOLLOWS_WITHIN,
    )


def _targets(fleet: Fleet, part: str) -> list[str]:
    return [
        f"ipv4:{fleet.processes[name].machine.address}:{TARGETS[part]}" for name in names_of(part)
    ]
