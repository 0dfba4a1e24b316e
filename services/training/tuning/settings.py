"""Hyperparameters of tuning, named as in Chinese CLIP's trainer and in LiT."""

from dataclasses import dataclass
from typing import Literal

Negatives = Literal["gallery", "batch"]
TuningPrecision = Literal["fp32", "amp"]


@dataclass(frozen=True)
class TuningSettings:
    """What a run depends on, data and base model aside.

    Raises:
        ValueError: one is out of its range; the message names it.
    """

    max_epochs: int = 4
    """Times that every pair is seen at most; validation may end it earlier."""
    batch_size: int = 256
    """Pairs in one step, over all processes."""
    lr: float = 5e-4
    warmup: int = 100
    """Steps in which the rate rises; from there it falls as a cosine to zero."""
    wd: float = 0.001
    """Weight decay of matrices; LayerNorm, biases and embeddings have none."""
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    layer_decay: float = 1.0
    """Each layer learns at this share of the rate of the layer above it."""
    precision: TuningPrecision = "amp"
    """Arithmetic: amp is bf16 autocast over fp32 weights."""
    context_length: int = 52
    """Tokens that a caption is cut at."""

    negatives: Negatives = "gallery"
    """What a caption is told from: every cached image, or those of its batch as in CLIP."""
    max_gallery: int = 65_536
    """Images of a larger gallery that one step draws, all positives among them."""
    soft_positives: bool = True
    """Whether images with an equal caption are right answers too, or, as in CLIP, wrong ones."""
    group_positives: float = 0.0
    """Weight of the other images of a caption's group, beside 1 for its own."""
    label_smoothing: float = 0.0
    hard_negatives: float = 0.0
    """Share of each batch that is filled up with look-alikes of its other images."""
    kd_loss_weight: float = 3.0
    """Weight of keeping the base's vectors of everyday captions, where the data has some."""
    kd_batch_size: int = 128
    """Everyday captions in one step, over all processes."""
    views: int = 1
    """Cached views of each image; a step sees one of them."""

    add_tokens: bool = True
    """Whether characters that the vocabulary lacks get tokens of their own."""
    lora_rank: int = 0
    """Rank of the low-rank updates that are learnt in place of whole matrices; 0: whole ones."""
    lora_alpha: float = 16.0
    """Updates are scaled by this over the rank."""

    valid_step_interval: int = 0
    """Steps between two validations; 0: at the end of every epoch."""
    valid_k: int = 20
    """Validation is recall at this k."""
    patience: int = 3
    """Validations without a better one after which training ends."""
    wise_ft: bool = True
    """Whether weights are interpolated between base and tuned, the factor chosen on validation."""
    wise_general: float = 0.5
    """Weight of everyday captions in that choice; captions of the field have the rest."""

    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("max_epochs", "batch_size", "lr", "eps", "grad_clip", "views", "valid_k")
        for name in (*positive, "max_gallery", "patience", "lora_alpha", "kd_batch_size"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        for name in (
            "warmup",
            "wd",
            "group_positives",
            "kd_loss_weight",
            "lora_rank",
            "valid_step_interval",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("label_smoothing", "hard_negatives", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; 0 to below 1 are allowed")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; above 0 to 1 are allowed")
        if not 0 <= self.wise_general <= 1:
            raise ValueError(f"wise_general is {self.wise_general}; 0 to 1 are allowed")
        if not 3 <= self.context_length <= 52:
            raise ValueError(f"context_length is {self.context_length}; 3 to 52 are allowed")
