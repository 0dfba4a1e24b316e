"""deploy/monitoring names only what there is, and docs/observability.md explains all of it."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml

from cra.shared.settings import Settings
from tests.servers import ROOT
from tests.unit import metrics_table

FOLDER = ROOT / "deploy" / "monitoring"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARDS = {
    file.stem: json.loads(file.read_text())
    for file in sorted((FOLDER / "grafana" / "dashboards").glob("*.json"))
}
DOCS = metrics_table.DOCS.read_text()

KNOWN = {
    sample: {*row.labels, *({"le"} if row.kind == "histogram" else ())}
    for section in metrics_table.rows().values()
    for row in section
    for sample in row.samples
}
KNOWN |= {
    name: set() for name in ("up", "process_resident_memory_bytes", "process_cpu_seconds_total")
}
ADDED = {"job", "instance"}
"""Labels that Prometheus adds."""


def expressions() -> dict[str, str]:
    """Return every PromQL expression, by where it stands."""
    found = {rule["alert"]: rule["expr"] for rule in RULES}
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", "5m")
                found[f"{name}: {panel['title']} {target['refId']}"] = expression
    return found


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for name in ("expr", "lhs", "rhs", "param", "vector_selector", "args"):
        inner = getattr(node, name, None)
        for one in inner if isinstance(inner, list) else [inner]:
            if one is not None:
                yield from _nodes(one)


def problems(expression: str) -> list[str]:
    """Return which metrics and labels of an expression there are not."""
    nodes = list(_nodes(promql_parser.parse(expression)))
    selectors = [node for node in nodes if isinstance(node, promql_parser.VectorSelector)]
    labels: set[str] = set(ADDED)
    found = [f"no metric {one.name}" for one in selectors if one.name not in KNOWN]
    for one in selectors:
        known = KNOWN.get(one.name or "", set())
        labels |= known
        unknown = {matcher.name for matcher in one.matchers.matchers} - known - ADDED
        found += [f"{one.name} has no label {name}" for name in unknown]
    for node in nodes:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            found += [f"no label {name}" for name in set(node.modifier.labels) - labels]
    assert selectors
    return found


def test_the_look_can_find_a_wrong_name() -> None:
    """What checks the expressions sees a metric or label that there is not."""
    assert problems("max(cra_ingest_waitin) > 0") == ["no metric cra_ingest_waitin"]
    assert problems('rate(cra_events_total{outcom="x"}[5m])') == [
        "cra_events_total has no label outcom"
    ]
    assert problems("sum by (kind) (cra_ready)") == ["no label kind"]
    with pytest.raises(ValueError, match="unclosed"):
        problems("sum(cra_ready")


@pytest.mark.parametrize("place", expressions())
def test_an_expression_names_metrics_and_labels_that_exist(place: str) -> None:
    """Each alert and panel asks for what the services show; the e2e tests hold that they do.

    Break: rename a metric in the code.
    """
    assert problems(expressions()[place]) == []


def test_the_tables_of_metrics_are_current() -> None:
    """docs/observability.md lists every metric of the code with its own words.

    Break: change a metric, and do not run `python -m tests.unit.metrics_table`.
    """
    assert metrics_table.written() == metrics_table.tables()


def test_metrics_are_named_as_prometheus_asks_for() -> None:
    """Ours begin with `cra_`; counters end in `_total`, times in `_seconds`."""
    for section in metrics_table.rows().values():
        for row in section:
            assert re.fullmatch("cra_[a-z0-9_]+", row.name)
            assert row.meaning
            assert not re.search("_(ms|milliseconds|minutes|count|sum|bucket)$", row.name)


def test_every_alert_says_what_is_up_and_where_to_read_on() -> None:
    """An alert has a summary, a severity and a runbook, which is there; none is left over.

    Break: rename an alert, and not its heading.
    """
    headings = re.findall("^### (Cra\\w+)$", DOCS, re.MULTILINE)
    assert sorted(rule["alert"] for rule in RULES) == sorted(headings)
    for rule in RULES:
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"]["summary"]
        anchor = f"docs/observability.md#{rule['alert'].lower()}"
        assert rule["annotations"]["runbook"] == anchor


def test_prometheus_asks_every_process_that_shows_metrics() -> None:
    """Each port of metrics among the settings is scraped, at its default.

    Break: a service with metrics that prometheus.yml does not know.
    """
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    scraped = {}
    for job in config["scrape_configs"]:
        (source,) = job["dns_sd_configs"]
        (host,) = source["names"]
        assert job["job_name"] == f"cra-{host}"
        scraped[f"{host}_metrics_port"] = source["port"]
    ports = {
        name: field.default
        for name, field in Settings.model_fields.items()
        if name.endswith("_metrics_port")
    }
    assert scraped == ports
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert {name.removesuffix("_metrics_port") for name in scraped} <= set(compose["services"])


def test_what_compose_mounts_is_there() -> None:
    """Files that Prometheus and Grafana are given exist."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    monitoring = [one for one in services.values() if one.get("profiles") == ["monitoring"]]
    assert len(monitoring) == 3
    for service in monitoring:
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists(), source


def test_panels_have_places_and_the_provisioned_source() -> None:
    """No two panels lie on each other; each asks the data source that is provisioned."""
    for dashboard in DASHBOARDS.values():
        cells = [
            (x, y)
            for panel in dashboard["panels"]
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]
        assert len(cells) == len(set(cells))
        assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {"prometheus"}
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS) > 0


def test_prometheus_takes_the_rules_and_its_configuration() -> None:
    """Its own tool finds nothing wrong."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    for command in (["check", "rules", "alerts.yml"],
                    ["check", "config", "--syntax-only", "prometheus.yml"]):  # fmt: skip
        done = subprocess.run(
            [promtool, *command], cwd=FOLDER, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
