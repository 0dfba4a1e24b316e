"""The profile `monitoring`, asked from outside: what Prometheus scrapes, and where traces go."""

import json
import re
import urllib.request
from collections import Counter, defaultdict
from typing import Any, Final

import yaml

from tests.containers.checks import Row
from tests.containers.engine import Compose, docker
from tests.photos import photograph
from tests.servers import ROOT, wait_until
from tests.stack import Stack

SCRAPED: Final = ("gateway", "embedding", "ingest", "worker", "web")
SEEN_WITHIN: Final = 90.0
"""Seconds: Prometheus asks DNS every 15, scrapes every 15, and looks at its rules every 15."""

QUERY: Final = {"web", "gateway", "embedding"}
IMAGE: Final = {"ingest", "worker", "embedding"}
"""What one query, and one image, goes through."""


def is_quiet(compose: Compose) -> Row:
    """Where no traces are asked for, none are missed."""
    said = compose.run("logs", "--no-color")
    assert not re.search("opentelemetry|otlp", said, re.IGNORECASE)
    return Row("without the profile `monitoring` no log misses a trace store", "not a line")


def is_scraped(compose: Compose, port: str) -> Row:
    """Prometheus finds and scrapes each replica of each service that has metrics."""
    wanted = {f"cra-{name}": len(compose.containers(name)) for name in SCRAPED}

    def up() -> bool:
        targets = _ask(port, "/api/v1/targets")["data"]["activeTargets"]
        jobs = Counter(one["labels"]["job"] for one in targets if one["health"] == "up")
        return jobs == wanted and len(targets) == sum(wanted.values())

    wait_until(up, f"all up: {wanted}", SEEN_WITHIN, every=1.0)
    counts = ", ".join(f"{name.removeprefix('cra-')} {count}" for name, count in wanted.items())
    return Row("Prometheus scrapes each replica of every service", counts)


def rules_hold(port: str) -> Row:
    """Prometheus has every alert rule and can tell whether it holds."""
    file = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yml").read_text())
    wanted = sorted(rule["alert"] for group in file["groups"] for rule in group["rules"])

    def told() -> bool:
        groups = _ask(port, "/api/v1/rules")["data"]["groups"]
        fine = [one["name"] for group in groups for one in group["rules"] if one["health"] == "ok"]
        return sorted(fine) == wanted

    wait_until(told, "every rule is evaluated", SEEN_WITHIN, every=1.0)
    return Row("its alert rules load and are evaluated", f"{len(wanted)} of them")


def traces_arrive(compose: Compose, stack: Stack, web: str, jaeger: str, *, stood_in: bool) -> Row:
    """A query, and an image that is put, are each one trace through all services on their way."""
    _ask(web, "/api/search", {"text": "有飞檐的塔", "top_k": 1})
    stack.put("traced/塔.jpg", photograph(1234))

    def told() -> bool:
        traces = _logged(compose) if stood_in else _kept(jaeger)
        return all(any(way <= trace for trace in traces) for way in (QUERY, IMAGE))

    wait_until(told, "traces of a query and an image", SEEN_WITHIN, every=1.0)
    ways = "; ".join(", ".join(sorted(way)) for way in (QUERY, IMAGE))
    return Row("traces of a query and of an image reach the trace store", ways)


def _logged(compose: Compose) -> list[set[str]]:
    """Return the services of each trace that Jaeger's stand-in has logged."""
    (store,) = compose.containers("jaeger")
    found = defaultdict(set)
    service = ""
    for line in docker("logs", store).splitlines():
        if resource := re.search(r"-> service\.name: Str\((.+)\)", line):
            service = resource[1]
        elif span := re.search(r"Trace ID +: (\w+)", line):
            found[span[1]].add(service)
    return list(found.values())


def _kept(port: str) -> list[set[str]]:
    """Return the services of each of Jaeger's last traces."""
    return [
        {process["serviceName"] for process in trace["processes"].values()}
        for service in ("web", "ingest")
        for trace in _ask(port, f"/api/traces?service={service}&limit=100")["data"]
    ]


def _ask(port: str, path: str, body: object = None) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310  our own
        return json.load(answer)
