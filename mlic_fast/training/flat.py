"""All weights of a network in one tensor, so that optimiser, clipping, average and conversion are
a few operators on one array and not a few for each of 700.

Matrices of one shape lie together: a stack for Muon is a view. Kernels lie as [out, h, w, in],
which is channels last.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

PARTS = ("transforms", "hyper", "residual", "contexts", "quantiles")
"""Parts of a model that have learning rates of their own."""

_PART_OF = {"g_a": 0, "g_s": 0, "h_a": 1, "h_s": 1, "entropy_bottleneck": 1}
_PART_OF |= {"lrp_anchor": 2, "lrp_nonanchor": 2}

# Tensors begin at multiples of this, as tensor cores want them to.
_ALIGNMENT = 8


def part_of(name: str) -> int:
    """Index in :data:`PARTS` of a parameter."""
    return 4 if is_quantile(name) else _PART_OF.get(name.partition(".")[0], 3)


def is_quantile(name: str) -> bool:
    """Whether a parameter is of the factorised prior's quantiles, which have their own loss."""
    return name.endswith(".quantiles")


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter mixes many channels: not a bias, a depthwise kernel or a table of gains,
    nor GDN's weights, which are squared where they are used.
    """
    matrix = parameter.dim() in (2, 4) and min(parameter.shape[:2]) >= 8
    return matrix and not name.endswith((".gamma", ".log_gain", ".log_inverse_gain"))


def for_muon(name: str, parameter: Tensor) -> bool:
    """Whether Muon suits a parameter: a matrix of the transforms or the contexts.

    Muon makes a small steady gradient as large as any other: hyper-latents died of it, and the
    hidden values of the residual prediction grew to thousands.
    """
    return PARTS[part_of(name)] in ("transforms", "contexts") and is_matrix(name, parameter)


def _is_exact(name: str) -> bool:
    """Whether a parameter is used in float32 whatever the precision of products."""
    return name.startswith(("gain.", "entropy_bottleneck.")) or name.endswith((".gamma", ".beta"))


class Stack(NamedTuple):
    """Matrices of one shape and part: [count, rows, columns] from ``start`` on."""

    start: int
    shape: tuple[int, int, int]
    part: int

    def view(self, flat: Tensor) -> Tensor:
        """The matrices within all values [n], [count, rows, columns]."""
        return flat[self.start : self.start + math.prod(self.shape)].view(self.shape)


class FlatWeights:
    """The parameters of ``model``, which become views, and their copies in ``network``.

    The order is: stacks, what else products take, what stays float32, quantiles.

    Attributes:
        values, gradient: float32 [n].
        leaves: of what there are gradients, in the network's precision and in the order of
            ``values``: all but the quantiles.
        stacks: matrices for Muon; they come first, up to ``muon``.
        quantiles: where the quantiles begin.
        runs: of everything from ``muon`` on, (part, begin, end) one after the other.
        layout: names in order.
    """

    def __init__(
        self, model: nn.Module, network: nn.Module, dtype: torch.dtype, muon: bool
    ) -> None:
        named = dict(model.named_parameters())

        def rank(name: str) -> int:
            if muon and for_muon(name, named[name]):
                return 0
            return 3 if is_quantile(name) else 2 if _is_exact(name) else 1

        matrices = [name for name in named if rank(name) == 0]
        matrices.sort(key=lambda name: (part_of(name), tuple(named[name].shape)))
        rest = [name for name in named if rank(name)]
        rest.sort(key=lambda name: (rank(name), part_of(name)))
        self.layout = matrices + rest
        self._shapes = {name: named[name].shape for name in self.layout}
        self._starts: dict[str, int] = {}
        self.stacks: list[Stack] = []
        ends = [0] * 4
        end = 0
        for name in self.layout:
            self._starts[name] = end
            if rank(name) == 0:
                self._stack(name, end)
            size = self._shapes[name].numel()
            end += size if rank(name) == 0 else -(-size // _ALIGNMENT) * _ALIGNMENT
            ends[rank(name)] = end
        self.muon, self._low = ends[0], max(ends[:2])
        self.quantiles = max(ends[:3])
        device = next(iter(named.values())).device
        self.values = torch.zeros(end, device=device)
        self.gradient = torch.zeros(end, device=device)
        largest = max(_ALIGNMENT, *map(math.prod, self._shapes.values()))
        self._zeros = [torch.zeros(largest, dtype=d, device=device) for d in (dtype, torch.float32)]
        self.runs: list[tuple[int, int, int]] = []
        for part, names in groupby(rest, part_of):
            begin = self._starts[next(names)]
            self.runs = [*((p, b, min(e, begin)) for p, b, e in self.runs), (part, begin, end)]
        self.attach(model, self.values)
        self._working = self.values[: self._low]
        if dtype != torch.float32:
            self._working = self._working.to(dtype)
        self.leaves: list[Tensor] = []
        for name in self.layout:
            source = self._working if rank(name) < 2 else self.values
            leaf = nn.Parameter(self.view(name, source))
            owner, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(owner), attribute, leaf)
            if not is_quantile(name):
                self.leaves.append(leaf)

    def _stack(self, name: str, start: int) -> None:
        shape = self._shapes[name]
        matrix = (shape[0], shape.numel() // shape[0])
        if self.stacks:
            last = self.stacks[-1]
            before = self._shapes[self.layout[self.layout.index(name) - 1]]
            if before == shape and last.part == part_of(name):
                self.stacks[-1] = last._replace(shape=(last.shape[0] + 1, *matrix))
                return
        self.stacks.append(Stack(start, (1, *matrix), part_of(name)))

    def view(self, name: str, flat: Tensor) -> Tensor:
        """One parameter of a tensor like ``values``, in its shape."""
        shape, start = self._shapes[name], self._starts[name]
        piece = flat[start : start + shape.numel()]
        if len(shape) < 4:
            return piece.view(shape)
        out, inner, height, width = shape
        return piece.view(out, height, width, inner).permute(0, 3, 1, 2)

    @torch.no_grad()
    def attach(self, model: nn.Module, flat: Tensor) -> None:
        """Copies the parameters of ``model`` into ``flat`` [n] and makes them views of it."""
        for name, parameter in model.named_parameters():
            view = self.view(name, flat)
            view.copy_(parameter)
            parameter.data = view

    def refresh(self) -> None:
        """Copies the values into the leaves that have another precision."""
        if self._working.dtype != torch.float32:
            self._working.copy_(self.values[: self._low])

    def set_gradient(self, gradients: tuple[Tensor | None, ...], quantiles: Tensor) -> None:
        """Takes the gradients of the leaves, None where nothing depends on one, and that of the
        quantiles.
        """
        pieces: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, gradient in zip(self.layout, gradients, strict=False):
            start, size = self._starts[name], self._shapes[name].numel()
            into, zeros = pieces[start >= self._low], self._zeros[start >= self._low]
            if gradient is None:
                gradient = zeros[:size]
            order = gradient.permute(0, 2, 3, 1) if gradient.dim() == 4 else gradient
            into.append(order.reshape(-1))
            gap = -size % _ALIGNMENT if start >= self.muon else 0
            if gap:
                into.append(zeros[:gap])
        # Not into the gradient at once: pieces of another precision would be copied one by one.
        self.gradient[: self._low].copy_(torch.cat(pieces[0]))
        self.gradient[self._low : self.quantiles].copy_(torch.cat(pieces[1]))
        self.gradient[self.quantiles :][: quantiles.numel()] = quantiles.flatten()
