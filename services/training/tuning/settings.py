"""Hyperparameters of tuning, named as in Chinese CLIP's trainer and in LiT."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

Negatives = Literal["gallery", "batch"]
TuningPrecision = Literal["fp32", "amp"]


def _option(default: Any, text: str) -> Any:
    """Return a field whose text is what the command line says of it."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TuningSettings:
    """What a run depends on, data and base model aside.

    Raises:
        ValueError: one is out of its range; the message names it.
    """

    max_epochs: int = _option(
        4, "Times that every pair is seen at most; validation may end it earlier."
    )
    batch_size: int = _option(256, "Pairs in one step, over all processes.")
    lr: float = _option(5e-5, "Highest rate; a small model wants more.")
    warmup: int = _option(
        100, "Steps in which the rate rises, a third of all at most; then it falls as a cosine."
    )
    wd: float = _option(
        0.001, "Weight decay of matrices; LayerNorm, biases and embeddings have none."
    )
    beta1: float = _option(0.9, "AdamW's first moment.")
    beta2: float = _option(0.98, "AdamW's second moment.")
    eps: float = _option(1e-6, "AdamW's smallest divisor.")
    grad_clip: float = _option(1.0, "Largest norm of the gradient.")
    layer_decay: float = _option(
        1.0, "Each layer learns at this share of the rate of the layer above it."
    )
    precision: TuningPrecision = _option(  # noqa: RUF009 - a field
        "amp", "Arithmetic: amp is bf16 autocast over fp32 weights."
    )
    context_length: int = _option(52, "Tokens that a caption is cut at.")

    negatives: Negatives = _option(  # noqa: RUF009 - a field
        "gallery",
        "What a caption is told from: every cached image, or those of its batch as in CLIP.",
    )
    max_gallery: int = _option(
        65_536, "Images of a larger gallery that one step draws, all positives among them."
    )
    soft_positives: bool = _option(
        True,
        "Whether images with an equal caption are right answers too, or, as in CLIP, wrong ones.",
    )
    group_positives: float = _option(
        0.0, "Weight of the other images of a caption's group, beside 1 for its own."
    )
    label_smoothing: float = _option(0.0, "Share of the target that is spread over all images.")
    hard_negatives: float = _option(
        0.0, "Share of each batch that is filled up with look-alikes of its other images."
    )
    kd_loss_weight: float = _option(
        3.0, "Weight of keeping the base's vectors of everyday captions, where the data has some."
    )
    kd_batch_size: int = _option(128, "Everyday captions in one step, over all processes.")
    views: int = _option(1, "Cached views of each image; a step sees one of them.")

    add_tokens: bool = _option(
        True, "Whether characters that the vocabulary lacks get tokens of their own."
    )
    lora_rank: int = _option(
        0, "Rank of the low-rank updates that are learnt in place of whole matrices; 0: whole ones."
    )
    lora_alpha: float = _option(16.0, "Updates are scaled by this over the rank.")

    valid_step_interval: int = _option(
        0, "Steps between two validations; 0: at the end of every epoch."
    )
    valid_k: int = _option(20, "Validation is recall at this k.")
    patience: int = _option(3, "Validations without a better one after which training ends.")
    wise_ft: bool = _option(
        True,
        "Whether weights are interpolated between base and tuned, the factor chosen on validation.",
    )
    wise_general: float = _option(
        0.5, "Weight of everyday captions in that choice; captions of the field have the rest."
    )

    seed: int = _option(0, "Another one learns in another order.")

    def __post_init__(self) -> None:
        positive = ("max_epochs", "batch_size", "lr", "eps", "grad_clip", "views", "valid_k")
        for name in (*positive, "max_gallery", "patience", "lora_alpha", "kd_batch_size"):
            if not 0 < getattr(self, name) < math.inf:  # also false for NaN
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        for name in (
            "warmup",
            "wd",
            "group_positives",
            "kd_loss_weight",
            "lora_rank",
            "valid_step_interval",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("label_smoothing", "hard_negatives", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; 0 to below 1 are allowed")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; above 0 to 1 are allowed")
        if not 0 <= self.wise_general <= 1:
            raise ValueError(f"wise_general is {self.wise_general}; 0 to 1 are allowed")
        if not 3 <= self.context_length <= 52:
            raise ValueError(f"context_length is {self.context_length}; 3 to 52 are allowed")
