"""Where block transforms begin and end (docs/arithmetic.md, section 9). Their layers are products
and depthwise convolutions (:mod:`mlic_fast.kernels.products`, :mod:`mlic_fast.kernels.depthwise`).

    blocks    q[p, 64c + 8v + u] = colour c of row v and column u of block p, 0 .. 255
    scaled    r[p, c] = x[p, c] * (float(exp(log_gain[c] at the rate)) * factor[c])
              q[p, c] = quantise(r[p, c] * second[c])

Bytes a value: blocks 1 read, 2 written; scaled 4 read, 4 and 2 written. The exponential is that of
:func:`mlic_fast.engine.exact_transforms.exact_exp`, about 60 operations in float64 for each channel
of a program.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlic_fast.engine.exact_transforms import HALVINGS, exact_gain
from mlic_fast.kernels.functions import (
    await_launch_before,
    launch_tiles,
    quantise,
    quantise_twin,
    to_planes,
)
from mlic_fast.kernels.planes import store_planes, tile_of

#: Rows and columns of a block, and the values of one.
SIDE, VALUES = 8, 192

_SMALL = tl.constexpr(2.0**-HALVINGS)


# -- twins ------------------------------------------------------------------------------------


def to_blocks_twin(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> planes [2, B, H/8, W/8, 192]."""
    rows = images.unflatten(3, (-1, SIDE)).unflatten(2, (-1, SIDE))
    return to_planes(rows.permute(0, 2, 4, 1, 3, 5).flatten(3))


def scaled_twin(
    x: Tensor,
    factors: Tensor,
    second: Tensor | None,
    logs: Tensor | None,
    rate: Tensor | None,
    out_scale: float,
) -> tuple[Tensor, Tensor]:
    """float32 [.., C] -> float32 [.., C], planes [2, .., C]."""
    if logs is not None and rate is not None:
        gain = exact_gain(logs.cpu().numpy(), float(rate))
        factors = torch.from_numpy(gain).to(factors.device) * factors
    r = x * factors
    return r, to_planes(quantise_twin(r if second is None else r * second, out_scale))


# -- kernels ----------------------------------------------------------------------------------


class _Gains(NamedTuple):
    """Logarithms float64 [rates, C], and the rate float32 [1] to take them at."""

    logs: Tensor
    rate: Tensor


@triton.jit(do_not_specialize=("positions", "height", "width"))
def _to_blocks_kernel(
    images,
    out,
    positions,
    height,
    width,
    stride_plane,
    VALUES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``height`` and ``width`` in blocks."""
    await_launch_before()
    m, n, mask = tile_of(positions, VALUES, BLOCK_M, BLOCK_N)
    image_row = m // width
    colour_plane = (image_row // height * 3)[:, None] + (n // 64)[None, :]
    line = colour_plane * (8 * height) + (image_row % height * 8)[:, None] + (n // 8 % 8)[None, :]
    offset = line.to(tl.int64) * (8 * width) + (m % width * 8)[:, None] + (n % 8)[None, :]
    q = tl.load(images + offset, mask=mask, other=0).to(tl.int32)  # [BLOCK_M, BLOCK_N]
    store_planes(q, out + m[:, None].to(tl.int64) * VALUES + n[None, :], stride_plane, mask)


@triton.jit
def _gain(gains, rates, n, channels, SQUARINGS: tl.constexpr):
    """exp of the logarithms at the rate, float32 [BLOCK_N]."""
    last = rates - 1
    rate = tl.load(gains.rate).to(tl.float64)
    rate = tl.where(rate > 0.0, rate, 0.0)
    rate = tl.where(rate < last, rate, last.to(tl.float64))
    low = tl.minimum(rate.to(tl.int32), tl.maximum(last - 1, 0))
    high = tl.minimum(low + 1, last)
    weight = rate - low.to(tl.float64)
    mask = n < channels
    x = tl.load(gains.logs + low * channels + n, mask=mask, other=0.0) * (1.0 - weight)
    x = x + tl.load(gains.logs + high * channels + n, mask=mask, other=0.0) * weight
    t = x * _SMALL
    p = tl.full(n.shape, 1.0, tl.float64)
    for i in tl.static_range(8):
        p = p * (t * (1.0 / (8 - i))) + 1.0
    for _ in tl.static_range(SQUARINGS):
        p = p * p
    return p.to(tl.float32)


@triton.jit(do_not_specialize=("positions", "rates"))
def _scaled_kernel(
    x,
    factors,
    second,
    gains,
    rates,
    real,
    out,
    out_scale,
    positions,
    channels,
    stride_plane,
    SQUARINGS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    await_launch_before()
    m, n, mask = tile_of(positions, channels, BLOCK_M, BLOCK_N)
    offset = m[:, None].to(tl.int64) * channels + n[None, :]  # [BLOCK_M, BLOCK_N]
    factor = tl.load(factors + n, mask=n < channels, other=0.0)  # [BLOCK_N]
    if gains is not None:
        factor = _gain(gains, rates, n, channels, SQUARINGS) * factor
    r = tl.load(x + offset, mask=mask, other=0.0) * factor[None, :]  # [BLOCK_M, BLOCK_N]
    tl.store(real + offset, r, mask=mask)
    if second is not None:
        r = r * tl.load(second + n, mask=n < channels, other=0.0)[None, :]
    store_planes(quantise(r, out_scale), out + offset, stride_plane, mask)


# -- launchers --------------------------------------------------------------------------------


def to_blocks(images: Tensor, *, out: Tensor) -> None:
    """uint8 [B, 3, H, W], contiguous -> planes ``out`` [2, B, H/8, W/8, 192], contiguous."""
    batch, _, height, width = images.shape
    positions = batch * (height // SIDE) * (width // SIDE)
    launch_tiles(
        _to_blocks_kernel,
        "elements",
        positions,
        VALUES,
        images,
        out,
        positions,
        height // SIDE,
        width // SIDE,
        out.stride(0),
        VALUES=VALUES,
    )


def scaled(
    x: Tensor,
    factors: Tensor,
    second: Tensor | None = None,
    logs: Tensor | None = None,
    rate: Tensor | None = None,
    *,
    real: Tensor,
    out: Tensor,
    out_scale: float,
) -> None:
    """float32 ``x`` [B, H, W, C] times ``factors`` -> ``real``, which may be ``x``; that times
    ``second`` -> planes ``out`` [2, B, H, W, C]. All are contiguous.

    With ``logs``, float64 [rates, C], the gains at ``rate`` [1] multiply the factors first.
    """
    channels = x.shape[-1]
    positions = x.numel() // channels
    gains = None if logs is None or rate is None else _Gains(logs, rate)
    launch_tiles(
        _scaled_kernel,
        "elements",
        positions,
        channels,
        x,
        factors,
        second,
        gains,
        0 if logs is None else len(logs),
        real,
        out,
        out_scale,
        positions,
        channels,
        out.stride(0),
        SQUARINGS=HALVINGS,
    )
