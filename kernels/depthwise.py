"""Depthwise 3x3 convolutions (docs/arithmetic.md, section 2).

    sum[y, x, c] = sum over u, v of q[y + u - 1, x + v - 1, c] * W[u, v, c]
    out[y, x, c] = quantise(gelu?(bias[c] + float(sum[y, x, c]) * scale[c]))

zeros outside. Planes int8 [2, B, H, W, C] -> [2, B, H, W, C]. No matrix product: 9 multiplications
a value, bound by instructions. Bytes, with R rows a program: 4 a value from device memory,
6 (R + 2) / R from the caches.
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
from mlic_fast.kernels.configs import config
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
from mlic_fast.kernels.layouts import Grid
from mlic_fast.kernels.planes import Planes, load_planes, store_planes


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


_SIZES = ("positions", "height", "width", "gelu_after")


@triton.jit(do_not_specialize=_SIZES)
def _depthwise_kernel(
    x,
    weights,
    out,
    out_scale,
    positions,
    height,
    width,
    channels,
    gelu_after,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A program has BLOCK_M columns of groups of ROWS rows: each row that it loads is a tap of up
    to three rows of sums.
    """
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = n < channels
    groups = tl.cdiv(height, ROWS)
    column = m % width
    group = m // width
    i_image = group // groups
    first_row = group % groups * ROWS
    position = (i_image * height + first_row) * width + column
    mask_m = position < positions
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
            store_planes(quantise(r, scale), out.ptr + offset, out.stride_plane, mask)
        above = middle
        middle = below


def depthwise(
    x: Tensor,
    weights: DepthwiseWeights,
    grid: Grid,
    *,
    gelu_after: bool = False,
    out: Tensor,
    out_scale: Tensor,
) -> None:
    """Planes ``x`` -> planes ``out``, both [2, B, H, W, C]; ``out_scale``: float32 [C]."""
    channels = len(weights.scale)
    block = config("depthwise", x.device, grid.count)
    columns = grid.batch * triton.cdiv(grid.height, block.rows) * grid.width
    launch(
        _depthwise_kernel,
        (triton.cdiv(columns, block.block), triton.cdiv(channels, block.outputs)),
        Planes.of(x),
        weights,
        Planes.of(out),
        out_scale,
        grid.count,
        grid.height,
        grid.width,
        channels,
        int(gelu_after),
        ROWS=block.rows,
        BLOCK_M=block.block,
        BLOCK_N=block.outputs,
        num_warps=block.warps,
    )
