"""Builds every image, brings compose up with a real Docker engine, and checks it from outside.

Where no registry of images answers, other people's images are replaced by stand-ins of packages,
and SeaweedFS takes MinIO's place. Writes docs/containers.md. Exits with 1 if something does not
hold, and if there is no Docker engine: then nothing was checked.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.bench.measure import machine
from tests.containers import checks, report
from tests.containers.engine import (
    Compose,
    NoEngineError,
    docker,
    find_compose,
    find_engine,
    inspect,
    service_of,
)
from tests.containers.images import (
    Image,
    build_all,
    make_stand_ins,
    python_image,
    registry_answers,
)
from tests.containers.index import package_index
from tests.servers import ROOT, free_ports, wait_until
from tests.stack import Stack

DOCS: Final = ROOT / "docs" / "containers.md"
PORTS: Final = ("CRA_GATEWAY_PORT", "CRA_INGEST_PORT", "CRA_WEB_PORT", "CRA_S3_PORT")


def main() -> None:
    """Build, run, check, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.containers", description=__doc__)
    parser.add_argument("--cached", action="store_true", help="take first builds from the cache")
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    try:
        version = find_engine()
        command = find_compose()
    except NoEngineError as error:
        sys.exit(f"NOTHING WAS CHECKED: {error}")
    stood_in, images = _build(anew=not options.cached)
    about = {
        "engine": f"Docker {version}",
        "compose": f"`{' '.join(command)}` {_version(command)}",
        "other people's images": (
            "stand-ins of Debian's and PyPI's packages; SeaweedFS in MinIO's place"
            if stood_in
            else "their own"
        ),
        **{name: machine()[name] for name in ("date", "processor", "cores")},
    }
    run(command, about, images, options.out, seaweedfs=stood_in)
    print(options.out.read_text())  # noqa: T201


def _build(*, anew: bool) -> tuple[bool, list[Image]]:
    with (
        tempfile.TemporaryDirectory(prefix="cra-index-") as folder,
        package_index(Path(folder)) as arguments,
    ):
        stood_in = not registry_answers()
        if stood_in:
            print("no registry of images answers: stand-ins are built", flush=True)  # noqa: T201
            make_stand_ins(arguments)
            arguments["PYTHON_IMAGE"] = python_image()
        return stood_in, build_all(arguments, anew=anew)


def run(
    command: list[str], about: Mapping[str, str], images: list[Image], out: Path, *, seaweedfs: bool
) -> None:
    """Bring the stack up, check it, take it down, write the page."""
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    compose = Compose(
        command,
        "cra-containers",
        ports,
        ["seaweedfs"] if seaweedfs else [],
        {"s3": 0} if seaweedfs else {},
    )
    compose.down()  # left over from a run that was killed
    rows = [checks.images_hold_what_they_need(), checks.training_works()]
    try:
        up, starts = checks.start(compose)
        print(f"up after {up:.0f} s", flush=True)  # noqa: T201
        env = checks.environment(compose, ports)
        stack = Stack(env)
        rows.append(checks.is_closed(compose))
        rows.append(checks.demo(env))
        rows.append(checks.embedding_shares(compose, stack.settings))
        rows.append(checks.embedding_dies(compose, stack.settings))
        rows.append(checks.workers_share(compose, stack))
        for service, works in {
            "gateway": lambda: bool(stack.search.search("塔", top_k=1).hits),
            "ingest": stack.settled,
            "worker": stack.settled,
            "redis": stack.settled,
            "web": lambda: _page_searches(ports["CRA_WEB_PORT"]),
        }.items():
            rows.append(checks.heals(compose, service, works))
        wait_until(lambda: checks.all_up(compose), "every container is healthy again", 120, every=1)
        memory = _memory(compose)
    except BaseException:
        print(compose.run("logs", "--tail=40"))  # noqa: T201
        raise
    finally:
        compose.down()
    report.write(out, about, images, up, starts, memory, rows)


def _page_searches(port: str) -> bool:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/search",
        json.dumps({"text": "塔", "top_k": 1}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310  our own
        return bool(json.load(answer)["hits"])


def _version(command: list[str]) -> str:
    said = subprocess.run(
        [*command, "version", "--short"], capture_output=True, text=True, check=True
    )
    return said.stdout.strip()


def _memory(compose: Compose) -> dict[str, str]:
    """Return the memory of each service's first container, and how many there are."""
    found = {}
    for one in compose.containers():
        used = docker("stats", "--no-stream", "--format={{.MemUsage}}", one).partition(" / ")
        if used[0] != "0B":
            found[service_of(inspect(one))] = f"{used[0]} of {used[2]}"
    return found


if __name__ == "__main__":
    main()
