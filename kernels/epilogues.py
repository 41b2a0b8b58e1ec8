"""The first convolution of the transforms, and what follows the others, in one pass over its output
(models/layers.py).

    first         gelu(3x3 convolution of x / 255 of stride 2 + bias), from planes to channels-last;
                  and x / 255 where it is centred, with channels of zeros beside the three colours
    activate      y = gelu(x + bias) (+ residual); or x + bias
    normalise     v = x + bias;  n[c] = beta[c] + sum over k of gamma[c, k] v[k]^2
                  y = v / sqrt(n), the inverse v * sqrt(n);  + branch + its bias
    to_pixels     round(255 clamp(x + bias, 0, 1)), from channels-last to planes, where x is the sum
                  of a 3x3 convolution's nine taps

The last 3x3 convolution has 12 outputs. cuDNN takes as long for them as for 96, nine times over; as
one 1x1 convolution its nine taps are 108 outputs, of which to_pixels adds those of a position's
neighbours: every one is read once.

The branch of normalise is what a convolution gave; or a 1x1 convolution of stride 1 or 2, whose
input it reads instead, so that its output is never stored.

In the first convolution pixels are factors as they are, integers that half precision holds; sums
are divided by 255. Its 27 products a value cost less than to write the values.

The convolutions run without their biases. What they give is [B, H, W, C], contiguous, in half
precision or float32; a subpixel convolution's is [B, H, W, 2, 2, C], its pixel shuffle done by
reading: with outputs in the order (row, column, channel) the channels of a pixel lie together. Two
of them with one input are one convolution, each half of its outputs: positions may be any equal
distance apart.
Results are [B, H, W, C] or [B, 2H, 2W, C]. Biases are float32, [C] or [2, 2, C].

The transforms are free arithmetic: sums are float32 and rounded once, instructions may be fused and
approximate, and a kernel equals its twin within rounding. The squares of float16 would overflow:
in half precision gamma and the squares are bfloat16.

Bytes: every array once. Operations: C^2 products a position in ``normalise``, on tensor cores in
half precision.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

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
    launch_tiles,
    rint,
)
from mlic_fast.kernels.planes import tile_of
from mlic_fast.models.layers import GDN

#: Channels that the centres of images have: three colours and zeros.
PADDED = 8
#: Taps and colours of the first convolution, 27, and zeros.
FIRST_DEPTH = 32
#: Outputs of the last layer as a 1x1 convolution: nine taps of 12 and, for tensor cores, zeros.
TAP_OUTPUTS = 112
_TAP_OUTPUTS = tl.constexpr(TAP_OUTPUTS)

_FLOAT16_MAX = tl.constexpr(65504.0)


@dataclass(frozen=True)
class GdnWeights:
    """``gamma`` [C, C], in (input, output) order; ``beta`` float32 [C]."""

    gamma: Tensor
    beta: Tensor
    inverse: bool

    @classmethod
    def pack(cls, gdn: GDN, dtype: torch.dtype) -> GdnWeights:
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


def first_twin(images: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Both float32: [B, H, W, C] and the centres [B, H, W, PADDED]."""
    x = images.float()
    kernel = weight[:27].T.reshape(-1, 3, 3, 3).float()
    y = F.conv2d(x, kernel, stride=2, padding=1) / 255 + bias[:, None, None]
    centres = F.pad(x[..., ::2, ::2].permute(0, 2, 3, 1) / 255, (0, PADDED - 3))
    return F.gelu(y).permute(0, 2, 3, 1), centres


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
        stride = branch.shape[1] // x.shape[1]
        branch = branch[:, ::stride, ::stride].float() @ skip.float()
    v = _biased_twin(x, bias)
    squares = (v * v).to(weights.gamma.dtype).float()
    norm = squares @ weights.gamma.float() + weights.beta
    y = v * (norm.sqrt() if weights.inverse else norm.rsqrt())
    return y + _biased_twin(branch, branch_bias)


def to_pixels_twin(x: Tensor, bias: Tensor) -> Tensor:
    """[B, H, W, TAP_OUTPUTS] -> uint8 [B, 3, 2H, 2W]."""
    batch, height, width, _ = x.shape
    taps = F.pad(x[..., :108].float(), (0, 0, 1, 1, 1, 1)).unflatten(3, (3, 3, 2, 2, 3))
    total = torch.zeros((batch, height, width, 2, 2, 3), device=x.device)
    for u, v in itertools.product(range(3), range(3)):
        total += taps[:, u : u + height, v : v + width, u, v]
    image = _biased_twin(total, bias).permute(0, 3, 1, 2)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def _biased_twin(x: Tensor, bias: Tensor) -> Tensor:
    y = x.float() + bias
    return y if y.dim() == 4 else y.transpose(2, 3).flatten(3, 4).flatten(1, 2)


# -- kernels ----------------------------------------------------------------------------------


class _Biased(NamedTuple):
    """What a convolution gave, and its bias.

    ``stride_position``: from one position to the next, before a pixel shuffle.
    """

    ptr: Tensor
    bias: Tensor
    stride_position: int

    @classmethod
    def of(cls, x: Tensor, bias: Tensor) -> _Biased:
        return cls(x, bias, x.stride(2) if x.dim() == 6 else x.shape[3])


@triton.jit
def _load(x, m, n, positions, width, channels, SHUFFLED: tl.constexpr):
    """x + bias, float32 [BLOCK_M, BLOCK_N], at positions m of the result and channels n."""
    mask = (m < positions)[:, None] & (n < channels)[None, :]
    if SHUFFLED:
        column = m % width
        line = m // width
        part = 2 * (line & 1) + (column & 1)
        position = (line // 2) * (width // 2) + column // 2
        offset = position.to(tl.int64) * x.stride_position + part * channels
        bias = tl.load(x.bias + part[:, None] * channels + n[None, :], mask=mask, other=0.0)
    else:
        offset = m.to(tl.int64) * x.stride_position
        bias = tl.load(x.bias + n, mask=n < channels, other=0.0)[None, :]
    v = tl.load(x.ptr + offset[:, None] + n[None, :], mask=mask, other=0.0)
    return v.to(tl.float32) + bias


@triton.jit
def _gelu(y):
    return y * (0.5 + 0.5 * tl.erf(y * 0.7071067811865476))


@triton.jit(do_not_specialize=("positions", "height", "width"))
def _first_kernel(
    images,
    weight,
    bias,
    out,
    centres,
    positions,
    height,
    width,
    channels,
    DEPTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = m < positions
    row = 2 * (m // (width // 2) % (height // 2))
    column = 2 * (m % (width // 2))
    red = m // (width // 2) // (height // 2) * 3  # plane of an image
    k = tl.arange(0, DEPTH)  # 9 primary + 3 u + v
    tap_row = row[:, None] + (k // 3 % 3 - 1)[None, :]
    tap_column = column[:, None] + (k % 3 - 1)[None, :]
    mask = mask_m[:, None] & (k < 27)[None, :] & (tap_row >= 0) & (tap_column >= 0)
    line = (red[:, None] + (k // 9)[None, :]).to(tl.int64) * height + tap_row
    x = tl.load(images + line * width + tap_column, mask=mask, other=0)
    x = x.to(tl.float32).to(weight.dtype.element_ty)  # [BLOCK_M, DEPTH]
    for start in range(0, channels, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask_n = n < channels
        p_w = weight + k[:, None] * channels + n[None, :]
        w = tl.load(p_w, mask=mask_n[None, :], other=0.0)  # [DEPTH, BLOCK_N]
        v = tl.dot(x, w, input_precision="ieee") / 255.0  # [BLOCK_M, BLOCK_N]
        v = _gelu(v + tl.load(bias + n, mask=mask_n, other=0.0)[None, :])
        p_out = out + (m[:, None].to(tl.int64) * channels + n[None, :])
        tl.store(p_out, v.to(out.dtype.element_ty), mask=mask_m[:, None] & mask_n[None, :])
    p = tl.arange(0, PADDED)
    line = (red[:, None] + p[None, :]).to(tl.int64) * height + row[:, None]
    mask = mask_m[:, None] & (p < 3)[None, :]
    x = tl.load(images + line * width + column[:, None], mask=mask, other=0)
    x = (x.to(tl.float32) / 255.0).to(centres.dtype.element_ty)  # [BLOCK_M, PADDED]
    tl.store(centres + m[:, None].to(tl.int64) * PADDED + p[None, :], x, mask=mask_m[:, None])


@triton.jit(do_not_specialize=("positions", "width"))
def _activate_kernel(
    x,
    residual,
    out,
    positions,
    width,
    channels,
    GELU: tl.constexpr,
    SHUFFLED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    await_launch_before()
    m, n, mask = tile_of(positions, channels, BLOCK_M, BLOCK_N)
    y = _load(x, m, n, positions, width, channels, SHUFFLED)  # [BLOCK_M, BLOCK_N]
    if GELU:
        y = _gelu(y)
    offset = m[:, None].to(tl.int64) * channels + n[None, :]
    if residual is not None:
        y += tl.load(residual + offset, mask=mask, other=0.0).to(tl.float32)
    if out.dtype.element_ty == tl.float16:
        y = clamp(y, _FLOAT16_MAX)
    tl.store(out + offset, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _matrix(matrix, k, n, rows, columns):
    """A tile of weights [rows, columns]: [k, n], zero outside."""
    mask = (k < rows)[:, None] & (n < columns)[None, :]
    return tl.load(matrix + k[:, None] * columns + n[None, :], mask=mask, other=0.0)


class _Gdn(NamedTuple):
    gamma: Tensor
    beta: Tensor


class _Which(NamedTuple):
    """GDN or its inverse; whether the branch is shuffled; and which rows and columns of it the
    skip multiplies, every ``stride``-th.
    """

    inverse: bool
    shuffled: bool
    stride: int


@triton.jit(do_not_specialize=("positions", "width"))
def _normalise_kernel(
    x,
    gdn,
    branch,
    skip,
    out,
    positions,
    width,
    channels,
    skip_channels,
    WHICH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    v = _load(x, m, k, positions, width, channels, False)
    squares = (v * v).to(gdn.gamma.dtype.element_ty)  # [BLOCK_M, BLOCK_K]
    if skip is not None:  # rows and columns of the block's input
        s = tl.arange(0, BLOCK_S)
        line = (WHICH.stride * (m // width)).to(tl.int64) * (WHICH.stride * width)
        position = line + WHICH.stride * (m % width)
        mask_given = (m < positions)[:, None] & (s < skip_channels)[None, :]
        p_given = branch.ptr + position[:, None] * skip_channels + s[None, :]
        given = tl.load(p_given, mask=mask_given, other=0.0)
        given = given.to(skip.dtype.element_ty)  # [BLOCK_M, BLOCK_S]
    for start in range(0, channels, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask_n = n < channels
        gamma = _matrix(gdn.gamma, k, n, channels, channels)  # [BLOCK_K, BLOCK_N]
        norm = tl.load(gdn.beta + n, mask=mask_n, other=1.0)[None, :]
        norm += tl.dot(squares, gamma, input_precision="ieee")  # [BLOCK_M, BLOCK_N]
        factor = tl.sqrt(norm) if WHICH.inverse else tl.rsqrt(norm)
        y = _load(x, m, n, positions, width, channels, False) * factor
        if skip is None:
            y += _load(branch, m, n, positions, width, channels, WHICH.shuffled)
        else:
            skip_weights = _matrix(skip, s, n, skip_channels, channels)  # [BLOCK_S, BLOCK_N]
            y += tl.load(branch.bias + n, mask=mask_n, other=0.0)[None, :]
            y += tl.dot(given, skip_weights, input_precision="ieee")
        p_out = out + (m[:, None].to(tl.int64) * channels + n[None, :])
        mask_out = (m < positions)[:, None] & mask_n[None, :]
        tl.store(p_out, y.to(out.dtype.element_ty), mask=mask_out)


@triton.jit(do_not_specialize=("positions", "plane", "width"))
def _to_pixels_kernel(x, bias, out, positions, plane, width, BLOCK_M: tl.constexpr):
    """``plane``: pixels of an image."""
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, 4)  # three primaries
    half_width = width // 2
    half_height = plane // width // 2
    column = m % width
    line = m // width  # of all images
    part = (6 * (line & 1) + 3 * (column & 1))[:, None] + n[None, :]  # [BLOCK_M, 4], as all below
    mask = (m < positions)[:, None] & (n < 3)[None, :]
    v = tl.load(bias + part, mask=mask, other=0.0)
    row = line // 2 % half_height
    for tap in tl.static_range(9):
        dy = tap // 3 - 1
        tap_row = row + dy
        tap_column = column // 2 + (tap % 3 - 1)
        mask_tap = (tap_row >= 0) & (tap_row < half_height)
        mask_tap = mask_tap & (tap_column >= 0) & (tap_column < half_width)
        position = ((line // 2 + dy) * half_width + tap_column)[:, None].to(tl.int64)
        p_x = x + (position * _TAP_OUTPUTS + 12 * tap + part)
        v += tl.load(p_x, mask=mask & mask_tap[:, None], other=0.0).to(tl.float32)
    v = tl.minimum(tl.maximum(v, 0.0), 1.0)
    offset = ((m // plane)[:, None] * 3 + n[None, :]).to(tl.int64) * plane + (m % plane)[:, None]
    tl.store(out + offset, rint(v * 255.0).to(tl.uint8), mask=mask)


# -- launchers --------------------------------------------------------------------------------


def first(images: Tensor, weight: Tensor, bias: Tensor, *, out: Tensor, centres: Tensor) -> None:
    """uint8 [B, 3, 2H, 2W], contiguous -> ``out`` [B, H, W, C] and ``centres`` [B, H, W, PADDED].

    ``weight`` [FIRST_DEPTH, C] has row 9k + 3u + v for tap (u, v) of colour k.
    """
    *_, height, width = images.shape
    channels = out.shape[3]
    positions = out.numel() // channels
    block = config("first", out.device, positions)
    launch(
        _first_kernel,
        (triton.cdiv(positions, block.block),),
        images,
        weight,
        bias,
        out,
        centres,
        positions,
        height,
        width,
        channels,
        DEPTH=FIRST_DEPTH,
        PADDED=PADDED,
        BLOCK_M=block.block,
        BLOCK_N=block.outputs,
        num_warps=block.warps,
        num_stages=block.stages,
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
    launch_tiles(
        _activate_kernel,
        "activate",
        positions,
        channels,
        _Biased.of(x, bias),
        residual,
        out,
        positions,
        width,
        channels,
        GELU=gelu,
        SHUFFLED=x.dim() == 6,
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

    With ``skip`` [K, C], ``branch`` is [B, H, W, K], or [B, 2H, 2W, K], of which even rows and
    columns are multiplied; it is not ``out``.
    """
    *_, width, channels = out.shape
    positions = out.numel() // channels
    block = config("normalise", out.device, positions)
    depth = max(16, triton.next_power_of_2(channels))
    shuffled = branch.dim() == 6
    stride = 1 if shuffled else branch.shape[1] // out.shape[1]
    launch(
        _normalise_kernel,
        (triton.cdiv(positions, block.block),),
        _Biased.of(x, bias),
        _Gdn(weights.gamma, weights.beta),
        _Biased.of(branch, branch_bias),
        skip,
        out,
        positions,
        width,
        channels,
        0 if skip is None else skip.shape[0],
        WHICH=_Which(weights.inverse, shuffled, stride),
        BLOCK_M=block.block,
        BLOCK_N=min(block.outputs, depth),
        BLOCK_K=depth,
        BLOCK_S=16 if skip is None else max(16, triton.next_power_of_2(skip.shape[0])),
        num_warps=block.warps,
        num_stages=block.stages,
        **FREE,
    )


def to_pixels(x: Tensor, bias: Tensor, *, out: Tensor) -> None:
    """[B, H, W, TAP_OUTPUTS] -> ``out`` uint8 [B, 3, 2H, 2W]; bias [2, 2, 3].

    Channel 12 (3u + v) + 6r + 3s + c is what the position adds, as tap (u, v), to the pixel of row
    r, column s and colour c of the position one row above for u = 2, and so on.
    """
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
