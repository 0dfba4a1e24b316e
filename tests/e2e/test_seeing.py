"""What operators see of a running stack: metrics, traces and ids in logs."""

import re
import time
from collections import defaultdict
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.search.v1 import search_pb2 as pb
from cra.services.cli.traces import Span, by_trace, read_spans
from tests.e2e.test_stack import photograph
from tests.servers import wait_until
from tests.stack import Stack
from tests.unit.metrics_table import rows

TEXT = "雪后的庑殿顶"
"""A query that is asked nowhere else."""


def _value(stack: Stack, page: str, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(stack.metrics()[page])
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.fixture(scope="module")
def used(stack: Stack) -> Stack:
    """The stack after it has indexed a picture, failed at one, searched and reconciled."""
    stack.put("seen/gate.jpg", photograph(71))
    stack.put("seen/bad.jpg", b"this is text")
    stack.follows(photograph(71), "seen/gate.jpg")
    assert stack.cra("search", TEXT).returncode == 0
    wait_until(stack.settled, "nothing is under way", 60)
    list(stack.ingest.Reconcile(ingest.ReconcileRequest()))
    return stack


def test_every_documented_metric_is_there_and_no_other(used: Stack) -> None:
    """docs/observability.md lists exactly what the running services show, with its labels.

    Break: register a metric that the docs do not list, or add a label to one.
    """
    documented = {row.name: row for section in rows().values() for row in section}

    def shown() -> dict[str, set[frozenset[str]]]:
        found: dict[str, set[frozenset[str]]] = defaultdict(set)
        for page in used.metrics().values():
            for family in text_string_to_metric_families(page):
                if family.name.startswith("cra_"):
                    _note(found, family)
        return found

    wait_until(lambda: set(shown()) == set(documented), "all are there", 30)
    for name, labels in shown().items():
        assert labels == {frozenset(documented[name].labels)}, name


def _note(found: dict[str, set[frozenset[str]]], family: Metric) -> None:
    for sample in family.samples:
        if sample.name.endswith("_created"):
            continue
        name = family.name if family.type == "histogram" else sample.name
        found[name].add(frozenset(set(sample.labels) - {"le"}))


def test_metrics_count_what_was_done(used: Stack) -> None:
    """A search, an indexed image and a failure each move the figures that tell of them.

    Break: drop the `inc` of any of these.
    """
    calls = {"service": "cra.search.v1.SearchService", "method": "Search", "code": "OK"}
    before = _value(used, "gateway_metrics_port", "cra_grpc_server_calls_total", **calls)
    used.search.search("红墙")
    after = _value(used, "gateway_metrics_port", "cra_grpc_server_calls_total", **calls)
    assert after == before + 1
    assert _value(used, "gateway_metrics_port", "cra_ready", service=calls["service"]) == 1
    for stage in ("queue", "encode", "search", "total"):
        name = "cra_search_stage_seconds_count"
        assert _value(used, "gateway_metrics_port", name, stage=stage) > 0
    for tower in ("text", "image"):
        name = "cra_tower_encode_seconds_count"
        assert _value(used, "embedding_metrics_port", name, tower=tower) > 0
    worker = "worker_metrics_port"
    for stage in ("look", "download", "decode", "embed", "upsert"):
        assert _value(used, worker, "cra_ingest_stage_seconds_count", stage=stage) > 0
    assert _value(used, worker, "cra_ingest_failures_total", reason="not_an_image") > 0
    assert _value(used, worker, "cra_ingest_lag_seconds_count") > 0
    page = "ingest_metrics_port"
    assert _value(used, page, "cra_events_total", outcome="accepted") > 0
    status = used.status()
    assert _value(used, page, "cra_ingest_objects") == status.objects
    assert _value(used, page, "cra_ingest_indexed") == status.indexed
    assert _value(used, page, "cra_ingest_failed") == status.failed


def _traces(stack: Stack) -> list[list[Span]]:
    with Path(stack.settings.trace_file).open(encoding="utf-8") as lines:
        return list(by_trace(read_spans(lines)).values())


def _chain(spans: list[Span], name: str) -> list[str]:
    """Return a span of a trace and those around it, the outermost first, as `service: name`."""
    by_id = {span.span_id: span for span in spans}
    span: Span | None = next((one for one in spans if one.name == name), None)
    found = []
    while span is not None:
        found.append(f"{span.service}: {span.name}")
        span = by_id.get(span.parent_id)
    return found[::-1]


def _whole(spans: list[Span]) -> bool:
    """Tell whether all that these spans are inside of is written: that ends, and comes, later."""
    ids = {span.span_id for span in spans}
    return all(span.parent_id in ids for span in spans if span.parent_id)


def test_one_trace_follows_an_image_through_all_services(used: Stack) -> None:
    """From the event over the line in Redis and the Celery task into the tower's process, and back.

    Break: do not store the traceparent in `Ledger.add`, or drop the header of the Celery task.
    """
    used.put("seen/followed.jpg", photograph(72))
    used.follows(photograph(72), "seen/followed.jpg")

    def found() -> list[Span]:
        return next(
            (spans for spans in _traces(used)
             if any(span.attributes.get("cra.object") == "images/seen/followed.jpg"
                    for span in spans)), [])  # fmt: skip

    def whole() -> bool:
        services = {span.service for span in found()}
        return {"ingest", "worker", "embedding", "image-tower"} <= services and {
            "POST /events", "wait in line", "sync", "look"
        } <= {span.name for span in found()} and _whole(found())  # fmt: skip

    wait_until(whole, "the trace is whole")
    spans = found()
    inside = _chain(spans, "encode_images")
    assert inside[0] == "ingest: POST /events"
    assert inside[-6:] == [
        "worker: sync",
        "worker: embed",
        "worker: cra.embedding.v1.EmbeddingService/EmbedImages",
        "embedding: cra.embedding.v1.EmbeddingService/EmbedImages",
        "embedding: image batch",
        "image-tower: encode_images",
    ]
    for stage in ("download", "decode", "upsert", "look"):
        assert _chain(spans, stage)[-2:] == ["worker: sync", f"worker: {stage}"]
    shown = used.cra("trace", "seen/followed.jpg").stdout
    assert re.search(r"encode_images +image-tower +[\d.]+ ms", shown)


def test_one_trace_follows_a_query_through_all_services(used: Stack) -> None:
    """From `cra search` into the text tower's process and to Milvus; its text is nowhere in it.

    Break: do not send `traceparent` with calls, or over the pipe of the tower's process.
    """

    def found() -> list[Span]:
        return next((s for s in _traces(used) if "encode_texts" in {one.name for one in s}
                     and s[0].name == "cra search"), [])  # fmt: skip

    wait_until(lambda: bool(found()) and _whole(found()), "the trace is whole")
    spans = found()
    search, embed = "cra.search.v1.SearchService/Search", "cra.embedding.v1.EmbeddingService"
    assert _chain(spans, "encode_texts") == [
        "cra: cra search",
        f"cra: {search}",
        f"gateway: {search}",
        f"gateway: {embed}/EmbedTexts",
        f"embedding: {embed}/EmbedTexts",
        "embedding: text batch",
        "text-tower: encode_texts",
    ]
    assert _chain(spans, "milvus search")[-1] == "gateway: milvus search"
    assert TEXT not in Path(used.settings.trace_file).read_text(encoding="utf-8")
    assert "\\u96ea" not in Path(used.settings.trace_file).read_text(encoding="utf-8")


def test_checks_of_readiness_are_not_traced(used: Stack) -> None:
    """A trace is of something that somebody asked for.

    Break: no `tracing.mute` in `Server._watch`.
    """
    began = time.time()
    models = {"service": "cra.embedding.v1.EmbeddingService", "method": "ListModels"}

    def asked() -> float:
        return _value(used, "embedding_metrics_port", "cra_grpc_server_calls_total", **models)

    before = asked()
    wait_until(lambda: asked() >= before + 3, "embedding is asked for its models", 60)
    # Spans are written in their order: with one that is there, those before it are.
    mark = time.time()
    assert used.cra("search", f"檐角第 {mark} 号").returncode == 0

    def since(when: float) -> list[Span]:
        return [span for trace in _traces(used) for span in trace if span.began >= when]

    wait_until(
        lambda: any(s.service == "embedding" and "EmbedTexts" in s.name for s in since(mark)),
        "the search is written",
    )
    # A parent may be written after its children, so those that have none.
    assert not {s.name for s in since(began) if not s.parent_id and s.name.endswith("ListModels")}


def test_log_lines_of_one_query_carry_the_same_ids(used: Stack) -> None:
    """Gateway and embedding service log the caller's request id and one trace id.

    Break: take `tracing.ids` out of the logs' processors.
    """
    request = pb.SearchRequest(text="月下的盝顶", request_id="seen-0123456789")
    used.search.call(request)

    def ids(service: str) -> set[str]:
        log = Path(used.env["CRA_DATA_DIR"]) / "logs" / f"{service}.log"
        lines = [line for line in log.read_text().splitlines() if request.request_id in line]
        return {match[1] for line in lines if (match := re.search(r"trace_id=(\w{32})", line))}

    wait_until(lambda: bool(ids("gateway")), "the gateway's lines are there")
    wait_until(lambda: bool(ids("embedding")), "the embedding service's lines are there")
    assert len(ids("gateway")) == 1
    assert ids("gateway") == ids("embedding")
