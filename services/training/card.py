"""The card of the base model: what it is, how good it is, how to make it again."""

import datetime
from collections.abc import Mapping, Sequence

from cra.services.training.evaluation.buildings import Recall
from cra.shared.model.checkpoints import ModelSource


def table(found: Sequence[Recall]) -> str:
    """Return recalls as a Markdown table, in per cent."""
    lines = ["| captions | | " + " | ".join(f"R@{k}" for k in found[0].model) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(found[0].model))
    for recall in found:
        rows = {"model": recall.model, "ceiling": recall.ceiling, "chance": recall.chance}
        for label, values in rows.items():
            cells = " | ".join(f"{100 * value:.1f}" for value in values.values())
            lines.append(f"| {recall.speech} | {label} | {cells} |")
    return "\n".join(lines)


def text(
    found: Sequence[Recall],
    settings: Mapping[str, object],
    source: ModelSource,
    seconds: float,
    threads: int,
    date: datetime.date,
) -> str:
    """Return the card as Markdown."""
    config = source.config
    plain, professional = found
    return f"""# The miniature: a small Chinese CLIP that ships

cn_clip's own classes, small:

- image tower: a ResNet {config["vision_layers"]} of width {config["vision_width"]}, input of
  {config["image_resolution"]} x {config["image_resolution"]} pixels
- text tower: a BERT of {config["text_num_hidden_layers"]} layers of width
  {config["text_hidden_size"]} over cn_clip's vocabulary
- {config["embed_dim"]} dimensions, {source.checkpoint.stat().st_size / 1e6:.1f} MB in fp16, in
  cn_clip's checkpoint format

Both towers were trained from nothing, on rendered buildings (`services/training/buildings`) with
plain captions alone. It takes the place of the official general-domain weights where those cannot
be downloaded: it knows what laymen call things and no professional term, so that tuning the text
tower on professional captions has something to show. It has never seen a photograph; for real
pictures use official weights.

## Recall on held-out buildings

A gallery of {plain.gallery} pictures of buildings that were not in training, about half of them
with a pair of roof and wall that training never showed. Each caption is a query
({plain.queries} plain, {professional.queries} professional), and only the picture that it was
written for counts. Per cent:

{table(found)}

The ceiling is an oracle's expected recall: it knows everything that can be seen at the model's
input size and everything that the caption names, and orders images that show equally much of it
at random (`services/training/buildings/oracle.py`).

## Make it again

    python -m cra.services.training.base

Made on {date.isoformat()}: {seconds / 60:.0f} minutes of training on {threads} CPU
thread{"s" if threads > 1 else ""}, rendering not counted.

Settings: AdamW (0.9, 0.98, eps 1e-6), cosine after the warm-up, bf16 autocast over fp32 weights;

{settings_list(settings)}
"""


def settings_list(settings: Mapping[str, object]) -> str:
    """Return settings as a Markdown list."""
    return "\n".join(f"- {name}: {value}" for name, value in settings.items())
