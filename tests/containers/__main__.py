"""Builds every image, brings compose up with a real Docker engine, and checks it from outside.

Where no registry of images answers, other people's images are replaced by stand-ins of packages,
and SeaweedFS takes MinIO's place. All of it runs with docker-compose, then with `docker compose`,
whichever are there. Writes docs/containers.md. Exits with 1 if something does not
hold, and if there is no Docker engine: then nothing was checked.
"""

import argparse
import json
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.bench.measure import machine
from tests.containers import checks, monitoring, report
from tests.containers.checks import Row
from tests.containers.engine import (
    COMPOSES,
    Compose,
    NoEngineError,
    docker,
    find_composes,
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
PROJECT: Final = "cra-containers"
PORTS: Final = [
    f"CRA_{name}_PORT"
    for name in ("GATEWAY", "INGEST", "WEB", "S3", "PROMETHEUS", "GRAFANA", "JAEGER")
]


def main() -> None:
    """Build, run, check, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.containers", description=__doc__)
    parser.add_argument("--cached", action="store_true", help="take first builds from the cache")
    parser.add_argument("--compose", choices=COMPOSES, help="only this one of those there are")
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    try:
        version = find_engine()
        composes = find_composes([options.compose] if options.compose else COMPOSES)
    except NoEngineError as error:
        sys.exit(f"NOTHING WAS CHECKED: {error}")
    stood_in, images = _build(anew=not options.cached)
    about = {
        "engine": f"Docker {version}",
        "compose": " and ".join(f"`{one}` {number}" for one, number in composes.items()),
        "other people's images": (
            "stand-ins of Debian's and PyPI's packages; SeaweedFS in MinIO's place, rotel in "
            "Jaeger's; Grafana was not run"
            if stood_in
            else "their own"
        ),
        **{name: machine()[name] for name in ("date", "processor", "cores")},
    }
    rows = [_said(row) for row in _fit(images)]
    runs = {f"`{one}` {number}": run(one, stood_in=stood_in) for one, number in composes.items()}
    report.write(options.out, about, images, rows, runs)
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


def _fit(images: Sequence[Image]) -> Iterator[Row]:
    yield checks.images_are_small(images)
    yield checks.images_hold_what_they_need()
    yield checks.training_works()


def run(command: str, *, stood_in: bool) -> report.Run:
    """Bring the stack up with one command of compose, check it, take it down."""
    print(command, flush=True)  # noqa: T201
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    profiles, none = (["seaweedfs"], ["s3"]) if stood_in else ([], [])
    compose = Compose(command, PROJECT, ports, profiles, dict.fromkeys(none, 0))
    # Grafana has no stand-in.
    watched = Compose(
        command,
        PROJECT,
        {**ports, "CRA_OTLP_ENDPOINT": "http://jaeger:4318"},
        [*profiles, "monitoring"],
        dict.fromkeys([*none, "grafana"] if stood_in else none, 0),
    )
    watched.down()  # left over from a run that was killed
    try:
        up, starts = checks.start(compose)
        print(f"up after {up:.0f} s", flush=True)  # noqa: T201
        stack = Stack(checks.environment(compose, ports))
        rows = [_said(row) for row in _works(compose, stack, ports)]
        memory = _memory(compose)
        rows += [_said(row) for row in _is_watched(compose, watched, stack, ports, stood_in)]
    except BaseException:
        print(compose.run("logs", "--tail=40"))  # noqa: T201
        raise
    finally:
        watched.down()
    return report.Run(up, starts, memory, rows)


def _works(compose: Compose, stack: Stack, ports: Mapping[str, str]) -> Iterator[Row]:
    yield checks.is_closed(compose)
    yield checks.demo(stack.env)
    yield checks.embedding_shares(compose, stack.settings)
    yield checks.embedding_dies(compose, stack.settings)
    yield checks.workers_share(compose, stack)
    for service, works in {
        "gateway": lambda: bool(stack.search.search("塔", top_k=1).hits),
        "ingest": stack.settled,
        "worker": stack.settled,
        "redis": stack.settled,
        "web": lambda: _page_searches(ports["CRA_WEB_PORT"]),
    }.items():
        yield checks.heals(compose, service, works)
    wait_until(lambda: checks.all_up(compose), "every container is healthy again", 120, every=1)


def _is_watched(
    compose: Compose, watched: Compose, stack: Stack, ports: Mapping[str, str], stood_in: bool
) -> Iterator[Row]:
    yield monitoring.is_quiet(compose)
    watched.up(**compose.scale)
    wait_until(lambda: checks.all_up(watched), "it is healthy with monitoring", 240, every=1)
    yield monitoring.is_scraped(watched, ports["CRA_PROMETHEUS_PORT"])
    yield monitoring.rules_hold(ports["CRA_PROMETHEUS_PORT"])
    web, jaeger = ports["CRA_WEB_PORT"], ports["CRA_JAEGER_PORT"]
    yield monitoring.traces_arrive(watched, stack, web, jaeger, stood_in=stood_in)


def _said(row: Row) -> Row:
    print(f"{row.claim}: {row.seen}", flush=True)  # noqa: T201
    return row


def _page_searches(port: str) -> bool:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/search",
        json.dumps({"text": "塔", "top_k": 1}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310  our own
        return bool(json.load(answer)["hits"])


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
