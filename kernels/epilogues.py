"""What follows a convolution of the transforms, in one pass over its output (models/layers.py).

    from_pixels   x / 255, from planes to channels-last, with channels of zeros beside the three
    activate      y = gelu(x + bias) (+ residual); or x + bias
    normalise     v = x + bias;  n[c] = beta[c] + sum over k of gamma[c, k] v[k]^2
                  y = v / sqrt(n), the inverse v * sqrt(n);  + branch + its bias
    to_pixels     round(255 clamp(x + bias, 0, 1)), from channels-last to planes

The branch of normalise is what a convolution gave; or a 1x1 convolution of stride 2, whose input it
reads instead, so that its output is never stored.

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
from mlic_fast.kernels.functions import (
    FREE,
    await_launch_before,
    clamp,
    launch,
    rint,
)
from mlic_fast.models.layers import GDN

#: Channels that images have for convolutions: those of tensor cores read so many at once.
PADDED = 8

_FLOAT16_MAX = tl.constexpr(65504.0)


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
        dtype = torch.float32 if dtype is torch.float32 else torch.bfloat16
        return cls(gamma.to(multiplied(dtype)), beta, gdn.inverse)


def multiplied(dtype: torch.dtype) -> torch.dtype:
    """The dtype of weights for arrays of a dtype.

    Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
    """
    wide = dtype is torch.bfloat16 and triton.knobs.runtime.interpret
    return torch.float32 if wide else dtype


# -- twins ------------------------------------------------------------------------------------


def from_pixels_twin(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, H, W, PADDED]."""
    return F.pad(images.permute(0, 2, 3, 1).float() / 255, (0, PADDED - 3))


def activate_twin(
    x: Tensor, bias: Tensor, residual: Tensor | None = None, *, gelu: bool = True
) -> Tensor:
    """float32 [B, H, W, C] or [B, 2H, 2W, C]."""
    y = _biased_twin(x, bias)
    y = F.gelu(y) if gelu else y
    return y if residual is None else y + residual.float()


def normalise_twin(
    x: Tensor,
    bias: Tensor,
    weights: GdnWeights,
    branch: Tensor,
    branch_bias: Tensor,
    skip: Tensor | None = None,
) -> Tensor:
    """float32 [B, H, W, C]."""
    if skip is not None:
        branch = branch[:, ::2, ::2].float() @ skip.float()
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


@triton.jit(do_not_specialize=("positions", "plane"))
def _from_pixels_kernel(images, out, positions, plane, BLOCK_M: tl.constexpr, PADDED: tl.constexpr):
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.arange(0, PADDED)
    m_inside = (m < positions)[:, None]
    at = ((m // plane)[:, None] * 3 + c[None, :]).to(tl.int64) * plane + (m % plane)[:, None]
    x = tl.load(images + at, mask=m_inside & (c < 3)[None, :], other=0).to(tl.float32) / 255.0
    at = m[:, None].to(tl.int64) * PADDED + c[None, :]
    tl.store(out + at, x.to(out.dtype.element_ty), mask=m_inside)


@triton.jit(do_not_specialize=("positions", "width"))
def _activate_kernel(
    x,
    bias,
    residual,
    out,
    positions,
    width,
    channels,
    GELU: tl.constexpr,
    SHUFFLED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    y = _load(x, bias, m, c, positions, width, channels, SHUFFLED)
    if GELU:
        y = y * (0.5 + 0.5 * tl.erf(y * 0.7071067811865476))
    at = m[:, None].to(tl.int64) * channels + c[None, :]
    inside = (m < positions)[:, None] & (c < channels)[None, :]
    if residual is not None:
        y += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if out.dtype.element_ty == tl.float16:
        y = clamp(y, _FLOAT16_MAX)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=("positions", "width"))
def _normalise_kernel(
    x,
    bias,
    gamma,
    beta,
    branch,
    branch_bias,
    skip,
    out,
    positions,
    width,
    channels,
    skip_channels,
    INVERSE: tl.constexpr,
    SHUFFLED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    v = _load(x, bias, m, k, positions, width, channels, False)
    squares = (v * v).to(gamma.dtype.element_ty)  # [M, K]
    if skip is not None:  # even rows and columns of the block's input
        s = tl.arange(0, BLOCK_S)
        row = (2 * (m // width)).to(tl.int64) * (2 * width) + 2 * (m % width)
        inside = (m < positions)[:, None] & (s < skip_channels)[None, :]
        given = tl.load(
            branch + row[:, None] * skip_channels + s[None, :], mask=inside, other=0.0
        ).to(skip.dtype.element_ty)  # [M, S]
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
        if skip is None:
            y += _load(branch, branch_bias, m, c, positions, width, channels, SHUFFLED)
        else:
            skip_weights = tl.load(
                skip + s[:, None] * channels + c[None, :],
                mask=(s < skip_channels)[:, None] & c_inside,
                other=0.0,
            )
            y += tl.load(branch_bias + c, mask=c < channels, other=0.0)[None, :]
            y += tl.dot(given, skip_weights, input_precision="ieee")
        at = m[:, None].to(tl.int64) * channels + c[None, :]
        tl.store(out + at, y.to(out.dtype.element_ty), mask=(m < positions)[:, None] & c_inside)


@triton.jit(do_not_specialize=("positions", "plane", "width"))
def _to_pixels_kernel(x, bias, out, positions, plane, width, BLOCK_M: tl.constexpr):
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.arange(0, 4)
    v = _load(x, bias, m, c, positions, width, 3, True)
    v = tl.minimum(tl.maximum(v, 0.0), 1.0)
    at = ((m // plane)[:, None] * 3 + c[None, :]).to(tl.int64) * plane + (m % plane)[:, None]
    inside = (m < positions)[:, None] & (c < 3)[None, :]
    tl.store(out + at, rint(v * 255.0).to(tl.uint8), mask=inside)


# -- launchers --------------------------------------------------------------------------------


def from_pixels(images: Tensor, *, out: Tensor) -> None:
    """uint8 [B, 3, H, W], contiguous -> ``out`` [B, H, W, PADDED]."""
    *_, height, width = images.shape
    positions = images.numel() // 3
    block = config("to_pixels", out.device, positions)
    launch(
        _from_pixels_kernel,
        (triton.cdiv(positions, block.block),),
        images,
        out,
        positions,
        height * width,
        BLOCK_M=block.block,
        PADDED=PADDED,
        num_warps=block.warps,
        **FREE,
    )


def activate(
    x: Tensor, bias: Tensor, residual: Tensor | None = None, *, gelu: bool = True, out: Tensor
) -> None:
    """``out`` may be ``x`` if that is not shuffled; ``residual`` has the shape of ``out``.

    Where ``out`` is float16, values beyond it become the largest one.
    """
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
        GELU=gelu,
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
    skip: Tensor | None = None,
    *,
    out: Tensor,
) -> None:
    """``out`` may be ``branch`` if that is not shuffled, never ``x``.

    With ``skip`` [K, C], ``branch`` is [B, 2H, 2W, K], of which even rows and columns are
    multiplied, and not ``out``.
    """
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
        skip,
        out,
        positions,
        width,
        channels,
        0 if skip is None else skip.shape[0],
        INVERSE=weights.inverse,
        SHUFFLED=branch.dim() == 6,
        BLOCK_M=block.block,
        BLOCK_K=depth,
        BLOCK_S=16 if skip is None else max(16, triton.next_power_of_2(skip.shape[0])),
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
