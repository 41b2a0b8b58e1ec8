"""From symbols to latents (docs/arithmetic.md, section 5).

    hyper-latents    z[p, c] = quantise(float(symbol) + median[c])
    latents          y[p, c] = float(symbol) + mean[p, c]    at one colour

Latents are written twice: as float32, and quantised, as the layers take them. With the anchors,
which come first, the non-anchors become zero. (The residual prediction is then added by the last
of its layers, :mod:`mlic_fast.kernels.products`.) Bytes: 8 read, 6 written a value; no operations
to speak of.

    digest           sum over i of mix(bits(y[i]) + i * 0x9E3779B1)    modulo 2^32, i in (channel,
    row, column) order

the check that encoder and decoder have the same latents (docs/format.md, section 5). Any order
gives the same sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlic_fast.kernels.configs import config
from mlic_fast.kernels.functions import (
    await_launch_before,
    launch,
    quantise,
    quantise_twin,
    to_planes,
)
from mlic_fast.kernels.grid import Positions
from mlic_fast.kernels.planes import store_planes


def hyper_latents_twin(symbols: Tensor, medians: Tensor, out_scale: float) -> Tensor:
    """int32 [B, h, w, N], float32 [N] -> planes [2, B, h, w, N]."""
    return to_planes(quantise_twin(symbols.to(torch.float32) + medians, out_scale))


def decoded_twin(symbols: Tensor, means: Tensor, colour: int, latents: Tensor) -> Tensor:
    """int32 and float32 [B, H, W/2, C] -> float32 [B, H, W, C]; the others from ``latents``."""
    y = torch.zeros_like(latents) if colour else latents.clone()
    values = symbols.to(torch.float32) + means
    y[:, 0::2, colour::2] = values[:, 0::2]
    y[:, 1::2, 1 - colour :: 2] = values[:, 1::2]
    return y


@triton.jit(do_not_specialize=("positions",))
def _hyper_latents_kernel(
    symbols,
    medians,
    out,
    out_scale,
    positions,
    channels,
    out_plane,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_inside = c < channels
    at = m[:, None].to(tl.int64) * channels + c[None, :]
    mask = (m < positions)[:, None] & c_inside[None, :]
    median = tl.load(medians + c, mask=c_inside, other=0.0)[None, :]
    r = tl.load(symbols + at, mask=mask, other=0).to(tl.float32) + median
    q = quantise(r, out_scale)
    store_planes(q, out + at, out_plane, mask)


@triton.jit(do_not_specialize=("positions", "height", "width"))
def _decoded_kernel(
    symbols,
    means,
    latents,
    out,
    out_scale,
    positions,
    height,
    width,
    channels,
    means_position,
    latents_position,
    out_plane,
    out_position,
    COLOUR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (m < positions)[:, None] & (c < channels)[None, :]
    half = width // 2
    image_row = m // half
    pair = image_row * width + 2 * (m % half)
    odd = (image_row % height + COLOUR) & 1
    symbol = tl.load(symbols + m[:, None].to(tl.int64) * channels + c[None, :], mask=mask, other=0)
    mean = tl.load(
        means + m[:, None].to(tl.int64) * means_position + c[None, :], mask=mask, other=0.0
    )
    r = symbol.to(tl.float32) + mean
    q = quantise(r, out_scale)
    position = (pair + odd)[:, None].to(tl.int64)
    tl.store(latents + position * latents_position + c[None, :], r, mask=mask)
    at = position * out_position + c[None, :]
    store_planes(q, out + at, out_plane, mask)
    if COLOUR == 1:
        position = (pair + 1 - odd)[:, None].to(tl.int64)
        tl.store(latents + position * latents_position + c[None, :], tl.zeros_like(r), mask=mask)
        at = position * out_position + c[None, :]
        store_planes(tl.zeros_like(q), out + at, out_plane, mask)


@triton.jit(do_not_specialize=("positions",))
def _digest_kernel(
    latents,
    digests,
    positions,
    channels,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = tl.program_id(2)
    mask = (m < positions)[:, None] & (c < channels)[None, :]
    at = (image.to(tl.int64) * positions + m[:, None]) * channels + c[None, :]
    y = tl.load(latents + at, mask=mask, other=0.0)
    # Negative zero counts as zero.
    h = tl.where(y == 0.0, 0.0, y).to(tl.uint32, bitcast=True)
    h += (c[None, :] * positions + m[:, None]).to(tl.uint32) * 0x9E3779B1
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    h = h ^ (h >> 16)
    # A sum that stays a tensor: with NumPy 2.5 scalars of Triton's interpreter may not wrap around.
    total = tl.sum(tl.sum(tl.where(mask, h, 0).to(tl.int32, bitcast=True), 1), 0, keep_dims=True)
    tl.atomic_add(digests + image + tl.arange(0, 1), total)


def hyper_latents(symbols: Tensor, medians: Tensor, *, out: Tensor, out_scale: float) -> None:
    """Symbols of z int32 [B, h, w, N] -> planes ``out`` [2, B, h, w, N]."""
    channels = symbols.shape[-1]
    positions = symbols.numel() // channels
    block = config("elements", symbols.device, positions)
    launch(
        _hyper_latents_kernel,
        (triton.cdiv(positions, block.block), triton.cdiv(channels, block.outputs)),
        symbols,
        medians,
        out,
        out_scale,
        positions,
        channels,
        out.stride(0),
        BLOCK_M=block.block,
        BLOCK_C=block.outputs,
        num_warps=block.warps,
    )


def decoded(
    symbols: Tensor,
    means: Tensor,
    colour: int,
    grid: Positions,
    *,
    latents: Tensor,
    out: Tensor,
    out_scale: float,
) -> None:
    """Symbols and means [B, H, W/2, C] of a colour -> ``latents`` float32 [B, H, W, C], planes
    ``out``.

    Anchors (colour 1) come first: with them the other positions become zero.
    """
    channels = symbols.shape[-1]
    positions = grid.count // 2
    block = config("elements", symbols.device, positions)
    launch(
        _decoded_kernel,
        (triton.cdiv(positions, block.block), triton.cdiv(channels, block.outputs)),
        symbols,
        means,
        latents,
        out,
        out_scale,
        positions,
        grid.height,
        grid.width,
        channels,
        means.stride(-2),
        latents.stride(-2),
        out.stride(0),
        out.stride(-2),
        COLOUR=colour,
        BLOCK_M=block.block,
        BLOCK_C=block.outputs,
        num_warps=block.warps,
    )


def digest(latents: Tensor, *, out: Tensor) -> None:
    """Digests of float32 [B, H, W, M], contiguous -> int32 [B], the bits of 32-bit numbers."""
    batch, height, width, channels = latents.shape
    block = config("elements", latents.device, height * width)
    out.zero_()
    grid = triton.cdiv(height * width, block.block), triton.cdiv(channels, block.outputs), batch
    launch(
        _digest_kernel,
        grid,
        latents,
        out,
        height * width,
        channels,
        BLOCK_M=block.block,
        BLOCK_C=block.outputs,
        num_warps=block.warps,
    )
