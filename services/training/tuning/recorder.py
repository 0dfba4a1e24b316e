"""The course of a run for TensorBoard."""

from pathlib import Path
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from cra.services.training.tuning.interpolation import Choice
from cra.services.training.tuning.validation import Score


class Recorder:
    """Writes a run's course as TensorBoard reads it; see `run.Listener`. A context.

    Args:
        folder: of the event files.
    """

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder))

    def features(self, split: str, done: int, total: int) -> None:
        """See `run.Listener`; not recorded."""

    def step(self, step: int, total: int, loss: float, rate: float) -> None:
        """See `run.Listener`."""
        self._add("train/loss", loss, step)
        self._add("train/rate", rate, step)

    def validated(self, step: int, score: Score, *, best: bool) -> None:
        """See `run.Listener`."""
        self._add("validation/field", score.field, step)
        if score.general is not None:
            self._add("validation/everyday", score.general, step)
        self._writer.flush()

    def chosen(self, choice: Choice) -> None:
        """See `run.Listener`: a curve over the factor in hundredths."""
        for factor, (field, general) in choice.scores.items():
            self._add("interpolation/field", field, round(100 * factor))
            if general is not None:
                self._add("interpolation/everyday", general, round(100 * factor))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def _add(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)
