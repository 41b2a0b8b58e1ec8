"""Depthwise 3x3 convolutions (docs/arithmetic.md, section 2).

    sum[y, x, c] = sum over u, v of q[y + u - 1, x + v - 1, c] * W[u, v, c]
    out[y, x, c] = quantise(gelu?(bias[c] + float(sum[y, x, c]) * scale[c]))

zeros outside. Planes int8 [2, B, H, W, C] -> [2, B, H, W, C]. No matrix product: 9 multiplications
a value, bound by instructions. Bytes, with R rows a program: 4 a value from device memory,
6 (R + 2) / R from the caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from mlic_fast.kernels.grid import Positions
from mlic_fast.kernels.planes import store_planes


@dataclass(frozen=True)
class DepthwiseWeights:
    """Of one or several layers side by side.

    ``taps`` int16 [9, C]; ``scale`` float32 [C], times 2^-exponent of the input; ``bias`` float32
    [C].
    """

    taps: Tensor
    scale: Tensor
    bias: Tensor


def pack_weights(
    layers: Sequence[Layer], exponents: Sequence[int], device: torch.device
) -> DepthwiseWeights:
    """``exponents``: of the input of each layer."""
    segments = [layer.segments[0] for layer in layers]
    taps = np.concatenate([s.weight[..., 0].reshape(-1, 9) for s in segments]).T
    scale = np.concatenate(
        [s.scale * np.ldexp(np.float32(1), -e) for s, e in zip(segments, exponents, strict=True)]
    )
    bias = np.concatenate([layer.bias for layer in layers])
    return DepthwiseWeights(
        *(torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in (taps, scale, bias))
    )


def depthwise_twin(
    x: Tensor, weights: DepthwiseWeights, out_scale: Tensor, activation: bool = False
) -> Tensor:
    """Planes -> planes."""
    q = torch.nn.functional.pad(from_planes(x), (0, 0, 1, 1, 1, 1))
    _, _, height, width, _ = x.shape
    total = torch.zeros(x.shape[1:], dtype=torch.int32, device=x.device)
    for tap, w in enumerate(weights.taps.to(torch.int32)):
        u, v = divmod(tap, 3)
        total += q[:, u : u + height, v : v + width] * w
    r = weights.bias + total.to(torch.float32) * weights.scale
    return to_planes(quantise_twin(gelu_twin(r) if activation else r, out_scale))


_SIZES = ("positions", "height", "width", "gelu_after")


@triton.jit(do_not_specialize=_SIZES)
def _depthwise_kernel(
    x,
    taps,
    scale,
    bias,
    out,
    out_scale,
    positions,
    height,
    width,
    channels,
    gelu_after,
    x_plane,
    x_position,
    out_plane,
    out_position,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A program has BLOCK_M columns of groups of ROWS rows: each row that it loads is a tap of up
    to three rows of sums.
    """
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_inside = c < channels
    groups = tl.cdiv(height, ROWS)
    column = m % width
    group = m // width
    image = group // groups
    first = group % groups * ROWS
    position = (image * height + first) * width + column
    m_inside = position < positions
    factor = tl.load(scale + c, mask=c_inside, other=0.0)[None, :]
    start = tl.load(bias + c, mask=c_inside, other=0.0)[None, :]
    to = tl.load(out_scale + c, mask=c_inside, other=0.0)[None, :]
    above = tl.zeros((BLOCK_M, BLOCK_C), tl.int32)  # the sums of row - 1, and of row
    here = tl.zeros((BLOCK_M, BLOCK_C), tl.int32)
    for row in tl.static_range(-1, ROWS + 1):
        y = first + row
        y_inside = m_inside & (y >= 0) & (y < height)
        below = tl.zeros((BLOCK_M, BLOCK_C), tl.int32)
        for dx in tl.static_range(-1, 2):
            z = column + dx
            at = (position + row * width + dx)[:, None].to(tl.int64) * x_position + c[None, :]
            mask = (y_inside & (z >= 0) & (z < width))[:, None] & c_inside[None, :]
            low = tl.load(x + at, mask=mask, other=0)
            high = tl.load(x + x_plane + at, mask=mask, other=0)
            q = join_bytes(low, high)
            tap = taps + (dx + 1) * channels + c
            if row < ROWS - 1:
                below += q * tl.load(tap, mask=c_inside, other=0).to(tl.int32)[None, :]
            if (row >= 0) & (row < ROWS):
                w = tl.load(tap + 3 * channels, mask=c_inside, other=0).to(tl.int32)
                here += q * w[None, :]
            if row >= 1:
                w = tl.load(tap + 6 * channels, mask=c_inside, other=0).to(tl.int32)
                above += q * w[None, :]
        if row >= 1:
            r = start + above.to(tl.float32) * factor
            if gelu_after:
                r = gelu(r)
            at = (position + (row - 1) * width)[:, None].to(tl.int64) * out_position + c[None, :]
            mask = (m_inside & (y - 1 < height))[:, None] & c_inside[None, :]
            store_planes(quantise(r, to), out + at, out_plane, mask)
        above = here
        here = below


def depthwise(
    x: Tensor,
    weights: DepthwiseWeights,
    grid: Positions,
    *,
    activation: bool = False,
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
        x,
        weights.taps,
        weights.scale,
        weights.bias,
        out,
        out_scale,
        grid.count,
        grid.height,
        grid.width,
        channels,
        int(activation),
        x.stride(0),
        x.stride(-2),
        out.stride(0),
        out.stride(-2),
        ROWS=block.rows,
        BLOCK_M=block.block,
        BLOCK_C=block.outputs,
        num_warps=block.warps,
    )
