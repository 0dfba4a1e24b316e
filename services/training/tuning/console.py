"""What a run shows in a terminal: bars while it works, and a table of its validations."""

from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from cra.services.training.tuning.interpolation import Choice
from cra.services.training.tuning.validation import Score

_SMOOTHING: Final = 0.95


class ConsoleListener:
    """Prints how a run goes; see `run.Listener`. Without a terminal, lines take the bars' place.

    A context: what it shows stands still at its end.

    Args:
        console: to print on.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._table = Table("step", "captions of the field", "everyday captions", "")
        self._live = Live(Group(self._bars, self._table), console=console, refresh_per_second=4)
        self._loss: float | None = None

    def features(self, split: str, done: int, total: int) -> None:
        """See `run.Listener`."""
        self._advance(f"features of {split}", done, total)

    def step(self, step: int, total: int, loss: float, rate: float) -> None:
        """See `run.Listener`."""
        if self._loss is None:
            self._loss = loss
        self._loss = _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        self._advance("steps", step, total, f"steps, loss {self._loss:.3f}, rate {rate:.1e}")

    def validated(self, step: int, score: Score, *, best: bool) -> None:
        """See `run.Listener`."""
        general = "" if score.general is None else f"{100 * score.general:.1f} %"
        row = (str(step), f"{100 * score.field:.1f} %", general, "best so far" if best else "")
        self._table.add_row(*row)
        if not self._console.is_terminal:
            self._console.print(f"step {row[0]}: field {row[1]}, everyday {row[2]} {row[3]}")

    def chosen(self, choice: Choice) -> None:
        """See `run.Listener`."""
        self._console.print(f"interpolation: {choice.factor:g} of the way from base to tuned")

    def _advance(self, name: str, done: int, total: int, description: str = "") -> None:
        if not self._console.is_terminal:
            return
        self._live.start()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done, description=description or name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
