"""What follows a convolution of the transforms, in one pass over its output (models/layers.py).

    activate      y = gelu(x + bias) (+ residual)
    normalise     v = x + bias;  n[c] = beta[c] + sum over k of gamma[c, k] v[k]^2
                  y = v / sqrt(n), the inverse v * sqrt(n);  + branch + its bias
    to_pixels     round(255 clamp(x + bias, 0, 1)), from channels-last to planes

The convolutions run without their biases. What they give is [B, H, W, C], contiguous, in half
precision or float32; a subpixel convolution's is [B, H, W, 2, 2, C], its pixel shuffle done by
reading: with outputs in the order (row, column, channel) the channels of a pixel lie together.
Results are [B, H, W, C] or [B, 2H, 2W, C]. Biases are float32, [C] or [2, 2, C].

The transforms are free arithmetic: sums are float32 and rounded once, instructions may be fused and
approximate, and a kernel equals its twin within rounding. The squares of float16 would overflow:
in half precision gamma and the squares are bfloat16.

Bytes: every array once. Operations: C^2 products a position in ``normalise``, on tensor cores in
half precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mlic_fast.kernels.configs import config
from mlic_fast.kernels.functions import FREE, launch, rint
from mlic_fast.models.layers import GDN


@dataclass(frozen=True)
class GdnWeights:
    """``gamma`` [C, C], in (input, output) order; ``beta`` float32 [C]."""

    gamma: Tensor
    beta: Tensor
    inverse: bool

    @classmethod
    def of(cls, gdn: GDN, dtype: torch.dtype) -> GdnWeights:
        """For arrays of a dtype."""
        gamma = gdn.gamma_reparam(gdn.gamma).detach().float().T.contiguous()
        beta = gdn.beta_reparam(gdn.beta).detach().float()
        # Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
        if dtype is not torch.float32 and not triton.knobs.runtime.interpret:
            gamma = gamma.to(torch.bfloat16)
        return cls(gamma, beta, gdn.inverse)


# -- twins ------------------------------------------------------------------------------------


def activate_twin(x: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    """float32 [B, H, W, C] or [B, 2H, 2W, C]."""
    y = F.gelu(_biased_twin(x, bias))
    return y if residual is None else y + residual.float()


def normalise_twin(
    x: Tensor, bias: Tensor, weights: GdnWeights, branch: Tensor, branch_bias: Tensor
) -> Tensor:
    """float32 [B, H, W, C]."""
    v = _biased_twin(x, bias)
    squares = (v * v).to(weights.gamma.dtype).float()
    norm = squares @ weights.gamma.float() + weights.beta
    y = v * (norm.sqrt() if weights.inverse else norm.rsqrt())
    return y + _biased_twin(branch, branch_bias)


def to_pixels_twin(x: Tensor, bias: Tensor) -> Tensor:
    """[B, H, W, 2, 2, 3] -> uint8 [B, 3, 2H, 2W]."""
    image = _biased_twin(x, bias).permute(0, 3, 1, 2)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def _biased_twin(x: Tensor, bias: Tensor) -> Tensor:
    y = x.float() + bias
    return y if y.dim() == 4 else y.transpose(2, 3).flatten(3, 4).flatten(1, 2)


# -- kernels ----------------------------------------------------------------------------------


@triton.jit
def _load(x, bias, m, c, positions, width, channels, SHUFFLED: tl.constexpr):
    """x + bias in float32, at positions m of the result and channels c."""
    c_inside = c < channels
    inside = (m < positions)[:, None] & c_inside[None, :]
    if SHUFFLED:
        column = m % width
        line = m // width
        part = 2 * (line & 1) + (column & 1)
        row = ((line // 2) * (width // 2) + column // 2).to(tl.int64) * 4 + part
        b = tl.load(bias + part[:, None] * channels + c[None, :], mask=inside, other=0.0)
    else:
        row = m.to(tl.int64)
        b = tl.load(bias + c, mask=c_inside, other=0.0)[None, :]
    v = tl.load(x + row[:, None] * channels + c[None, :], mask=inside, other=0.0)
    return v.to(tl.float32) + b


@triton.jit(do_not_specialize=("positions", "width"))
def _activate_kernel(
    x,
    bias,
    residual,
    out,
    positions,
    width,
    channels,
    SHUFFLED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    v = _load(x, bias, m, c, positions, width, channels, SHUFFLED)
    y = v * (0.5 + 0.5 * tl.erf(v * 0.7071067811865476))
    at = m[:, None].to(tl.int64) * channels + c[None, :]
    inside = (m < positions)[:, None] & (c < channels)[None, :]
    if residual is not None:
        y += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=("positions", "width"))
def _normalise_kernel(
    x,
    bias,
    gamma,
    beta,
    branch,
    branch_bias,
    out,
    positions,
    width,
    channels,
    INVERSE: tl.constexpr,
    SHUFFLED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    v = _load(x, bias, m, k, positions, width, channels, False)
    squares = (v * v).to(gamma.dtype.element_ty)
    for start in range(0, channels, BLOCK_N):
        c = start + tl.arange(0, BLOCK_N)
        c_inside = (c < channels)[None, :]
        weights = tl.load(
            gamma + k[:, None] * channels + c[None, :],
            mask=(k < channels)[:, None] & c_inside,
            other=0.0,
        )
        norm = tl.load(beta + c, mask=c < channels, other=1.0)[None, :]
        norm += tl.dot(squares, weights, input_precision="ieee")
        factor = tl.sqrt(norm) if INVERSE else tl.rsqrt(norm)
        y = _load(x, bias, m, c, positions, width, channels, False) * factor
        y += _load(branch, branch_bias, m, c, positions, width, channels, SHUFFLED)
        at = m[:, None].to(tl.int64) * channels + c[None, :]
        tl.store(out + at, y.to(out.dtype.element_ty), mask=(m < positions)[:, None] & c_inside)


@triton.jit(do_not_specialize=("positions", "plane", "width"))
def _to_pixels_kernel(x, bias, out, positions, plane, width, BLOCK_M: tl.constexpr):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.arange(0, 4)
    v = _load(x, bias, m, c, positions, width, 3, True)
    v = tl.minimum(tl.maximum(v, 0.0), 1.0)
    at = ((m // plane)[:, None] * 3 + c[None, :]).to(tl.int64) * plane + (m % plane)[:, None]
    inside = (m < positions)[:, None] & (c < 3)[None, :]
    tl.store(out + at, rint(v * 255.0).to(tl.uint8), mask=inside)


# -- launchers --------------------------------------------------------------------------------


def activate(x: Tensor, bias: Tensor, residual: Tensor | None = None, *, out: Tensor) -> None:
    """``out`` may be ``x`` if that is not shuffled; ``residual`` has the shape of ``out``."""
    *_, width, channels = out.shape
    positions = out.numel() // channels
    block = config("activate", out.device, positions)
    launch(
        _activate_kernel,
        (triton.cdiv(positions, block.block), triton.cdiv(channels, block.outputs)),
        x,
        bias,
        residual,
        out,
        positions,
        width,
        channels,
        SHUFFLED=x.dim() == 6,
        BLOCK_M=block.block,
        BLOCK_C=block.outputs,
        num_warps=block.warps,
        **FREE,
    )


def normalise(
    x: Tensor,
    bias: Tensor,
    weights: GdnWeights,
    branch: Tensor,
    branch_bias: Tensor,
    *,
    out: Tensor,
) -> None:
    """``out`` may be ``branch`` if that is not shuffled, never ``x``."""
    *_, width, channels = out.shape
    positions = out.numel() // channels
    block = config("normalise", out.device, positions)
    depth = max(16, triton.next_power_of_2(channels))
    launch(
        _normalise_kernel,
        (triton.cdiv(positions, block.block),),
        x,
        bias,
        weights.gamma,
        weights.beta,
        branch,
        branch_bias,
        out,
        positions,
        width,
        channels,
        INVERSE=weights.inverse,
        SHUFFLED=branch.dim() == 6,
        BLOCK_M=block.block,
        BLOCK_K=depth,
        BLOCK_N=min(block.outputs, depth),
        num_warps=block.warps,
        num_stages=block.stages,
        **FREE,
    )


def to_pixels(x: Tensor, bias: Tensor, *, out: Tensor) -> None:
    """[B, H, W, 2, 2, 3] -> ``out`` uint8 [B, 3, 2H, 2W]."""
    *_, height, width = out.shape
    positions = out.numel() // 3
    block = config("to_pixels", out.device, positions)
    launch(
        _to_pixels_kernel,
        (triton.cdiv(positions, block.block),),
        x,
        bias,
        out,
        positions,
        height * width,
        width,
        BLOCK_M=block.block,
        num_warps=block.warps,
        **FREE,
    )
