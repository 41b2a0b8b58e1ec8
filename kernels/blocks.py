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

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlic_fast.engine.exact_transforms import HALVINGS, exact_gain
from mlic_fast.kernels.configs import config
from mlic_fast.kernels.functions import (
    await_launch_before,
    launch,
    quantise,
    quantise_twin,
    to_planes,
)
from mlic_fast.kernels.planes import store_planes

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


@triton.jit(do_not_specialize=("positions", "height", "width"))
def _to_blocks_kernel(
    images,
    out,
    positions,
    height,
    width,
    out_plane,
    VALUES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``height`` and ``width`` in blocks."""
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (m < positions)[:, None] & (c < VALUES)[None, :]
    image_row = m // width
    plane = (image_row // height * 3)[:, None] + (c // 64)[None, :]
    line = plane * (8 * height) + (image_row % height * 8)[:, None] + (c // 8 % 8)[None, :]
    at = line.to(tl.int64) * (8 * width) + (m % width * 8)[:, None] + (c % 8)[None, :]
    q = tl.load(images + at, mask=mask, other=0).to(tl.int32)
    store_planes(q, out + m[:, None].to(tl.int64) * VALUES + c[None, :], out_plane, mask)


@triton.jit
def _gain(logs, rate, rates, c, channels, SQUARINGS: tl.constexpr):
    """exp of the logarithms float64 [rates, C] at a rate, as float32."""
    last = rates - 1
    at = tl.load(rate).to(tl.float64)
    at = tl.where(at > 0.0, at, 0.0)
    at = tl.where(at < last, at, last.to(tl.float64))
    low = tl.minimum(at.to(tl.int32), tl.maximum(last - 1, 0))
    high = tl.minimum(low + 1, last)
    weight = at - low.to(tl.float64)
    x = tl.load(logs + low * channels + c, mask=c < channels, other=0.0) * (1.0 - weight)
    x = x + tl.load(logs + high * channels + c, mask=c < channels, other=0.0) * weight
    t = x * _SMALL
    p = tl.full(c.shape, 1.0, tl.float64)
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
    logs,
    rate,
    real,
    out,
    out_scale,
    rates,
    positions,
    channels,
    out_plane,
    SQUARINGS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_inside = c < channels
    mask = (m < positions)[:, None] & c_inside[None, :]
    at = m[:, None].to(tl.int64) * channels + c[None, :]
    factor = tl.load(factors + c, mask=c_inside, other=0.0)
    if logs is not None:
        factor = _gain(logs, rate, rates, c, channels, SQUARINGS) * factor
    r = tl.load(x + at, mask=mask, other=0.0) * factor[None, :]
    tl.store(real + at, r, mask=mask)
    if second is not None:
        r = r * tl.load(second + c, mask=c_inside, other=0.0)[None, :]
    store_planes(quantise(r, out_scale), out + at, out_plane, mask)


# -- launchers --------------------------------------------------------------------------------


def to_blocks(images: Tensor, *, out: Tensor) -> None:
    """uint8 [B, 3, H, W], contiguous -> planes ``out`` [2, B, H/8, W/8, 192], contiguous."""
    batch, _, height, width = images.shape
    positions = batch * (height // SIDE) * (width // SIDE)
    block = config("elements", images.device, positions)
    launch(
        _to_blocks_kernel,
        (triton.cdiv(positions, block.block), triton.cdiv(VALUES, block.outputs)),
        images,
        out,
        positions,
        height // SIDE,
        width // SIDE,
        out.stride(0),
        VALUES=VALUES,
        BLOCK_M=block.block,
        BLOCK_C=block.outputs,
        num_warps=block.warps,
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
    block = config("elements", x.device, positions)
    launch(
        _scaled_kernel,
        (triton.cdiv(positions, block.block), triton.cdiv(channels, block.outputs)),
        x,
        factors,
        second,
        logs,
        rate,
        real,
        out,
        out_scale,
        0 if logs is None else len(logs),
        positions,
        channels,
        out.stride(0),
        SQUARINGS=HALVINGS,
        BLOCK_M=block.block,
        BLOCK_C=block.outputs,
        num_warps=block.warps,
    )
