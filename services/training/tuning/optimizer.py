"""AdamW as Chinese CLIP uses it: no decay on gains, biases and embeddings; rates by layer."""

import math
import re
from collections.abc import Iterator
from typing import Any

import torch

from cra.services.training.tuning.settings import TuningSettings

_LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.")


def make_optimizer(model: torch.nn.Module, settings: TuningSettings) -> torch.optim.AdamW:
    """Return the optimiser of what is to learn; `lr_scale` of a group is its share of the rate."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    top = 2 + max(
        (int(match[1]) for name, _ in model.named_parameters() if (match := _LAYER.match(name))),
        default=-1,
    )
    for name, parameter in _learning(model):
        below = top - _depth(name, top)
        decay = settings.wd if _decays(name, parameter) else 0.0
        groups.setdefault((decay, settings.layer_decay**below), []).append(parameter)
    parameters: list[dict[str, Any]] = [
        {"params": members, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), members in groups.items()
    ]
    return torch.optim.AdamW(
        parameters,
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        # A fifth of the time of PyTorch's default on CPU.
        fused=True,
    )


def set_rate(
    optimizer: torch.optim.Optimizer, step: int, total: int, settings: TuningSettings
) -> float:
    """Set the rate of a step: linear warm-up (a third of all at most), then a cosine to zero."""
    # In a short run the rate must still get somewhere.
    warmup = min(settings.warmup, total // 3)
    if step < warmup:
        rate = settings.lr * (step + 1) / warmup
    else:
        part = (step - warmup) / max(1, total - warmup)
        rate = settings.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate


def _learning(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def _decays(name: str, parameter: torch.nn.Parameter) -> bool:
    return parameter.ndim > 1 and "embeddings" not in name


def _depth(name: str, top: int) -> int:
    """Return 0 for the embeddings, 1 and up for the layers, `top` for what stands above them."""
    if match := _LAYER.match(name):
        return int(match[1]) + 1
    return 0 if "embeddings" in name else top
