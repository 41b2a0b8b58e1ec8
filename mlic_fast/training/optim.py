"""Optimisers, learning-rate schedule and the moving average of the weights."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from mlic_fast.training.config import TrainConfig

# MLIC++ was trained at 1e-4, then 3e-5 and 1e-5 near the end; the fractions of a run are ours.
MILESTONES = ((0.85, 0.1), (0.7, 0.3))

# The parts of a model whose learning rate is relative to that of the others.
TRANSFORMS = ("g_a", "g_s", "h_a", "h_s")


def split_parameters(model: nn.Module) -> tuple[dict[str, nn.Parameter], list[nn.Parameter]]:
    """Returns (network, quantiles): the quantiles of the factorised prior have a loss and an
    optimiser of their own.
    """
    named = dict(model.named_parameters())
    quantiles = [name for name in named if name.endswith(".quantiles")]
    return named, [named.pop(name) for name in quantiles]


def make_optimizers(
    config: TrainConfig, network: dict[str, nn.Parameter]
) -> list[torch.optim.Optimizer]:
    """The optimisers of the parameters ``network``, given by name: Adam, or Muon and Adam.

    Each has two groups: the parameters of the transforms, and all others.
    """
    if config.optimizer == "adam":
        return [torch.optim.Adam(_groups(network), lr=config.lr, fused=True)]
    matrices = {name: p for name, p in network.items() if is_matrix(name, p)}
    rest = {name: p for name, p in network.items() if name not in matrices}
    return [
        Muon(_groups(matrices), config.lr),
        torch.optim.Adam(_groups(rest), lr=config.lr, fused=True),
    ]


def _groups(network: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    ours = {name: name.split(".")[0] in TRANSFORMS for name in network}
    return [
        {"params": [p for name, p in network.items() if ours[name] == flag], "transforms": flag}
        for flag in (True, False)
    ]


def learning_rate(step: int, config: TrainConfig, transforms: bool) -> float:
    """Learning rate at ``step`` (0-based) of the transforms, or of all other parameters."""
    rate = config.lr * learning_rate_factor(step, config)
    if not transforms:
        return rate
    # First the entropy model has to learn what the transform of the start gives: its gradients
    # would destroy the transform before.
    still = config.start == "klt" and step < config.warmup
    return 0.0 if still else config.transforms_lr * rate


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


class Muon(torch.optim.Optimizer):
    """Momentum whose updates have all their singular values near 1, for matrices
    (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon).

    Updates are scaled to a root mean square of 0.2, about that of Adam's (Liu et al., arXiv
    2502.16982), so that one learning rate does for both. A convolution counts as a matrix
    [out, kernel * kernel * in].
    """

    def __init__(self, parameters: ParamsT, lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            # Parameters of one shape go together: there are many small ones.
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for parameters in alike.values():
                self._move(parameters, group["lr"], group["momentum"])

    def _move(self, parameters: list[nn.Parameter], lr: float, momentum: float) -> None:
        """Moves parameters of one shape, [m, n] or [m, n, h, w]."""
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients: list[Any] = [p.grad for p in parameters]
        momenta = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, momenta, momentum)  # Nesterov's
        stack = torch.stack([update.movedim(1, -1) for update in updates])
        result = orthogonalise(stack.flatten(2)).reshape(stack.shape)
        scale = 0.2 * max(stack[0].flatten(1).shape) ** 0.5
        for p, update in zip(parameters, result, strict=True):
            p.add_(update.movedim(-1, 1), alpha=-lr * scale)


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter mixes many channels: not a bias, a depthwise kernel or a table of gains,
    nor GDN's weights, which are squared where they are used.
    """
    matrix = parameter.dim() in (2, 4) and min(parameter.shape[:2]) >= 8
    return matrix and not name.endswith(".gamma")


def orthogonalise(x: Tensor) -> Tensor:
    """Matrices [B, m, n] with their singular values brought near 1.

    More than 128 rows are cut into blocks, each treated by itself: the cost grows with their cube.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonalise(x.transpose(1, 2)).transpose(1, 2)
    blocks = -(-x.shape[1] // 128)
    rows = x.unflatten(1, (blocks, -1)).flatten(0, 1) if x.shape[1] % blocks == 0 else x
    # Newton-Schulz, x' = (a + b G + c G^2) x = P x with the Gram matrix G = x x^T, so G' = P G P:
    # it goes on in the small matrices alone, and the product of all P multiplies x at the end.
    gram = rows @ rows.transpose(1, 2)
    squares = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] + 1e-30
    gram, product = gram / squares, squares.rsqrt() * torch.eye(gram.shape[1], device=x.device)
    for last in (False, False, False, False, True):
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        polynomial.diagonal(dim1=1, dim2=2).add_(3.4445)
        product = polynomial @ product
        if not last:
            gram = polynomial @ gram @ polynomial
    return (product @ rows).reshape(x.shape)
