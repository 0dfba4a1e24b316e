"""`cra doctor`: looks at every part, says what is wrong and how to mend it."""

import json
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import click
from rich.table import Table
from rich.text import Text

from cra.services.cli import checks, embedding_checks, part_checks
from cra.services.cli.findings import Check, Facts, Finding, State
from cra.services.cli.options import as_json
from cra.services.cli.probe import event_path
from cra.shared.console import count, err, examples, out, table
from cra.shared.errors import CraError, FailedPreconditionError
from cra.shared.settings import Settings

CHECKS: Final[dict[str, Check]] = {
    "secrets": checks.secrets,
    "certificates": checks.certificates,
    "clock": checks.clock,
    "object store": part_checks.object_store,
    "Redis": part_checks.broker,
    "embedding": embedding_checks.embedding,
    "gateway": part_checks.gateway,
    "ingest": part_checks.index,
    "workers": checks.workers,
    "events": part_checks.events,
}
"""Asked at once; each names its part in its findings."""
AFTERWARDS: Final[dict[str, Check]] = {
    "Milvus": part_checks.milvus,
    "agreement": part_checks.agreement,
}
"""Asked once the others have said what there is to compare."""

_COLOURS: Final = {
    State.OK: "green",
    State.WARNING: "yellow",
    State.WRONG: "red",
    State.SKIPPED: "dim",
}


@click.command(
    epilog=examples(
        "cra doctor", "cra doctor --probe   # puts a picture and removes it", "cra doctor --json"
    )
)
@click.option(
    "--probe", is_flag=True, help="Put a small picture, wait until it is found, remove it."
)
@as_json
@click.pass_context
def doctor(context: click.Context, probe: bool, as_json: bool) -> None:
    """Look at every part, and say what is wrong and how to mend it.

    Exits with 1 if something is wrong; warnings alone do not count.
    """
    env_file: Path | None = context.find_root().params.get("env_file")
    found = list(examine(env_file, probe))
    wrong = sum(one.state is State.WRONG for one in found)
    if as_json:
        rows = [
            {"part": one.part, "state": one.state.value, "found": one.found, "mend": one.mend}
            for one in found
        ]
        click.echo(json.dumps({"ok": not wrong, "checks": rows}, ensure_ascii=False, indent=2))
    else:
        out.print(_table(found))
        warnings = sum(one.state is State.WARNING for one in found)
        err.print(f"{wrong} wrong, {count(warnings, 'warning')}")
    if wrong:
        sys.exit(1)


def examine(env_file: Path | None, probe: bool) -> Iterator[Finding]:
    """Yield what all checks find, in one order.

    Args:
        env_file: of the settings, beside the environment.
        probe: also put a picture and see it come and go.
    """
    try:
        settings = Settings.load(env_file)
    except FailedPreconditionError as error:
        for problem in error.message.split("; CRA_"):
            yield Finding(
                "settings",
                State.WRONG,
                problem if problem.startswith("CRA_") else f"CRA_{problem}",
                f"change it in the environment{f' or in {env_file}' if env_file else ''}; "
                "README.md, Settings, says what it may be",
            )
        return
    where = f"the environment and {env_file}" if env_file else "the environment alone"
    yield Finding("settings", State.OK, f"read from {where}")
    facts = Facts(probed=probe)
    with ThreadPoolExecutor(len(CHECKS)) as pool:
        running = [
            pool.submit(_run, name, check, settings, facts) for name, check in CHECKS.items()
        ]
        for one in running:
            yield from one.result()
    for name, check in AFTERWARDS.items():
        yield from _run(name, check, settings, facts)
    yield from checks.disk(settings, [env_file.parent] if env_file else [])
    if probe:
        yield from _run("event path", event_path, settings, facts)


def _run(name: str, check: Check, settings: Settings, facts: Facts) -> list[Finding]:
    found: list[Finding] = []
    try:
        found += check(settings, facts)
    except CraError as error:  # one that the check has no word for
        found.append(Finding(name, State.WRONG, error.message, "its log says more"))
    return found


def _table(found: Iterable[Finding]) -> Table:
    shown = table("part", "", "what was found", "how to mend it")
    for one in found:
        state = Text(one.state.value, style=_COLOURS[one.state])
        shown.add_row(one.part, state, one.found, one.mend)
    return shown
