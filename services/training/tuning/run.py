"""A run of tuning from data to weights: features, steps, validation, early stop, interpolation."""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import distributed

from cra.services.training import features
from cra.services.training.data.dataset import DataSet, Problem
from cra.services.training.features import Features
from cra.services.training.tuning.captions import Captions
from cra.services.training.tuning.interpolation import Choice, choose, interpolate
from cra.services.training.tuning.pairs import Pairs
from cra.services.training.tuning.settings import TuningSettings
from cra.services.training.tuning.start import Start, merged, start
from cra.services.training.tuning.trainer import Kept, Trainer
from cra.services.training.tuning.validation import Score, Validation
from cra.shared.model.checkpoints import ModelSource
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.pixels import BadImageError
from cra.shared.model.text_tower import TextModel, TextTower

STATE: Final = "state.pt"


class Listener(Protocol):
    """Hears how a run goes."""

    def features(self, split: str, done: int, total: int) -> None:
        """So many features of a split are there."""
        ...

    def step(self, step: int, total: int, loss: float, rate: float) -> None:
        """A step was done."""
        ...

    def validated(self, step: int, score: Score, *, best: bool) -> None:
        """The tower was measured; at step 0 it is the base."""
        ...

    def chosen(self, choice: Choice) -> None:
        """The weights were interpolated."""
        ...


class Several:
    """Passes what it hears on to several listeners; see `Listener`."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def features(self, split: str, done: int, total: int) -> None:
        """See `Listener`."""
        for one in self._listeners:
            one.features(split, done, total)

    def step(self, step: int, total: int, loss: float, rate: float) -> None:
        """See `Listener`."""
        for one in self._listeners:
            one.step(step, total, loss, rate)

    def validated(self, step: int, score: Score, *, best: bool) -> None:
        """See `Listener`."""
        for one in self._listeners:
            one.validated(step, score, best=best)

    def chosen(self, choice: Choice) -> None:
        """See `Listener`."""
        for one in self._listeners:
            one.chosen(choice)


@dataclass(frozen=True)
class Tuned:
    """What a run ends with."""

    model: TextModel
    """fp32, in eval mode, on CPU; of the same shapes as `start.config`."""
    start: Start
    train: DataSet
    """What was learnt, without what was left out."""
    image_tower: str
    """Fingerprint of the tower that it was tuned against."""
    base: str
    """Release that it started from."""
    steps: int
    """Taken until the best validation."""
    factor: float
    """Of the interpolation: 1 is the tuned tower alone."""
    before: Score
    """The base's, on validation."""
    after: Score


def tune(
    source: ModelSource,
    train: DataSet,
    validation: DataSet,
    settings: TuningSettings,
    *,
    work: Path,
    cache: Path,
    listener: Listener,
    device: str = "cpu",
    snapshot_steps: int = 100,
    left_out: Callable[[Problem], None] | None = None,
) -> Tuned:
    """Tune a text tower; a run that was interrupted goes on where it was.

    Args:
        source: base model: its image tower stays as it is, its text tower is where tuning starts.
        train: what to learn.
        validation: other groups, to choose by.
        settings: hyperparameters.
        work: folder of this run's state.
        cache: folder of all towers' image features.
        listener: hears how it goes.
        device: `cpu`, `cuda` or `cuda:N`.
        snapshot_steps: between two states on disk.
        left_out: called with each image that cannot be decoded, which then takes no part; without
            it the first one ends the run.

    Raises:
        ValueError: there is no caption, or `work` holds the state of another run.
        FloatingPointError: the loss is not finite.
        FailedPreconditionError: the base model does not load.
        BadImageError: an image cannot be decoded, and `left_out` is not given.
    """
    tower = ImageTower(source, device)
    train, train_vnd = _read(train, "train", tower, cache, settings.views, listener, left_out)
    validation, valid_vnd = _read(validation, "validation", tower, cache, 1, listener, left_out)
    begun = start(source, (text for _, text in train.pairs()), settings)
    base = TextTower(source, device)
    trainer = Trainer(
        begun.model,
        Pairs(train, train_vnd, begun.tokenizer, settings.context_length),
        settings,
        device,
        _kept(train, begun, base, cache),
    )
    first = merged(begun.model, begun.config)
    check = Validation(validation, valid_vnd[0], begun.tokenizer, settings.valid_k)
    run = _Run(
        trainer,
        begun,
        check,
        settings,
        listener,
        device,
        work,
        _identity(base, train, validation),
    )
    run.resume(check.score(first, device))
    run.go(snapshot_steps)
    first.cpu()
    best = copy.deepcopy(first)
    best.load_state_dict(run.best)
    factor, after = 1.0, run.best_score
    if settings.wise_ft:
        known = {0.0: run.before, 1.0: run.best_score}
        choice = _interpolated(first, best, check, settings, device, known)
        listener.chosen(choice)
        factor = choice.factor
        after = Score(*choice.scores[factor])
        best.load_state_dict(interpolate(first.state_dict(), run.best, factor))
    return Tuned(
        best.eval(),
        begun,
        train,
        tower.image_tower,
        base.release,
        run.best_step,
        factor,
        run.before,
        after,
    )


class _Run:
    """Steps and validations, with what survives an interruption."""

    def __init__(
        self,
        trainer: Trainer,
        begun: Start,
        check: Validation,
        settings: TuningSettings,
        listener: Listener,
        device: str,
        work: Path,
        identity: str,
    ) -> None:
        self._trainer, self._check, self._settings = trainer, check, settings
        self._config = begun.config
        self._listener, self._device = listener, device
        self._path = work / STATE
        self._identity = identity
        self._since_best = 0
        self.before = self.best_score = Score(0.0, None)
        self.best_step = 0
        self.best: dict[str, torch.Tensor] = {}

    def resume(self, before: Score) -> None:
        """Take up the state on disk, if there is one."""
        self.before = before
        self._listener.validated(0, before, best=False)
        if not self._path.is_file():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return
        extra = self._trainer.restore(self._path)
        if extra["identity"] != self._identity:
            raise ValueError(f"{self._path} belongs to other data or another base; remove it")
        self.best = {name: value.cpu() for name, value in extra["best"].items()}
        self.best_step = extra["best_step"]
        self.best_score = Score(*extra["best_score"])
        self._since_best = extra["since_best"]

    def go(self, snapshot_steps: int) -> None:
        """Take steps until all are taken, or validation says that it is enough."""
        trainer, settings = self._trainer, self._settings
        interval = settings.valid_step_interval or trainer.steps_an_epoch
        while trainer.step < trainer.total and self._since_best < settings.patience:
            loss = trainer.advance()
            self._listener.step(trainer.step, trainer.total, loss, trainer.rate)
            if trainer.step % interval == 0 or trainer.step == trainer.total:
                self._validate()
                self._save()
            elif trainer.step % snapshot_steps == 0:
                self._save()

    def _validate(self) -> None:
        model = merged(self._trainer.model, self._config)
        score = self._check.score(model, self._device)
        better = not self.best or score.field > self.best_score.field
        if better:
            self.best = {name: value.cpu() for name, value in model.state_dict().items()}
            self.best_score, self.best_step, self._since_best = score, self._trainer.step, 0
        else:
            self._since_best += 1
        self._listener.validated(self._trainer.step, score, best=better)

    def _save(self) -> None:
        if distributed.is_initialized() and distributed.get_rank():
            return
        extra = {
            "identity": self._identity,
            "best": self.best,
            "best_step": self.best_step,
            "best_score": [self.best_score.field, self.best_score.general],
            "since_best": self._since_best,
        }
        self._trainer.save(self._path, extra)


def _read(
    dataset: DataSet,
    split: str,
    tower: ImageTower,
    cache: Path,
    views: int,
    listener: Listener,
    left_out: Callable[[Problem], None] | None,
) -> tuple[DataSet, Features]:
    """Return a split and its features, without the images that cannot be decoded."""
    total = views * len(dataset)
    bad: dict[int, BadImageError] = {}
    vectors_vnd = features.load(
        dataset.images,
        tower,
        cache,
        views,
        lambda done: listener.features(split, done, total),
        bad=None if left_out is None else bad,
    )
    if left_out is None or not bad:
        return dataset, vectors_vnd
    problems = [
        Problem(
            dataset.images[place].row,
            f"{dataset.images[place].image_id}: {bad[place].reason}: {bad[place].message}",
        )
        for place in sorted(bad)
    ]
    for problem in problems:
        left_out(problem)
    good = [place for place in range(len(dataset)) if place not in bad]
    images = tuple(dataset.images[place] for place in good)
    return DataSet(images, (*dataset.problems, *problems)), vectors_vnd[:, good]


def _kept(train: DataSet, begun: Start, base: TextTower, cache: Path) -> Kept | None:
    """Return the everyday captions and where the base, with its own normaliser, has them."""
    texts = sorted({text for _, text in train.general_pairs()}, key=lambda text: (len(text), text))
    if not texts:
        return None
    return Kept(Captions(texts, begun.tokenizer), features.load_texts(texts, base, cache))


def _interpolated(
    first: TextModel,
    best: TextModel,
    check: Validation,
    settings: TuningSettings,
    device: str,
    known: Mapping[float, Score],
) -> Choice:
    base, tuned = first.state_dict(), dict(best.state_dict())
    probe = copy.deepcopy(first).to(device)

    def score(factor: float) -> tuple[float, float | None]:
        found = known.get(factor)
        if found is None:
            probe.load_state_dict(interpolate(base, tuned, factor))
            found = check.score(probe, device)
        return found.field, found.general

    return choose(score, settings.wise_general)


def _identity(base: TextTower, train: DataSet, validation: DataSet) -> str:
    """Return what a state on disk must have been made from, apart from the settings."""
    parts = [base.release, base.image_tower, train.digest, validation.digest]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
