"""Halves of the checkerboard in few launches, in both directions.

Two latents of a row side by side hold one of each colour, so a half is [B, C, H, W / 2] as in
:mod:`mlic_fast.models.checkerboard`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mlic_fast.models.checkerboard import Parity, keep


@lru_cache(maxsize=8)
def colour_mask(height: int, width: int, colour: Parity, device: torch.device) -> Tensor:
    """1 at the positions of a colour, else 0: float32 [1, 1, H, W]."""
    return keep(torch.ones(1, 1, height, width), colour).to(device)


@lru_cache(maxsize=8)
def _odd_column(colour: Parity, device: torch.device) -> Tensor:
    """Whether a colour has the second of two columns, in even and in odd rows: [2, 1, 1]."""
    return torch.tensor([colour == 1, colour == 0], device=device)[:, None, None]


@lru_cache(maxsize=16)
def _columns(colour: Parity, device: torch.device, dtype: torch.dtype) -> Tensor:
    """1 at the column that a colour has, in even and in odd rows: [2, 1, 2, 1]."""
    odd = _odd_column(colour, device)
    return torch.stack([~odd, odd], 2).to(dtype)


def _pairs(x: Tensor) -> Tensor:
    """[B, C, H, W] as [B, H / 2, rows of a pair, W / 2, columns of a pair, C]."""
    return x.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))


def _take(x: Tensor, colour: Parity) -> Tensor:
    pairs = _pairs(x)
    half = torch.where(_odd_column(colour, x.device), pairs[..., 1, :], pairs[..., 0, :])
    return half.flatten(1, 2).permute(0, 3, 1, 2)


def _spread(half: Tensor, colour: Parity) -> Tensor:
    pairs = half.permute(0, 2, 3, 1).unflatten(1, (-1, 2))[..., None, :]
    pairs = pairs * _columns(colour, half.device, half.dtype)
    return pairs.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


#: One half of the positions -> a map, or the map -> its half.
_Map = Callable[[Tensor, Parity], Tensor]


class _Checkerboard(torch.autograd.Function):
    """One of two maps, each of which is the other's transpose; that one takes gradients back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, colour: Parity, forth: _Map, back: _Map) -> Tensor:
        ctx.colour, ctx.back = colour, back
        return forth(x, colour)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(gradient, ctx.colour), None, None, None


def squeeze(x: Tensor, colour: Parity) -> Tensor:
    """[B, C, H, W] -> [B, C, H, W / 2], the positions of one colour."""
    half: Tensor = _Checkerboard.apply(x, colour, _take, _spread)
    return half


def unsqueeze(half: Tensor, colour: Parity) -> Tensor:
    """The inverse of :func:`squeeze`, with zeros at the other colour."""
    x: Tensor = _Checkerboard.apply(half, colour, _spread, _take)
    return x
