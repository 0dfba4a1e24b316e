"""Low-rank updates: a matrix stays as it is, and a thin product beside it learns.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv:2106.09685).
"""

import math

import torch
from torch.nn.utils import parametrize


class LowRankUpdate(torch.nn.Module):
    """Adds a product of rank `rank` to a frozen weight; zero at the start.

    Args:
        weight: of the layer, shape [out, in].
        rank: of the update.
        alpha: the update is scaled by alpha / rank.
    """

    def __init__(self, weight: torch.Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = torch.nn.Parameter(torch.empty(rank, columns))
        self.up = torch.nn.Parameter(torch.zeros(rows, rank))
        torch.nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self._scale = alpha / rank

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the updated weight."""
        return weight + self._scale * self.up @ self.down


def add(module: torch.nn.Module, rank: int, alpha: float) -> None:
    """Freeze a module, and let low-rank updates of its linear layers learn."""
    for parameter in module.parameters():
        parameter.requires_grad = False
    for layer in list(module.modules()):
        if isinstance(layer, torch.nn.Linear):
            update = LowRankUpdate(layer.weight, rank, alpha)
            parametrize.register_parametrization(layer, "weight", update)


def merged_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's state with the updates inside the weights, as if it never had any."""
    state = {
        name: value.detach().clone()
        for name, value in module.state_dict().items()
        if "parametrizations." not in name
    }
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear) and parametrize.is_parametrized(layer, "weight"):
            state[f"{name}.weight"] = layer.weight.detach().clone()
    return state
