"""`cra status`, `cra failures`, `cra reconcile`: how far the index follows the buckets."""

from collections.abc import Iterable
from typing import Any, Final

import click
import grpc
from google.protobuf.message import Message
from rich.table import Table
from rich.text import Text

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.ingest.v1 import ingest_pb2_grpc as ingest_grpc
from cra.shared import rpc
from cra.shared.console import err, out, print_message, table
from cra.shared.errors import CraError
from cra.shared.settings import Settings

SERVICE: Final = "cra.ingest.v1.IngestService"
_WITHOUT_INDEX: Final = {"objects", "waiting", "failed"}


@click.command()
@click.option("--refresh", is_flag=True, help="Count again now.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def status(settings: Settings, refresh: bool, as_json: bool) -> None:
    """Print how far the index follows the buckets."""
    response = _call(settings, "GetStatus", ingest.GetStatusRequest(refresh=refresh))
    if as_json:
        print_message(response)
        return
    out.print(_counts(response))
    for problem in response.down:
        err.print(Text.assemble(("down", "red"), f": {problem}"))
    if response.last_reconcile.stopped:
        err.print(
            Text.assemble(("reconcile stopped", "red"), f": {response.last_reconcile.stopped}")
        )


@click.command()
@click.option("--retry", is_flag=True, help="Put all of them back in line.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def failures(settings: Settings, retry: bool, as_json: bool) -> None:
    """List the objects that cannot be indexed, and why."""
    if retry:
        response = _call(settings, "RetryFailures", ingest.RetryFailuresRequest(all=True))
        print_message(response) if as_json else out.print(f"{response.retried} put back in line")
        return
    found: list[ingest.Failure] = []
    request = ingest.ListFailuresRequest(page_size=1000)
    while True:
        page = _call(settings, "ListFailures", request)
        found += page.failures
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    if as_json:
        print_message(ingest.ListFailuresResponse(failures=found))
        return
    out.print(_failures(found))


@click.command()
@click.option("--dry-run", is_flag=True, help="Only report what differs.")
@click.option(
    "--allow-mass-deletion", is_flag=True, help="Remove orphaned vectors however many there are."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def reconcile(settings: Settings, dry_run: bool, allow_mass_deletion: bool, as_json: bool) -> None:
    """Compare buckets and index, and put in line what differs."""
    request = ingest.ReconcileRequest(dry_run=dry_run, allow_mass_deletion=allow_mass_deletion)
    last = ingest.ReconcileResponse()
    try:
        for last in _ingest(settings).Reconcile(request):
            if not last.done and not as_json:
                err.print(f"{last.summary.objects} objects compared")
    except grpc.RpcError as error:
        raise _problem(error, settings) from error
    if as_json:
        print_message(last)
        return
    summary = last.summary
    if dry_run:
        done = " (nothing changed)"
    elif summary.missing or summary.stale or summary.orphaned:
        done = ", all put in line"
    else:
        done = ": nothing to put in line"
    out.print(
        f"{summary.objects} objects: {summary.missing} missing, {summary.stale} stale, "
        f"{summary.orphaned} orphaned{done}"
    )


def _counts(response: ingest.GetStatusResponse) -> Table:
    shown = table("", "")
    shown.show_header = False
    known = _WITHOUT_INDEX | {field.name for field, _ in response.ListFields()}
    for name in ("objects", "indexed", "waiting", "failed", "unaccounted", "stale", "orphaned"):
        shown.add_row(name, str(getattr(response, name)) if name in known else "unknown")
    shown.add_row("rate", f"{response.rate:.1f}/s")
    shown.add_row("image_tower", response.image_tower or "unknown")
    finished = response.last_reconcile.finished_at
    shown.add_row("last reconcile", finished.ToJsonString() if finished.seconds else "never")
    shown.add_row("as of", response.as_of.ToJsonString())
    return shown


def _failures(found: Iterable[ingest.Failure]) -> Table:
    shown = table("image", "reason", "message", "failed at")
    for failure in found:
        shown.add_row(
            failure.image_id, failure.reason, failure.message, failure.failed_at.ToJsonString()
        )
    return shown


def _ingest(settings: Settings) -> ingest_grpc.IngestServiceStub:
    channel = rpc.open_channel(
        settings.ingest_target,
        SERVICE,
        settings.service_token.get_secret_value(),
        settings.client_tls,
    )
    return ingest_grpc.IngestServiceStub(channel)


def _problem(error: grpc.RpcError, settings: Settings) -> CraError:
    return rpc.from_rpc_error(error, f"the ingest service at {settings.ingest_target}")


def _call(settings: Settings, method: str, request: Message) -> Any:
    try:
        return getattr(_ingest(settings), method)(request, timeout=60)
    except grpc.RpcError as error:
        raise _problem(error, settings) from error
