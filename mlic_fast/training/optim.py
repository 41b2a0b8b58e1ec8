"""Optimisers, learning-rate schedule and the moving average of the weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from mlic_fast.training.config import TrainConfig

# MLIC++ was trained at 1e-4, then 3e-5 and 1e-5 near the end; the fractions of a run are ours.
MILESTONES = ((0.85, 0.1), (0.7, 0.3))


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Returns (network, quantiles): the quantiles of the factorised prior have a loss and an
    optimiser of their own.
    """
    named = list(model.named_parameters())
    network = [p for name, p in named if not name.endswith(".quantiles")]
    return network, [p for name, p in named if name.endswith(".quantiles")]


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Factor of the network's learning rate at ``step`` (0-based): linear warm-up, then the
    schedule.

    The quantiles follow the network, so their rate stays constant.

    A pure function of step and options, so that a resumed run may change its number of steps.
    """
    warmup = min(1.0, (step + 1) / (config.warmup + 1))
    progress = step / config.steps
    if config.schedule == "cosine":
        return warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
    return warmup * next((factor for start, factor in MILESTONES if progress >= start), 1.0)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """``average += (1 - d) (model - average)`` with d rising to ``decay``, so that early weights
    fade quickly.
    """
    weight = 1 - min(decay, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)
