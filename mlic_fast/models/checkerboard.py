"""The checkerboard of MLIC: anchors where row + column is odd, non-anchors where it is even.

A half slice is *squeezed* to [B, C, H, W/2] for coding: even rows keep columns 1, 3, 5 .. for
anchors and 0, 2, 4 .. for non-anchors, odd rows the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlic_fast.models.parity import Parity


def keep(y: Tensor, parity: Parity) -> Tensor:
    """y at the positions of one colour, zero elsewhere. [B, C, H, W]."""
    half = torch.zeros_like(y)
    half[..., 0::2, parity::2] = y[..., 0::2, parity::2]
    half[..., 1::2, 1 - parity :: 2] = y[..., 1::2, 1 - parity :: 2]
    return half


def squeeze(y: Tensor, parity: Parity) -> Tensor:
    """[B, C, H, W] -> the positions of one colour, [B, C, H, W/2]. W must be even."""
    half = y.new_empty(*y.shape[:-1], y.shape[-1] // 2)
    half[..., 0::2, :] = y[..., 0::2, parity::2]
    half[..., 1::2, :] = y[..., 1::2, 1 - parity :: 2]
    return half


def unsqueeze(half: Tensor, parity: Parity) -> Tensor:
    """Inverse of :func:`squeeze`, zero at the other colour. [B, C, H, W/2] -> [B, C, H, W]."""
    y = half.new_zeros(*half.shape[:-1], half.shape[-1] * 2)
    y[..., 0::2, parity::2] = half[..., 0::2, :]
    y[..., 1::2, 1 - parity :: 2] = half[..., 1::2, :]
    return y
