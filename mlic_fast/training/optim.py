"""Optimisers on flat weights, and the schedule of learning rates."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mlic_fast.training.config import TrainConfig
from mlic_fast.training.flat import PARTS, FlatWeights

# MLIC++ was trained at 1e-4, then 3e-5 and 1e-5 near the end; the fractions of a run are ours.
MILESTONES = ((0.85, 0.1), (0.7, 0.3))

# Of a run with the linear schedule, where the rate begins to fall.
FALL = 0.65

# The transforms of a KLT start reach their learning rate after so many times the warm-up.
PATIENCE = 4

# Muon's: momentum, and how much of a weight of the contexts goes a step at a rate of 1.
MOMENTUM, DECAY = 0.95, 0.05

# Matrices of more rows are cut into blocks, each treated by itself: the cost grows with their cube.
MOST_ROWS, FEWEST_ROWS = 128, 64


def learning_rates(step: int, progress: float, config: TrainConfig) -> list[float]:
    """Learning rates of the :data:`PARTS` at ``step`` (0-based), ``progress`` 0..1 into the run."""
    rate = config.lr * learning_rate_factor(step, progress, config)
    # First the entropy model has to learn what the transform of the start gives: its gradients
    # would destroy the transform before.
    patience = PATIENCE * config.warmup if config.start == "klt" else 0
    ready = min(1.0, step / patience) if patience else 1.0
    relative = {
        "transforms": config.transforms_lr * ready,
        "hyper": config.hyper_lr,
        "residual": config.residual_lr,
        "contexts": 1.0,
    }
    # The quantiles follow the network, so their rate stays constant.
    return [rate * relative[part] if part in relative else config.aux_lr for part in PARTS]


def learning_rate_factor(step: int, progress: float, config: TrainConfig) -> float:
    """Factor of the network's learning rate: linear warm-up, then the schedule.

    A pure function of step, progress and options, so that a resumed run may change its length.
    """
    warmup = min(1.0, (step + 1) / (config.warmup + 1))
    if config.schedule == "cosine":
        return warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
    if config.schedule == "linear":
        return warmup * min(1.0, max(0.01, (1 - progress) / (1 - FALL)))
    return warmup * next((factor for start, factor in MILESTONES if progress >= start), 1.0)


class Optimizer:
    """Muon for the stacks of the weights, Adam for everything else.

    Muon is momentum whose updates have all their singular values near 1 (Jordan et al., 2024,
    https://kellerjordan.github.io/posts/muon), scaled to a root mean square of 0.2, about that of
    Adam's (Liu et al., arXiv 2502.16982), so that one learning rate does for both.

    Attributes:
        state: tensors that a resumed run needs.
    """

    def __init__(self, weights: FlatWeights) -> None:
        self._weights = weights
        values, muon = weights.values, weights.muon
        self._betas = (0.9, 0.98 if muon else 0.999)
        self.state = {
            "momentum": torch.zeros_like(values[:muon]),
            "first": torch.zeros_like(values[muon:]),
            "second": torch.zeros_like(values[muon:]),
            "count": torch.zeros((), device=values.device),
        }

    @torch.no_grad()
    def step(self, rates: Tensor, live: Tensor) -> None:
        """One step along the gradient of the weights, which it uses up, at the rates of the
        :data:`PARTS`.

        With ``live`` 0 in place of 1 nothing changes at all.
        """
        rates = rates * live
        if self._weights.stacks:
            self._muon(rates, live)
        self._adam(rates, live)

    def _muon(self, rates: Tensor, live: Tensor) -> None:
        weights, momentum = self._weights, self.state["momentum"]
        values, gradient = weights.values, weights.gradient[: weights.muon]
        momentum.lerp_(gradient, (1 - MOMENTUM) * live)
        update = gradient.lerp_(momentum, MOMENTUM)  # Nesterov's
        moves = orthogonalise([stack.view(update) for stack in weights.stacks])
        contexts = PARTS.index("contexts")
        first = min((s.start for s in weights.stacks if s.part == contexts), default=weights.muon)
        values[first : weights.muon].mul_(1 - DECAY * rates[contexts])
        for stack, move in zip(weights.stacks, moves, strict=True):
            scale = 0.2 * max(stack.shape[1:]) ** 0.5
            stack.view(values).addcmul_(move, rates[stack.part], value=-scale)

    def _adam(self, rates: Tensor, live: Tensor) -> None:
        weights, state = self._weights, self.state
        gradient = weights.gradient[weights.muon :]
        first, second, count = state["first"], state["second"], state["count"]
        count.add_(live)
        first.lerp_(gradient, (1 - self._betas[0]) * live)
        second.lerp_(gradient.square_(), (1 - self._betas[1]) * live)
        steps = count.clamp(min=1)
        bias, bias2 = (1 - beta**steps for beta in self._betas)
        moves = torch.sqrt(second, out=gradient).add_(1e-8 * bias2.sqrt())
        torch.div(first, moves, out=moves)
        lengths = rates * bias2.sqrt() / bias
        for part, begin, end in weights.runs:
            move = moves[begin - weights.muon : end - weights.muon]
            weights.values[begin:end].addcmul_(move, lengths[part], value=-1)


def orthogonalise(stacks: Sequence[Tensor]) -> list[Tensor]:
    """Matrices [n, rows, columns] with their singular values brought near 1, stack by stack.

    Stacks of different shapes share the iteration, which works on Gram matrices alone.
    """
    rows = [_rows(stack) for stack in stacks]
    groups: dict[int, list[int]] = defaultdict(list)
    for i, matrix in enumerate(rows):
        groups[-(-matrix.shape[1] // 32) * 32].append(i)
    results: list[Tensor] = list(stacks)
    for side, members in groups.items():
        grams = [rows[i] @ rows[i].transpose(1, 2) for i in members]
        gaps = [side - gram.shape[1] for gram in grams]
        grams = [
            F.pad(gram, (0, gap, 0, gap)) if gap else gram
            for gram, gap in zip(grams, gaps, strict=True)
        ]
        products = _polynomials(torch.cat(grams)).split([len(gram) for gram in grams])
        for i, product in zip(members, products, strict=True):
            side_of = rows[i].shape[1]
            out = product[:, :side_of, :side_of] @ rows[i]
            n, m, k = stacks[i].shape
            results[i] = out.reshape(n, m, k) if m <= k else out.reshape(n, k, m).transpose(1, 2)
    return results


def _rows(x: Tensor) -> Tensor:
    """Matrices with no more rows than columns, cut into blocks of rows."""
    if x.shape[1] > x.shape[2]:
        x = x.transpose(1, 2)
    rows = x.shape[1]
    cuts = range(-(-rows // MOST_ROWS), rows // FEWEST_ROWS + 1)
    return x.unflatten(1, (next((n for n in cuts if rows % n == 0), 1), -1)).flatten(0, 1)


def _polynomials(gram: Tensor) -> Tensor:
    """What brings the singular values of x near 1, given x x^T.

    Newton-Schulz, x' = (a + b G + c G^2) x = P x with the Gram matrix G = x x^T, so G' = P G P:
    it goes on in the small matrices alone, and the product of all P is what multiplies x.
    """
    scale = (gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] + 1e-30).rsqrt()
    gram = gram * scale.square()
    product = scale
    for step in range(5):
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        polynomial.diagonal(dim1=1, dim2=2).add_(3.4445)
        product = polynomial @ product if step else polynomial * product
        if step < 4:
            gram = polynomial @ gram @ polynomial
    return product
