"""`cra releases`, on two embedding services, a gateway and an index."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import make_checkpoint
from tests.releases import make_tower_release
from tests.swap import EFFECTIVE_WITHIN, QUERIES, World, environment


def cli(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `cra releases`."""
    return subprocess.run(
        [sys.executable, "-m", "cra.services.cli", "releases", *arguments],
        env={**os.environ, **environment(world.settings)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def cli_json(world: World, *arguments: str) -> Any:
    """Run `cra releases … --json` and return what it says."""
    done = cli(world, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_command_activates_and_rolls_back(world: World) -> None:
    """`cra releases activate` returns once every replica follows, and says how long that took.

    What is active already is no change, and nothing that a rollback returns to.

    Break: add to the history whatever differs in `Pointer.activated`.
    """
    chosen = world.releases[0].name
    said = cli_json(world, "activate", chosen)
    assert (said["release"], said["replicas"]) == (chosen, 2)
    assert said["seconds"] < EFFECTIVE_WITHIN
    assert world.active() == {chosen}
    listed = {one["name"]: one for one in cli_json(world, "list")["releases"]}
    assert listed[chosen]["active"]
    assert not listed[world.base]["active"]
    assert listed[world.releases[1].name]["state"] == "loaded"
    assert cli_json(world, "activate", "base")["release"] == world.base
    assert world.active() == {world.base}
    assert cli_json(world, "rollback")["release"] == chosen
    assert cli_json(world, "rollback")["release"] == world.base
    assert world.active() == {world.base}
    again = cli_json(world, "activate", "base")
    assert not again["changed"]
    assert "was active already" in cli(world, "activate", "base").stdout
    assert cli_json(world, "activate", chosen)["changed"]
    before = world.store.pointer()
    assert "was active already" in cli(world, "activate", chosen).stdout
    assert world.store.pointer() == before
    # From a release to what was active before it, and not from the base to the base.
    assert cli_json(world, "rollback")["release"] == world.base
    assert "no release was active before" in cli(world, "rollback").stderr
    assert chosen in cli(world, "list").stdout
    missing = cli(world, "activate", "none-00000000")
    assert (missing.returncode, "none-00000000" in missing.stderr) == (1, True)


def test_the_command_publishes(world: World) -> None:
    """Publishing what is there names it; a folder that holds none is refused in words."""
    release = world.releases[0]
    assert cli_json(world, "publish", str(release.folder))["name"] == release.name
    refused = cli(world, "publish", str(release.folder.parent))
    assert refused.returncode == 1
    assert "holds no release" in refused.stderr


def test_the_command_compares(world: World, tmp_path: Path) -> None:
    """`cra releases compare` says of the live index what the two towers' own scores say."""
    names = [world.base, world.releases[0].name]
    k = 5
    best = [
        [[world.refs[n].image_id for n in np.argsort(-row)[:k]] for row in world.expected[name]]
        for name in names
    ]
    right = best[1][0][0]
    file = tmp_path / "queries.jsonl"
    lines = [json.dumps({"text": QUERIES[0], "image_ids": [right]}), "", *QUERIES[1:]]
    file.write_text("\n".join(lines), encoding="utf-8")
    said = cli_json(world, "compare", "base", names[1], "--queries", str(file), "-k", str(k))
    assert said["releases"] == names
    overlaps = [len(set(before) & set(after)) / k for before, after in zip(*best, strict=True)]
    assert [one["overlap"] for one in said["queries"]] == pytest.approx(overlaps)
    assert said["summary"]["overlap"] == pytest.approx(np.mean(overlaps))
    assert said["summary"]["judged"] == 1
    assert said["summary"]["recall"] == [float(right in best[0][0]), 1.0]
    same = cli_json(world, "compare", names[1], names[1], "-q", QUERIES[0])
    assert same["summary"]["overlap"] == same["summary"]["same_first"] == 1.0
    assert same["queries"][0]["movers"] == []
    shown = cli(world, "compare", *names, "-q", QUERIES[0], "--each")
    assert shown.returncode == 0
    assert "overlap@20" in shown.stdout


def test_the_command_refuses_what_does_not_fit(world: World, tmp_path: Path) -> None:
    """A release of another image tower is not activated, and the reason is said."""
    other = make_checkpoint(tmp_path / "other", seed=9)
    foreign = world.store.publish(make_tower_release(tmp_path, other, other, "foreign").folder)
    before = world.store.pointer()
    done = cli(world, "activate", foreign.name)
    assert done.returncode == 1
    assert foreign.manifest.image_tower in done.stderr
    assert world.store.pointer() == before
    assert world.active() == {world.base}
