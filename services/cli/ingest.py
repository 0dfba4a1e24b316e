"""`cra status`, `cra failures`, `cra reconcile`: how far the index follows the buckets."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import click
import grpc
from google.protobuf.message import Message
from rich.table import Table
from rich.text import Text

from cra.ingest.v1 import ingest_pb2 as ingest
from cra.ingest.v1 import ingest_pb2_grpc as ingest_grpc
from cra.services.cli.options import as_json
from cra.shared import rpc
from cra.shared.console import count, err, examples, out, print_message, table
from cra.shared.errors import CraError, UnavailableError
from cra.shared.settings import Settings

SERVICE: Final = "cra.ingest.v1.IngestService"
WAIT_PAUSE: Final = 1.0
"""Seconds between two counts while somebody waits for the index."""
SILENCE: Final = 30.0
"""Seconds for which ingest may not answer them; it restarts in a few."""
_WITHOUT_INDEX: Final = {"objects", "waiting", "failed"}


@click.command(epilog=examples("cra status", "cra status --refresh --json"))
@click.option("--refresh", is_flag=True, help="Count again now.")
@as_json
@click.pass_obj
def status(settings: Settings, refresh: bool, as_json: bool) -> None:
    """Print how far the index follows the buckets."""
    response = call_ingest(settings, "GetStatus", ingest.GetStatusRequest(refresh=refresh))
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


@click.command(epilog=examples("cra failures", "cra failures --retry"))
@click.option("--retry", is_flag=True, help="Put all of them back in line.")
@as_json
@click.pass_obj
def failures(settings: Settings, retry: bool, as_json: bool) -> None:
    """List the objects that cannot be indexed, and why."""
    if retry:
        response = call_ingest(settings, "RetryFailures", ingest.RetryFailuresRequest(all=True))
        print_message(response) if as_json else out.print(f"{response.retried} put back in line")
        return
    found = list_failures(settings)
    if as_json:
        print_message(ingest.ListFailuresResponse(failures=found))
        return
    out.print(_failures(found))


@click.command(
    epilog=examples(
        "cra reconcile --dry-run", "cra reconcile", "cra reconcile --allow-mass-deletion"
    )
)
@click.option("--dry-run", is_flag=True, help="Only report what differs.")
@click.option(
    "--allow-mass-deletion", is_flag=True, help="Remove orphaned vectors however many there are."
)
@as_json
@click.pass_obj
def reconcile(settings: Settings, dry_run: bool, allow_mass_deletion: bool, as_json: bool) -> None:
    """Compare buckets and index, and put in line what differs."""
    request = ingest.ReconcileRequest(dry_run=dry_run, allow_mass_deletion=allow_mass_deletion)
    last = ingest.ReconcileResponse()
    try:
        for last in _ingest(settings).Reconcile(request):
            if not last.done and not as_json:
                err.print(f"{count(last.summary.objects, 'object')} compared")
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
        f"{count(summary.objects, 'object')}: {summary.missing} missing, {summary.stale} stale, "
        f"{summary.orphaned} orphaned{done}"
    )


def list_failures(settings: Settings) -> list[ingest.Failure]:
    """Return everything on the failure list.

    Raises:
        CraError: the ingest service does not answer, or refuses.
    """
    found: list[ingest.Failure] = []
    request = ingest.ListFailuresRequest(page_size=1000)
    while True:
        page = call_ingest(settings, "ListFailures", request)
        found += page.failures
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def wait_indexed(settings: Settings, progress: Callable[[int, int], None]) -> list[ingest.Failure]:
    """Return the failure list once every object is indexed or on it.

    Args:
        settings: where ingest is.
        progress: called now and then with the objects that are done, and all.

    Raises:
        CraError: the ingest service does not answer, for longer than a restart takes.
    """
    pause = threading.Event()
    silent_since: float | None = None
    while True:
        try:
            status = call_ingest(settings, "GetStatus", ingest.GetStatusRequest(refresh=True))
            progress(status.indexed + status.failed, status.objects)
            left = status.waiting + status.unaccounted + status.stale
            if not left and not status.down and status.indexed + status.failed >= status.objects:
                return list_failures(settings)
            silent_since = None
        except UnavailableError as error:
            now = time.monotonic()
            if silent_since is None:
                silent_since = now
                err.print(f"{error.message}; it is asked for {SILENCE:g} s more", soft_wrap=True)
            elif now - silent_since > SILENCE:
                raise
        pause.wait(WAIT_PAUSE)


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


def call_ingest(settings: Settings, method: str, request: Message) -> Any:
    """Call a method of ingest.

    Raises:
        CraError: it does not answer, or refuses.
    """
    try:
        return getattr(_ingest(settings), method)(request, timeout=60)
    except grpc.RpcError as error:
        raise _problem(error, settings) from error
