"""`cra train`: tune the text tower on image-text pairs, and end with a release."""

import contextlib
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final

import click
import torch
from rich.text import Text
from torch import distributed

from cra.services.training.commands.options import (
    RELEASES,
    TRAIN,
    VALIDATION,
    DataOptions,
    cache_option,
    dataset_options,
    options_of,
    shares,
    split_options,
)
from cra.services.training.data.dataset import DataSet, Problem
from cra.services.training.data.opening import has_splits
from cra.services.training.data.split import split as split_by_group
from cra.services.training.tuning.console import ConsoleListener
from cra.services.training.tuning.export import export
from cra.services.training.tuning.recorder import Recorder
from cra.services.training.tuning.run import Listener, Several, tune
from cra.services.training.tuning.settings import TuningSettings
from cra.shared import releases
from cra.shared.console import err, examples
from cra.shared.errors import FailedPreconditionError
from cra.shared.model.checkpoints import find_model
from cra.shared.model.pixels import BadImageError
from cra.shared.model.runtime import Runtime
from cra.shared.settings import Settings

_SHOWN: Final = 20


def _hyperparameters(command: Any) -> Any:
    """Add an option for each field of `TuningSettings`, with its default."""
    for field in reversed(dataclasses.fields(TuningSettings)):
        name = field.name.replace("_", "-")
        shown: dict[str, Any] = {
            "default": field.default,
            "show_default": True,
            "help": field.metadata["help"],
        }
        if isinstance(field.default, bool):
            option = click.option(f"--{name}/--no-{name}", **shown)
        elif field.name in _CHOICES:
            option = click.option(f"--{name}", type=click.Choice(_CHOICES[field.name]), **shown)
        else:
            option = click.option(f"--{name}", type=type(field.default), **shown)
        command = option(command)
    return command


_CHOICES: Final = {"precision": ["amp", "fp32"], "negatives": ["gallery", "batch"]}


@click.command(epilog=examples("cra train pairs/ --label halls"))
@dataset_options
@click.option("--label", default="cra", show_default=True, help="First part of the release's name.")
@click.option(
    "--validation-split",
    default="valid",
    show_default=True,
    help="Where the data names its splits: the one to validate on.",
)
@split_options
@click.option(
    "--releases",
    type=click.Path(path_type=Path),
    default=RELEASES,
    show_default=True,
    help="Folder that the release is written below.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path(".data/training"),
    show_default=True,
    help="State of runs, and TensorBoard's files; a run that was interrupted goes on from there.",
)
@cache_option
@click.option(
    "--snapshot-steps",
    default=100,
    show_default=True,
    type=click.IntRange(min=1),
    help="Steps between two states.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads; PyTorch's default if not given."
)
@_hyperparameters
@click.pass_obj
def train(settings: Settings, /, **parameters: Any) -> None:
    """Tune the text tower of CRA_MODEL on the pairs of LOCATION, the image tower locked.

    LOCATION is a folder with captions.jsonl or captions.csv, a folder in Chinese CLIP's format,
    or s3://bucket/prefix; `cra dataset check` looks it over first. The last line printed is the
    folder of the release; `cra releases publish` puts it where the services find it.

    For several GPUs: torchrun --nproc-per-node N -m cra.services.cli train ...
    """
    options, others = options_of(**parameters)
    try:
        chosen = TuningSettings(
            **{field.name: others[field.name] for field in dataclasses.fields(TuningSettings)}
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if others["threads"]:
        torch.set_num_threads(others["threads"])
    if re.fullmatch(releases.LABEL, others["label"]) is None:
        raise click.UsageError(
            f"--label is {others['label']!r}; up to 64 Latin letters, digits, dots, hyphens and "
            "underscores are allowed"
        )
    _make_folders(others)
    device = _join_processes(settings)
    first = not distributed.is_initialized() or distributed.get_rank() == 0
    data, validation = _data(options, settings, others)
    if first:
        _say(data, validation)
    cache = Path(settings.model_cache) if settings.model_cache else None
    source = find_model(settings.model, settings.config, cache)
    work = others["work"] / _name(others["label"], settings.model, data, chosen)
    goes_on = options.columns.on_error == "continue"
    with contextlib.ExitStack() as stack:
        listeners: list[Listener] = []
        if first:
            listeners.append(stack.enter_context(ConsoleListener(err)))
            listeners.append(stack.enter_context(Recorder(work / "tensorboard")))
        try:
            tuned = tune(
                source,
                data,
                validation,
                chosen,
                work=work,
                cache=others["cache"],
                listener=Several(*listeners),
                device=device,
                snapshot_steps=others["snapshot_steps"],
                left_out=(_left_out if first else _nothing) if goes_on else None,
            )
        except (ValueError, FloatingPointError, BadImageError) as error:
            raise FailedPreconditionError(str(error)) from error
    if first:
        release = export(tuned, chosen, others["label"], others["releases"])
        before, after = tuned.before.field, tuned.after.field
        err.print(
            f"validation R@{chosen.valid_k}: {100 * before:.1f} % before, {100 * after:.1f} % after"
        )
        if after <= before:
            err.print(
                "nothing was gained: more --max-epochs, a smaller --batch-size or a higher --lr may"
            )
        click.echo(release.folder)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _data(
    options: DataOptions, settings: Settings, others: dict[str, Any]
) -> tuple[DataSet, DataSet]:
    """Return what is learnt and what is validated on."""
    if has_splits(options.location, options.columns):
        return options.open(settings, TRAIN), options.open(settings, others["validation_split"])
    whole = options.open(settings)
    parts = split_by_group(whole, shares(others), others["split_seed"])
    for name, part in parts.items():
        if not any(image.captions for image in part.images):
            raise FailedPreconditionError(
                f"{options.location} has too few groups: its part for {name} has no captions"
            )
    train_part = DataSet(parts[TRAIN].images, whole.problems)
    return train_part, parts[VALIDATION]


def _left_out(problem: Problem) -> None:
    err.print(Text.assemble(("left out", "red"), f" {problem}"))


def _nothing(_: Problem) -> None:
    """Another process says it."""


def _make_folders(others: dict[str, Any]) -> None:
    """Make the folders that the end needs, so that their lack is known at the start."""
    for name in ("releases", "work", "cache"):
        try:
            others[name].mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise click.UsageError(f"--{name}: {error}") from error


def _say(data: DataSet, validation: DataSet) -> None:
    for name, part in ((TRAIN, data), ("validation", validation)):
        pairs = sum(1 for _ in part.pairs())
        groups = len({image.group for image in part.images})
        err.print(f"{name}: {len(part):,} images, {pairs:,} captions, {groups:,} groups")
    problems = dict.fromkeys((*data.problems, *validation.problems))
    for problem in list(problems)[:_SHOWN]:
        _left_out(problem)
    if len(problems) > _SHOWN:
        err.print(f"and {len(problems) - _SHOWN:,} more; `cra dataset check` lists all")


def _join_processes(settings: Settings) -> str:
    """Join the other processes of torchrun, if there are any; return this one's device."""
    device = Runtime.choose(settings.device).device
    if not distributed.is_torchelastic_launched():
        return device
    if device.startswith("cuda"):
        device = f"cuda:{distributed.get_node_local_rank()}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


def _name(label: str, model: str, data: DataSet, chosen: TuningSettings) -> str:
    """Return a folder name that the same run has again: so that it goes on where it was."""
    parts = json.dumps([model, data.digest, dataclasses.asdict(chosen)])
    return f"{label}-{hashlib.sha256(parts.encode()).hexdigest()[:12]}"
