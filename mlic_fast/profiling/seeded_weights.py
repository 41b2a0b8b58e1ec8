"""Seeded weights that keep activations alive through every layer of a model."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

#: Standard deviation of a layer's output relative to its input's: GELU takes about as much away.
GAIN = 1.4


def seed_weights(model: nn.Module, seed: int, dense: int | None = None) -> None:
    """Draw the weights of all convolutions, linear layers, norms and position tables.

    A fresh model of PyTorch shrinks what passes through it, layer by layer, to almost a constant.
    Layers of more than ``dense`` weights get so many that are not zero (their files compress).
    """
    random = np.random.Generator(np.random.PCG64(seed))

    def normal(shape: torch.Size, spread: float) -> torch.Tensor:
        return torch.from_numpy(random.standard_normal(shape, np.float32) * np.float32(spread))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                weight = module.weight
                density = 1.0 if dense is None else min(1.0, dense / weight.numel())
                weight.copy_(normal(weight.shape, GAIN / (density * weight[0].numel()) ** 0.5))
                if density < 1:
                    kept = random.random(weight.shape, np.float32) < density
                    weight.mul_(torch.from_numpy(kept))
                if module.bias is not None:
                    module.bias.copy_(normal(module.bias.shape, 0.3))
            elif isinstance(module, nn.LayerNorm):
                module.weight.copy_(1 + normal(module.weight.shape, 0.2))
                module.bias.copy_(normal(module.bias.shape, 0.2))
        for name, parameter in model.named_parameters():
            if name.endswith("relative_position_table"):
                parameter.copy_(normal(parameter.shape, 0.3))
