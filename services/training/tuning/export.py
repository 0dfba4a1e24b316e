"""A tuned tower becomes a release."""

import datetime
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cra.services.training.tuning.run import Tuned
from cra.services.training.tuning.settings import TuningSettings
from cra.services.training.tuning.validation import Score
from cra.shared import releases
from cra.shared.errors import FailedPreconditionError
from cra.shared.model.text_tower import encode_weights
from cra.shared.releases import Release, TrainingData


def export(
    tuned: Tuned,
    settings: TuningSettings,
    label: str,
    parent: Path,
    metrics: Mapping[str, Any] | None = None,
) -> Release:
    """Write a release into a new folder below `parent`.

    Args:
        tuned: what the run ended with.
        settings: of the run.
        label: first part of the release's name.
        parent: folder of releases.
        metrics: what else was measured, by name.

    Raises:
        FailedPreconditionError: the label is not allowed.
    """
    config = tuned.start.config
    found = {
        f"validation_r@{settings.valid_k}": {
            "base": asdict(tuned.before),
            "tuned": asdict(tuned.after),
        },
        "steps": tuned.steps,
        "wise_ft_factor": tuned.factor,
        **(metrics or {}),
    }
    data = TrainingData(
        digest=tuned.train.digest,
        images=len(tuned.train),
        pairs=sum(1 for _ in tuned.train.pairs()),
        groups=len({image.group for image in tuned.train.images}),
    )
    fields: dict[str, Any] = {
        "label": label,
        "image_tower": tuned.image_tower,
        "dimension": config["embed_dim"],
        "normalizer": tuned.start.tokenizer.normalizer,
        "added_tokens": tuned.start.tokenizer.added_tokens,
        "config": config,
        "temperature": float((-tuned.model.logit_scale.detach()).exp()),
        "base": tuned.base,
        "created_at": datetime.datetime.now(datetime.UTC).replace(microsecond=0),
        "settings": asdict(settings),
        "data": data,
        "metrics": found,
    }
    card = _card(tuned, data, fields)
    files = {
        releases.WEIGHTS: encode_weights(tuned.model),
        releases.CARD: card.encode(),
    }
    return _again(parent, files, fields) or releases.write_release(parent, files, **fields)


def _again(parent: Path, files: Mapping[str, bytes], fields: Mapping[str, Any]) -> Release | None:
    """Return a release that is there and differs in its date alone: it is the same one."""
    weights = releases.describe(files[releases.WEIGHTS])
    for folder in sorted(parent.glob(f"{fields['label']}-*")):
        try:
            release = releases.read_release(folder)
        except FailedPreconditionError:
            continue  # another folder, of which nothing is asked here
        known = release.manifest.model_dump(exclude={"files", "created_at"}, mode="json")
        manifest = release.manifest.model_copy(update=dict(fields))
        same = manifest.model_dump(exclude={"files", "created_at"}, mode="json") == known
        if same and release.manifest.files[releases.WEIGHTS] == weights:
            return release
    return None


def _card(tuned: Tuned, data: TrainingData, fields: Mapping[str, Any]) -> str:
    settings: Mapping[str, Any] = fields["settings"]
    tokens = "、".join(fields["added_tokens"]) or "none"
    measured = "\n".join(
        f"| {name} | {_percent(before)} | {_percent(after)} |"
        for name, before, after in _rows(tuned.before, tuned.after)
    )
    listed = "\n".join(f"- {name}: {value}" for name, value in settings.items())
    more = {
        name: value
        for name, value in fields["metrics"].items()
        if not name.startswith("validation") and name not in {"steps", "wise_ft_factor"}
    }
    extra = "".join(f"\n- {name}: {value}" for name, value in more.items())
    return f"""# {fields["label"]}: a text tower tuned against a locked image tower

Tuned from {fields["base"]} on {data.pairs:,} captions of {data.images:,} images in {data.groups:,}
groups (data {data.digest}), as locked-image text tuning has it: the image tower
{fields["image_tower"]} stayed as it was, so every index made with it can be searched with this
release, and no image is embedded again.

- best validation after {tuned.steps:,} steps
- weights: {tuned.factor:g} of the way from base to tuned (WiSE-FT)
- normaliser {fields["normalizer"]}; characters with tokens of their own: {tokens}
- temperature {fields["temperature"]:.4f}; {fields["created_at"]:%Y-%m-%d}{extra}

Recall at {settings["valid_k"]} on the validation set, by exact search, per cent:

| captions | base | tuned |
| --- | --- | --- |
{measured}

The validation set chose the step and the factor, so these figures flatter; `cra evaluate` on data
that took no part in it says how good the release is.

Settings:

{listed}
"""


def _rows(before: Score, after: Score) -> list[tuple[str, float | None, float | None]]:
    rows: list[tuple[str, float | None, float | None]] = [
        ("of the field", before.field, after.field)
    ]
    if before.general is not None:
        rows.append(("everyday", before.general, after.general))
    return rows


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
