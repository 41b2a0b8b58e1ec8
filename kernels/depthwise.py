"""Depthwise 3x3 convolutions (docs/arithmetic.md, section 2).

    sum[y, x, c] = sum over u, v of q[y + u - 1, x + v - 1, c] * W[u, v, c]
    out[y, x, c] = quantise(gelu?(bias[c] + float(sum[y, x, c]) * scale[c]))

zeros outside. Planes int8 [2, B, H, W, C] -> [2, B, H, W, C]. No matrix product: 9 multiplications
a value, bound by instructions. Bytes, with R rows a program: 4 a value from device memory,
6 (R + 2) / R from the caches.

Of channels that linear attention takes as keys, each program also stores the maxima of its values,
and the first ones of an image zero the attention's sums (:mod:`mlic_fast.kernels.linear_attention`,
which would else need a launch for both).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mlic_fast.engine.packing.packed import Layer
from mlic_fast.kernels.configs import Config, config
from mlic_fast.kernels.functions import (
    await_launch_before,
    from_planes,
    gelu,
    gelu_twin,
    join_bytes,
    launch,
    quantise,
    quantise_twin,
    to_planes,
)
from mlic_fast.kernels.layouts import Grid, KeySums
from mlic_fast.kernels.planes import ALL, Planes, load_planes, padded, read_colour, store_planes

#: Less than any value of an activation: the maximum of none.
LEAST = -32768


class Keys(NamedTuple):
    """The channels ``first`` and following of a result that are keys of linear attention, at the
    positions of one colour or ALL, and what they fill.
    """

    first: int
    colour: int
    sums: KeySums


class DepthwiseWeights(NamedTuple):
    """Of one or several layers side by side.

    ``taps`` int16 [9, C]; ``scale`` float32 [C], times 2^-exponent of the input; ``bias`` float32
    [C].
    """

    taps: Tensor
    scale: Tensor
    bias: Tensor

    @classmethod
    def pack(
        cls, layers: Sequence[Layer], exponents: Sequence[int], device: torch.device
    ) -> DepthwiseWeights:
        """``exponents``: of the input of each layer."""
        segments = [layer.segments[0] for layer in layers]
        taps = np.concatenate([s.weight[..., 0].reshape(-1, 9) for s in segments]).T
        scale = np.concatenate(
            [
                s.scale * np.ldexp(np.float32(1), -e)
                for s, e in zip(segments, exponents, strict=True)
            ]
        )
        bias = np.concatenate([layer.bias for layer in layers])
        return cls(
            *(torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in (taps, scale, bias))
        )


def depthwise_twin(
    x: Tensor, weights: DepthwiseWeights, out_scale: Tensor, gelu_after: bool = False
) -> Tensor:
    """Planes -> planes."""
    q = torch.nn.functional.pad(from_planes(x), (0, 0, 1, 1, 1, 1))
    _, _, height, width, _ = x.shape
    total = torch.zeros(x.shape[1:], dtype=torch.int32, device=x.device)
    for tap, w in enumerate(weights.taps.to(torch.int32)):
        u, v = divmod(tap, 3)
        total += q[:, u : u + height, v : v + width] * w
    r = weights.bias + total.to(torch.float32) * weights.scale
    return to_planes(quantise_twin(gelu_twin(r) if gelu_after else r, out_scale))


def key_sums_twin(keys: Tensor, colour: int, heads: int) -> KeySums:
    """Of planes [2, B, H, W, C], all positions as one block."""
    _, batch, _, _, channels = keys.shape
    depth = channels // heads
    return KeySums(
        read_colour(keys, colour).amax(1, keepdim=True),
        torch.zeros((batch, heads, depth, depth), dtype=torch.int64, device=keys.device),
        torch.zeros((batch, heads, depth), dtype=torch.int64, device=keys.device),
    )


_SIZES = ("height", "width", "gelu_after")
_LEAST = tl.constexpr(LEAST)


@triton.jit(do_not_specialize=_SIZES)
def _depthwise_kernel(
    x,
    weights,
    out,
    out_scale,
    sums,
    height,
    width,
    channels,
    first_key,
    keys,
    gelu_after,
    DEPTH: tl.constexpr,
    COLOUR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A program has BLOCK_M columns of groups of ROWS rows: each row that it loads is a tap of up
    to three rows of sums. DEPTH is that of a head of the keys, 0 where there are none.
    """
    await_launch_before()
    i_block, i_image = tl.program_id(0), tl.program_id(2)
    m = i_block * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = n < channels
    column = m % width
    first_row = m // width * ROWS
    position = (i_image * height + first_row) * width + column
    mask_m = first_row < height
    if DEPTH > 0:
        key = n - first_key  # [BLOCK_N]
        mask_key = (key >= 0) & (key < keys)
        first_n = tl.program_id(1) * BLOCK_N
        has_keys = (first_n < first_key + keys) & (first_n + BLOCK_N > first_key)
        if has_keys & (i_block == 0):
            d = tl.arange(0, BLOCK_D)
            i_key = i_image * keys + key
            p_context = sums.contexts + i_key[:, None] * DEPTH + d[None, :]  # [BLOCK_N, BLOCK_D]
            mask_context = mask_key[:, None] & (d < DEPTH)[None, :]
            tl.store(p_context, tl.zeros((BLOCK_N, BLOCK_D), tl.int64), mask=mask_context)
            tl.store(sums.totals + i_key, tl.zeros((BLOCK_N,), tl.int64), mask=mask_key)
        top = tl.full((BLOCK_M, BLOCK_N), _LEAST, tl.int32)
    factor = tl.load(weights.scale + n, mask=mask_n, other=0.0)[None, :]  # [1, BLOCK_N]
    bias = tl.load(weights.bias + n, mask=mask_n, other=0.0)[None, :]
    scale = tl.load(out_scale + n, mask=mask_n, other=0.0)[None, :]
    # Sums of the row before, of the row, and of the row after: [BLOCK_M, BLOCK_N].
    above = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    middle = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for i_row in tl.static_range(-1, ROWS + 1):
        row = first_row + i_row
        mask_row = mask_m & (row >= 0) & (row < height)
        below = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
        for dx in tl.static_range(-1, 2):
            tap_column = column + dx
            tap_position = (position + i_row * width + dx)[:, None].to(tl.int64)
            offset = tap_position * x.stride_position + n[None, :]
            mask = (mask_row & (tap_column >= 0) & (tap_column < width))[:, None] & mask_n[None, :]
            low, high = load_planes(x.ptr, offset, x.stride_plane, mask)
            q = join_bytes(low, high)  # [BLOCK_M, BLOCK_N]
            p_tap = weights.taps + (dx + 1) * channels + n
            if i_row < ROWS - 1:
                below += q * tl.load(p_tap, mask=mask_n, other=0).to(tl.int32)[None, :]
            if (i_row >= 0) & (i_row < ROWS):
                w = tl.load(p_tap + 3 * channels, mask=mask_n, other=0).to(tl.int32)
                middle += q * w[None, :]
            if i_row >= 1:
                w = tl.load(p_tap + 6 * channels, mask=mask_n, other=0).to(tl.int32)
                above += q * w[None, :]
        if i_row >= 1:
            r = bias + above.to(tl.float32) * factor  # [BLOCK_M, BLOCK_N]
            if gelu_after:
                r = gelu(r)
            out_position = (position + (i_row - 1) * width)[:, None].to(tl.int64)
            offset = out_position * out.stride_position + n[None, :]
            mask = (mask_m & (row - 1 < height))[:, None] & mask_n[None, :]
            q_out = quantise(r, scale)
            store_planes(q_out, out.ptr + offset, out.stride_plane, mask)
            if DEPTH > 0:
                mask_key_m = mask_m & (row - 1 < height)
                if COLOUR >= 0:
                    mask_key_m &= ((row - 1 + column + COLOUR) & 1) == 0
                top = tl.maximum(top, tl.where(mask_key_m[:, None], q_out, _LEAST))
        above = middle
        middle = below
    if DEPTH > 0:
        first = (i_image * tl.num_programs(0) + i_block) * keys
        if has_keys:
            tl.store(sums.maxima + first + key, tl.max(top, axis=0), mask=mask_key)


def new_key_sums(grid: Grid, heads: int, depth: int, device: torch.device) -> KeySums:
    """Room for what a launch over this grid gives of so many heads of keys."""
    blocks, _ = _blocks(grid, device)
    shape = (grid.batch, heads, depth)
    return KeySums(
        torch.empty((grid.batch, blocks, heads * depth), dtype=torch.int32, device=device),
        torch.empty((*shape, depth), dtype=torch.int64, device=device),
        torch.empty(shape, dtype=torch.int64, device=device),
    )


def _blocks(grid: Grid, device: torch.device) -> tuple[int, Config]:
    """Programs along the positions of an image, and their configuration."""
    block = config("depthwise", device, grid.count)
    return triton.cdiv(triton.cdiv(grid.height, block.rows) * grid.width, block.block), block


def depthwise(
    x: Tensor,
    weights: DepthwiseWeights,
    grid: Grid,
    *,
    gelu_after: bool = False,
    keys: Keys | None = None,
    out: Tensor,
    out_scale: Tensor,
) -> None:
    """Planes ``x`` -> planes ``out``, both [2, B, H, W, C]; ``out_scale``: float32 [C].

    ``keys``: the channels, if any, that linear attention takes as keys; their sums are filled, made
    by :func:`new_key_sums`.
    """
    channels = len(weights.scale)
    blocks, block = _blocks(grid, x.device)
    first, colour, sums = keys or (0, ALL, None)
    depth = sums.contexts.shape[-1] if sums else 0
    launch(
        _depthwise_kernel,
        (blocks, triton.cdiv(channels, block.outputs), grid.batch),
        Planes.of(x),
        weights,
        Planes.of(out),
        out_scale,
        sums,
        grid.height,
        grid.width,
        channels,
        first,
        sums.maxima.shape[-1] if sums else 0,
        int(gelu_after),
        DEPTH=depth,
        COLOUR=colour,
        ROWS=block.rows,
        BLOCK_M=block.block,
        BLOCK_N=block.outputs,
        BLOCK_D=padded(depth),
        num_warps=block.warps,
    )
