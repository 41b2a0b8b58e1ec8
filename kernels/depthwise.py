"""Depthwise 3x3 convolutions (docs/arithmetic.md, section 2).

    sum[y, x, c] = sum over u, v of q[y + u - 1, x + v - 1, c] * W[u, v, c]
    out[y, x, c] = quantise(gelu?(bias[c] + float(sum[y, x, c]) * scale[c]))

zeros outside. Planes int8 [2, B, H, W, C] -> [2, B, H, W, C]. No matrix product: 9 multiplications
a value. Bytes: 4 a value from device memory, 18 more from the caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mlic_fast.engine.packed import Layer
from mlic_fast.kernels.configs import config
from mlic_fast.kernels.functions import (
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
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_inside = m < positions
    c_inside = c < channels
    column = m % width
    row = (m // width) % height
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.int32)
    for tap in tl.static_range(9):
        dy = tap // 3 - 1
        dx = tap % 3 - 1
        y = row + dy
        z = column + dx
        there = m_inside & (y >= 0) & (y < height) & (z >= 0) & (z < width)
        at = (m + dy * width + dx)[:, None].to(tl.int64) * x_position + c[None, :]
        mask = there[:, None] & c_inside[None, :]
        low = tl.load(x + at, mask=mask, other=0)
        high = tl.load(x + x_plane + at, mask=mask, other=0)
        w = tl.load(taps + tap * channels + c, mask=c_inside, other=0).to(tl.int32)
        total += join_bytes(low, high) * w[None, :]
    factor = tl.load(scale + c, mask=c_inside, other=0.0)[None, :]
    r = tl.load(bias + c, mask=c_inside, other=0.0)[None, :] + total.to(tl.float32) * factor
    if gelu_after:
        r = gelu(r)
    q = quantise(r, tl.load(out_scale + c, mask=c_inside, other=0.0)[None, :])
    at = m[:, None].to(tl.int64) * out_position + c[None, :]
    mask = m_inside[:, None] & c_inside[None, :]
    store_planes(q, out + at, out_plane, mask)


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
    block = config("elements", x.device, grid.count)
    launch(
        _depthwise_kernel,
        (triton.cdiv(grid.count, block.block), triton.cdiv(channels, block.outputs)),
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
        BLOCK_M=block.block,
        BLOCK_C=block.outputs,
        num_warps=block.warps,
    )
