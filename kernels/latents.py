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

from mlic_fast.kernels.functions import (
    await_launch_before,
    launch_tiles,
    quantise,
    quantise_twin,
    to_planes,
)
from mlic_fast.kernels.layouts import Grid
from mlic_fast.kernels.planes import Planes, Rows, store_planes, tile_of


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
    stride_plane,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    await_launch_before()
    m, n, mask = tile_of(positions, channels, BLOCK_M, BLOCK_N)
    offset = m[:, None].to(tl.int64) * channels + n[None, :]  # [BLOCK_M, BLOCK_N]
    median = tl.load(medians + n, mask=n < channels, other=0.0)[None, :]  # [1, BLOCK_N]
    r = tl.load(symbols + offset, mask=mask, other=0).to(tl.float32) + median  # [BLOCK_M, BLOCK_N]
    store_planes(quantise(r, out_scale), out + offset, stride_plane, mask)


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
    COLOUR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    await_launch_before()
    m, n, mask = tile_of(positions, channels, BLOCK_M, BLOCK_N)
    half_width = width // 2
    image_row = m // half_width
    pair = image_row * width + 2 * (m % half_width)
    odd = (image_row % height + COLOUR) & 1
    p_symbol = symbols + m[:, None].to(tl.int64) * channels + n[None, :]
    p_mean = means.ptr + m[:, None].to(tl.int64) * means.stride_position + n[None, :]
    symbol = tl.load(p_symbol, mask=mask, other=0)  # [BLOCK_M, BLOCK_N]
    mean = tl.load(p_mean, mask=mask, other=0.0)  # [BLOCK_M, BLOCK_N]
    r = symbol.to(tl.float32) + mean
    q = quantise(r, out_scale)
    _store(r, q, latents, out, pair + odd, n, mask)
    if COLOUR == 1:
        _store(tl.zeros_like(r), tl.zeros_like(q), latents, out, pair + 1 - odd, n, mask)


@triton.jit
def _store(r, q, latents, out, position, n, mask):
    """r and q [BLOCK_M, BLOCK_N] at positions of the full grid, [BLOCK_M]."""
    position = position[:, None].to(tl.int64)
    tl.store(latents.ptr + position * latents.stride_position + n[None, :], r, mask=mask)
    p_out = out.ptr + position * out.stride_position + n[None, :]
    store_planes(q, p_out, out.stride_plane, mask)


@triton.jit(do_not_specialize=("positions",))
def _digest_kernel(
    latents,
    digests,
    positions,
    channels,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    await_launch_before()
    i_image = tl.program_id(2)
    m, n, mask = tile_of(positions, channels, BLOCK_M, BLOCK_N)
    offset = (i_image.to(tl.int64) * positions + m[:, None]) * channels + n[None, :]
    y = tl.load(latents + offset, mask=mask, other=0.0)  # [BLOCK_M, BLOCK_N]
    # Negative zero counts as zero.
    h = tl.where(y == 0.0, 0.0, y).to(tl.uint32, bitcast=True)
    h += (n[None, :] * positions + m[:, None]).to(tl.uint32) * 0x9E3779B1
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    h = h ^ (h >> 16)
    # A sum that stays a tensor: with NumPy 2.5 scalars of Triton's interpreter may not wrap around.
    total = tl.sum(tl.sum(tl.where(mask, h, 0).to(tl.int32, bitcast=True), 1), 0, keep_dims=True)
    tl.atomic_add(digests + i_image + tl.arange(0, 1), total)


def hyper_latents(symbols: Tensor, medians: Tensor, *, out: Tensor, out_scale: float) -> None:
    """Symbols of z int32 [B, h, w, N] -> planes ``out`` [2, B, h, w, N]."""
    channels = symbols.shape[-1]
    positions = symbols.numel() // channels
    launch_tiles(
        _hyper_latents_kernel,
        "elements",
        positions,
        channels,
        symbols,
        medians,
        out,
        out_scale,
        positions,
        channels,
        out.stride(0),
    )


def decoded(
    symbols: Tensor,
    means: Tensor,
    colour: int,
    grid: Grid,
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
    launch_tiles(
        _decoded_kernel,
        "elements",
        positions,
        channels,
        symbols,
        Rows.of(means),
        Rows.of(latents),
        Planes.of(out),
        out_scale,
        positions,
        grid.height,
        grid.width,
        channels,
        COLOUR=colour,
    )


def digest(latents: Tensor, *, out: Tensor) -> None:
    """Digests of float32 [B, H, W, M], contiguous -> int32 [B], the bits of 32-bit numbers."""
    batch, height, width, channels = latents.shape
    out.zero_()
    launch_tiles(
        _digest_kernel,
        "elements",
        height * width,
        channels,
        latents,
        out,
        height * width,
        channels,
        images=batch,
    )
