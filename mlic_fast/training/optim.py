"""Optimisers on flat weights, and the schedule of learning rates."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from mlic_fast.training.flat import PARTS, FlatWeights, Stack
from mlic_fast.training.run_config import TrainConfig

# MLIC++ was trained at 1e-4, then 3e-5 and 1e-5 near the end; the fractions of a run are ours.
MILESTONES = ((0.85, 0.1), (0.7, 0.3))

# Part of a run with the linear schedule after which the rate falls.
FALL = 0.65

# The transforms of a KLT start reach their learning rate after so many times the warm-up.
PATIENCE = 4

# Muon's momentum, and the part of a weight of the contexts that decays a step at a rate of 1.
MOMENTUM, DECAY = 0.95, 0.05

# Matrices of more rows are cut into blocks, each treated by itself: the cost grows with their cube.
MOST_ROWS, FEWEST_ROWS = 128, 64
SIDE = 96


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
        self._moves = torch.zeros_like(values[:muon])

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
        stacks, moves = ([s.view(flat) for s in weights.stacks] for flat in (update, self._moves))
        orthogonalise(stacks, moves, [0.2 * max(s.shape[1:]) ** 0.5 for s in weights.stacks])
        for part, run in groupby(weights.stacks, lambda stack: stack.part):
            begin, end = _extent(list(run))
            if PARTS[part] == "contexts":
                values[begin:end].mul_(1 - DECAY * rates[part])
            values[begin:end].addcmul_(self._moves[begin:end], rates[part], value=-1)

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


def _extent(stacks: Sequence[Stack]) -> tuple[int, int]:
    return stacks[0].start, stacks[-1].start + math.prod(stacks[-1].shape)


def orthogonalise(
    stacks: Sequence[Tensor], results: Sequence[Tensor], lengths: Sequence[float]
) -> None:
    """Writes to ``results`` the matrices of ``stacks``, each [n, rows, columns], with singular
    values near the stack's length.

    Stacks of different shapes share the iteration, which works on Gram matrices alone.
    """
    rows = [_rows(stack) for stack in stacks]
    groups: dict[int, list[int]] = defaultdict(list)
    for i, matrix in enumerate(rows):
        groups[_padded(matrix.shape[1])].append(i)
    for side, members in groups.items():
        counts = [len(rows[i]) for i in members]
        grams = rows[members[0]].new_zeros(sum(counts), side, side)
        for i, gram in zip(members, grams.split(counts), strict=True):
            m = rows[i].shape[1]
            torch.bmm(rows[i], rows[i].transpose(1, 2), out=gram[:, :m, :m])
        for i, product in zip(members, _polynomials(grams).split(counts), strict=True):
            m, (n, height, width) = rows[i].shape[1], stacks[i].shape
            blocks = product[:, :m, :m]
            if height <= width or n in (1, len(rows[i])):
                out = _rows(results[i])
                torch.baddbmm(out, blocks, rows[i], beta=0, alpha=lengths[i], out=out)
            else:  # blocks of columns of several matrices are no stack in memory
                wide = lengths[i] * (blocks @ rows[i])
                results[i].copy_(wide.reshape(n, width, height).transpose(1, 2))


def _padded(rows: int) -> int:
    """Side of the Gram matrices that go together: two sizes, as launches cost more than sums."""
    return SIDE if rows <= SIDE else -(-rows // MOST_ROWS) * MOST_ROWS


def _rows(x: Tensor) -> Tensor:
    """Matrices with no more rows than columns, cut into blocks of rows."""
    if x.shape[1] > x.shape[2]:
        x = x.transpose(1, 2)
    rows = x.shape[1]
    cuts = range(-(-rows // MOST_ROWS), rows // FEWEST_ROWS + 1)
    return x.unflatten(1, (next((n for n in cuts if rows % n == 0), 1), -1)).flatten(0, 1)


def _polynomials(gram: Tensor) -> Tensor:
    """The factor of x that brings its singular values near 1, given x x^T.

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
