"""Convolutions and linear layers of the entropy path (docs/arithmetic.md, section 2).

    r[p, o] = start[p, o]
    for every input s:   r[p, o] = r[p, o] + float(sum over taps, channels of x_s W_s) * scale[s, o]

then GELU, a residual, and the result as float32, as planes of int8, as both, as latents or as
pixels. An implicit
matrix product: [positions, taps * channels] times [taps * channels, outputs], whose left side is
gathered from the activations and never stored. Where there are few positions and many steps of K,
each program takes a part of them, and a second launch adds the parts: integers, so exactly.

Shapes: x planes int8 [2, B, H, W, C]; weights int8 [2, blocks, O, BLOCK_K]; start (the bias, or
the sum over the inputs before) and results [B, H, W, O], or [B, H, W/2, O] at the positions of one
colour.

Operations: 4 products of int8 for each of B * H * W * taps * C * O. Bytes, with tiles of BLOCK_M x
BLOCK_N: 2 * taps * C * (positions * O / BLOCK_N + O * positions / BLOCK_M), nearly all from the L2
cache, plus the result once; 8 * parts * positions * O more where the steps are in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mlic_fast.engine.packing.packed import Segment
from mlic_fast.kernels.configs import config as launch_config
from mlic_fast.kernels.configs import product_config
from mlic_fast.kernels.functions import (
    await_launch_before,
    from_planes,
    gelu,
    gelu_twin,
    half_tanh,
    half_tanh_twin,
    join_bytes,
    join_products,
    launch,
    quantise,
    rint,
    to_planes,
)
from mlic_fast.kernels.grid import KEPT, SQUEEZED, Input, Positions
from mlic_fast.kernels.planes import ALL, add_product, store_planes

#: What becomes of the sum: see :func:`conv`.
REAL, PLANES, SHUFFLED, LATENTS, CARRIED, SPREAD, PIXELS = range(7)
# The same for kernels.
_KEPT, _SQUEEZED = tl.constexpr(KEPT), tl.constexpr(SQUEEZED)
_REAL, _SHUFFLED, _LATENTS = (tl.constexpr(kind) for kind in (REAL, SHUFFLED, LATENTS))
_CARRIED, _SPREAD, _PIXELS = (tl.constexpr(kind) for kind in (CARRIED, SPREAD, PIXELS))
#: Parts that are loaded at a time.
_ADDED = tl.constexpr(4)
#: Arguments whose value (1, or a multiple of 16) must not make another variant to compile.
_SIZES = ("positions", "height", "width", "inputs", "side", "gelu_after", "parts")


@dataclass(frozen=True)
class ProductWeights:
    """Weights of one or several layers (side by side in the outputs) for inputs of equal width.

    Attributes:
        planes: int8 [2, inputs * taps * blocks, O, BLOCK_K], zero beyond the channels.
        scale: float32 [inputs, O], the weights' scale times 2^-exponent of the input.
        bias: float32 [O].
        channels: of one input.
        kernel: 1, 3 or 5.
    """

    planes: Tensor
    scale: Tensor
    bias: Tensor
    channels: int
    kernel: int

    @property
    def outputs(self) -> int:
        return self.planes.shape[2]

    @property
    def block_k(self) -> int:
        return self.planes.shape[3]


def pack_weights(
    segments: Sequence[Sequence[Segment]],
    exponents: Sequence[int],
    biases: Sequence[np.ndarray],
    device: torch.device,
) -> ProductWeights:
    """Weights of layers (outer) and inputs (inner) -> what :func:`conv` takes.

    ``exponents``: of the inputs. ``biases``: float32 [O] of each layer.
    """
    weight = np.stack(  # [inputs, O, k, k, C]
        [np.concatenate([s.weight for s in parts]) for parts in zip(*segments, strict=True)]
    )
    scale = np.stack(
        [
            np.concatenate([s.scale for s in parts]) * np.ldexp(np.float32(1), -exponent)
            for parts, exponent in zip(zip(*segments, strict=True), exponents, strict=True)
        ]
    )
    inputs, outputs, kernel, _, channels = weight.shape
    block_k = 64 if channels > 32 else 32  # zeros cost less than steps
    blocks = -(-channels // block_k)
    padded = np.zeros((inputs, outputs, kernel * kernel, blocks * block_k), np.int16)
    padded[..., :channels] = weight.reshape(inputs, outputs, kernel * kernel, channels)
    ordered = padded.reshape(inputs, outputs, -1, block_k).swapaxes(1, 2)
    planes = to_planes(torch.from_numpy(ordered.astype(np.int32)))
    return ProductWeights(
        planes.reshape(2, -1, outputs, block_k).to(device),
        torch.from_numpy(scale).to(device),
        torch.from_numpy(np.concatenate(biases)).to(device),
        channels,
        kernel,
    )


def conv_twin(
    inputs: Sequence[Tensor],
    weights: ProductWeights,
    start: Tensor,
    *,
    activation: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """float32 [B, H, W, O] from activations int32 [B, H, W, C], before what becomes of the sum."""
    r = start
    blocks = -(-weights.channels // weights.block_k)
    taps = weights.kernel**2
    w = from_planes(weights.planes).reshape(len(inputs), taps, blocks, weights.outputs, -1)
    w = w.permute(0, 3, 1, 2, 4).reshape(len(inputs), weights.outputs, taps, -1)
    w = w[..., : weights.channels].double()
    for x, taps_of_input, scale in zip(inputs, w, weights.scale, strict=True):
        side = weights.kernel
        kernel = taps_of_input.reshape(-1, side, side, weights.channels).permute(0, 3, 1, 2)
        total = torch.nn.functional.conv2d(
            x.permute(0, 3, 1, 2).double(), kernel.contiguous(), padding=side // 2
        )
        r = r + total.permute(0, 2, 3, 1).round().to(torch.int32).to(torch.float32) * scale
    if activation:
        r = gelu_twin(r)
    return r if residual is None else r + residual


@triton.jit
def _places(m, height, width, AT: tl.constexpr):
    """Output position m -> image and row together, row, column of the full grid."""
    out_width = width // 2 if AT >= 0 else width
    image_row = m // out_width
    row = image_row % height
    column = m % out_width
    if AT >= 0:
        column = 2 * column + ((row + AT) & 1)
    return image_row, row, column


@triton.jit
def _product(
    x,
    w,
    m,
    n,
    first_step,
    last_step,
    positions,
    height,
    width,
    outputs,
    channels,
    side,
    x_plane,
    x_position,
    w_plane,
    AT: tl.constexpr,
    INPUT: tl.constexpr,
    COLOUR: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """int32 [M, N]: the steps of one input from first_step up to last_step, modulo 2^32.

    ``w`` begins with first_step.
    """
    k = tl.arange(0, BLOCK_K)
    m_inside = m < positions
    n_inside = n < outputs
    image_row, row, column = _places(m, height, width, AT)
    blocks = tl.cdiv(channels, BLOCK_K)
    tap = first_step // blocks
    first = first_step % blocks * BLOCK_K
    dy = tap // side - side // 2
    dx = tap % side - side // 2
    w_tile = n[None, :] * BLOCK_K + k[:, None]  # [K, N]
    hh = tl.zeros((m.shape[0], n.shape[0]), tl.int32)
    mid = tl.zeros((m.shape[0], n.shape[0]), tl.int32)
    ll = tl.zeros((m.shape[0], n.shape[0]), tl.int32)
    for _ in range(first_step, last_step):
        channel = first + k
        y = row + dy
        z = column + dx
        there = m_inside & (y >= 0) & (y < height) & (z >= 0) & (z < width)
        if INPUT == _KEPT:
            there = there & (((y + z) & 1) == COLOUR)
        if INPUT == _SQUEEZED:
            there = there & (((y + z) & 1) == COLOUR)
            at = (image_row + dy) * (width // 2) + (z >> 1)
        else:
            at = (image_row + dy) * width + z
        x_tile = x + at[:, None].to(tl.int64) * x_position + channel[None, :]  # [M, K]
        mask = there[:, None] & (channel < channels)[None, :]
        low = tl.load(x_tile, mask=mask, other=0)
        high = tl.load(x_tile + x_plane, mask=mask, other=0)
        w_low = tl.load(w + w_tile, mask=n_inside[None, :], other=0)
        w_high = tl.load(w + w_plane + w_tile, mask=n_inside[None, :], other=0)
        hh, mid, ll = add_product(hh, mid, ll, low, high, w_low, w_high)
        w += outputs * BLOCK_K
        # Selections: a branch here would keep the loads from being made ahead.
        first += BLOCK_K
        next_tap = first >= channels
        first = tl.where(next_tap, 0, first)
        dx += next_tap.to(tl.int32)
        next_row = dx > side // 2
        dx = tl.where(next_row, -(side // 2), dx)
        dy += next_row.to(tl.int32)
    return join_products(hh, mid, ll)


@triton.jit
def _finish(
    r,
    residual,
    out,
    out_scale,
    real,
    m,
    n,
    positions,
    height,
    width,
    outputs,
    gelu_after,
    residual_plane,
    residual_position,
    residual_scale,
    out_plane,
    out_position,
    real_position,
    AT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    OUT: tl.constexpr,
):
    """What becomes of the sums r, float32 [M, N], at output positions m and channels n."""
    n_inside = n < outputs
    inside = (m < positions)[:, None] & n_inside[None, :]
    image_row, row, column = _places(m, height, width, AT)
    if gelu_after:
        r = gelu(r)
    if RESIDUAL > 0:
        at = m[:, None].to(tl.int64) * residual_position + n[None, :]
        if RESIDUAL == 1:
            r = r + tl.load(residual + at, mask=inside, other=0.0)
        else:
            low = tl.load(residual + at, mask=inside, other=0)
            high = tl.load(residual + residual_plane + at, mask=inside, other=0)
            r = r + join_bytes(low, high).to(tl.float32) * residual_scale

    if OUT == _REAL:
        tl.store(out + m[:, None].to(tl.int64) * out_position + n[None, :], r, mask=inside)
    elif OUT == _PIXELS:  # channel 64c + 8v + u goes to colour c, row 8y + v, column 8z + u
        plane = (image_row // height * 3)[:, None] + (n // 64)[None, :]
        line = plane * (8 * height) + (8 * row)[:, None] + (n // 8 % 8)[None, :]
        at = line.to(tl.int64) * (8 * width) + (8 * column)[:, None] + (n % 8)[None, :]
        r = tl.where(r > 0.0, r, 0.0)
        tl.store(out + at, rint(tl.where(r < 255.0, r, 255.0)).to(tl.uint8), mask=inside)
    else:
        if OUT == _SHUFFLED:  # channel 4c + 2u + v goes to row 2y + u, column 2z + v, channel c
            line = (2 * image_row[:, None] + ((n >> 1) & 1)[None, :]) * (2 * width)
            at = line + 2 * column[:, None] + (n & 1)[None, :]
            at = at.to(tl.int64) * out_position + (n >> 2)[None, :]
        elif OUT == _LATENTS:  # in place on the full grid
            position = image_row * width + column
            at = position[:, None].to(tl.int64) * real_position + n[None, :]
            r = tl.load(real + at, mask=inside, other=0.0) + half_tanh(r)
            tl.store(real + at, r, mask=inside)
            at = position[:, None].to(tl.int64) * out_position + n[None, :]
        elif OUT == _SPREAD:  # channel (2v + u) C + c goes to row 2y + v, column 2z + u, channel c
            part = n // (outputs // 4)
            line = (2 * image_row[:, None] + (part // 2)[None, :]) * (2 * width)
            position = (line + 2 * column[:, None] + (part % 2)[None, :]).to(tl.int64)
            channel = (n % (outputs // 4))[None, :]
            tl.store(real + position * real_position + channel, r, mask=inside)
            at = position * out_position + channel
        else:
            if OUT == _CARRIED:
                at = m[:, None].to(tl.int64) * real_position + n[None, :]
                tl.store(real + at, r, mask=inside)
            at = m[:, None].to(tl.int64) * out_position + n[None, :]
        q = quantise(r, tl.load(out_scale + n, mask=n_inside, other=0.0)[None, :])
        store_planes(q, out + at, out_plane, inside)


@triton.jit(do_not_specialize=_SIZES)
def _conv_kernel(
    x,
    w,
    scale,
    start,
    residual,
    out,
    out_scale,
    real,
    positions,
    height,
    width,
    outputs,
    inputs,
    channels,
    side,
    gelu_after,
    x_plane,
    x_position,
    x_input,
    w_plane,
    start_position,
    residual_plane,
    residual_position,
    residual_scale,
    out_plane,
    out_position,
    real_position,
    AT: tl.constexpr,
    INPUT: tl.constexpr,
    COLOUR: tl.constexpr,
    RESIDUAL: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_inside = n < outputs
    inside = (m < positions)[:, None] & n_inside[None, :]
    at = m[:, None].to(tl.int64) * start_position + n[None, :]
    r = tl.load(start + at, mask=inside, other=0.0)
    steps = side * side * tl.cdiv(channels, BLOCK_K)
    for i in range(inputs):
        total = _product(
            x + i * x_input,
            w + (i * steps).to(tl.int64) * (outputs * BLOCK_K),
            m,
            n,
            0,
            steps,
            positions,
            height,
            width,
            outputs,
            channels,
            side,
            x_plane,
            x_position,
            w_plane,
            AT,
            INPUT,
            COLOUR,
            BLOCK_K,
        )
        factor = tl.load(scale + i * outputs + n, mask=n_inside, other=0.0)
        r = r + total.to(tl.float32) * factor[None, :]
    _finish(
        r,
        residual,
        out,
        out_scale,
        real,
        m,
        n,
        positions,
        height,
        width,
        outputs,
        gelu_after,
        residual_plane,
        residual_position,
        residual_scale,
        out_plane,
        out_position,
        real_position,
        AT,
        RESIDUAL,
        OUT,
    )


@triton.jit(do_not_specialize=_SIZES)
def _parts_kernel(
    x,
    w,
    totals,
    positions,
    height,
    width,
    outputs,
    channels,
    side,
    parts,
    x_plane,
    x_position,
    x_input,
    w_plane,
    AT: tl.constexpr,
    INPUT: tl.constexpr,
    COLOUR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """totals int32 [inputs, parts, positions, outputs]: each input's sum, over a part of its K."""
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    of = tl.program_id(2)
    i = of // parts
    part = of % parts
    steps = side * side * tl.cdiv(channels, BLOCK_K)
    first_step = part * steps // parts
    total = _product(
        x + i * x_input,
        w + (i * steps + first_step).to(tl.int64) * (outputs * BLOCK_K),
        m,
        n,
        first_step,
        (part + 1) * steps // parts,
        positions,
        height,
        width,
        outputs,
        channels,
        side,
        x_plane,
        x_position,
        w_plane,
        AT,
        INPUT,
        COLOUR,
        BLOCK_K,
    )
    at = (of.to(tl.int64) * positions + m[:, None]) * outputs + n[None, :]
    tl.store(totals + at, total, mask=(m < positions)[:, None] & (n < outputs)[None, :])


@triton.jit(do_not_specialize=_SIZES)
def _totals_kernel(
    totals,
    scale,
    start,
    residual,
    out,
    out_scale,
    real,
    positions,
    height,
    width,
    outputs,
    inputs,
    parts,
    gelu_after,
    start_position,
    residual_plane,
    residual_position,
    residual_scale,
    out_plane,
    out_position,
    real_position,
    AT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_inside = n < outputs
    inside = (m < positions)[:, None] & n_inside[None, :]
    at = m[:, None].to(tl.int64) * start_position + n[None, :]
    r = tl.load(start + at, mask=inside, other=0.0)
    at = m[:, None].to(tl.int64) * outputs + n[None, :]
    plane = positions.to(tl.int64) * outputs
    for i in range(inputs):
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
        for part in range(0, parts, _ADDED):
            for j in tl.static_range(_ADDED):
                there = inside & (part + j < parts)
                total += tl.load(totals + at + j * plane, mask=there, other=0)
            at += _ADDED * plane
        at += (parts - tl.cdiv(parts, _ADDED) * _ADDED) * plane
        factor = tl.load(scale + i * outputs + n, mask=n_inside, other=0.0)
        r = r + total.to(tl.float32) * factor[None, :]
    _finish(
        r,
        residual,
        out,
        out_scale,
        real,
        m,
        n,
        positions,
        height,
        width,
        outputs,
        gelu_after,
        residual_plane,
        residual_position,
        residual_scale,
        out_plane,
        out_position,
        real_position,
        AT,
        RESIDUAL,
        OUT,
    )


def conv(
    x: Input,
    weights: ProductWeights,
    grid: Positions,
    *,
    inputs: int = 1,
    input_stride: int = 0,
    start: Tensor | None = None,
    at: int = ALL,
    activation: bool = False,
    residual: Tensor | None = None,
    residual_scale: float = 0.0,
    out: Tensor,
    out_scale: Tensor | None = None,
    latents: Tensor | None = None,
    carried: Tensor | None = None,
    shuffle: bool = False,
) -> None:
    """Convolution of ``inputs`` activations that lie ``input_stride`` bytes apart.

    Args:
        x: the first input: FULL, KEPT, or SQUEEZED and then zero off its colour.
        weights: of the layer, or of layers side by side.
        grid: B, H, W of the full grid.
        start: float32 [.., O] to begin the sum with, channels contiguous; default: the bias.
        at: ALL, or the colour (0 non-anchors, 1 anchors) whose positions are computed, [.., W/2,
            ..].
        residual: added after the activation: float32 [.., O], or planes [2, .., O] times
            ``residual_scale``.
        out: float32 [.., O]; or planes [2, .., O], quantised with ``out_scale`` float32 [O]; or
            uint8 [B, 3, 8H, 8W], the pixels that 192 channels are.
        latents: float32 [B, H, W, C] to which half_tanh of the sum is added at the positions of
            ``at``, in place; ``out`` receives them quantised, on the full grid.
        carried: receives, beside the planes, the sum before they are quantised, float32 like
            them. It may be the residual.
        shuffle: ``out`` is [2, B, 2H, 2W, O/4], channel 4c + 2u + v at row 2y + u, column 2z + v;
            with ``carried`` both are, channel (2v + u) O/4 + c at row 2y + v, column 2z + u.
    """
    outputs = weights.outputs
    positions = grid.count // (1 if at == ALL else 2)
    steps = weights.planes.shape[1] // inputs
    config = product_config(out.device, positions, outputs, inputs, steps, weights.block_k)
    kind, real = REAL if out_scale is None else PLANES, None
    if out.dtype == torch.uint8:
        kind = PIXELS
    elif latents is not None:
        kind, real = LATENTS, latents
    elif carried is not None:
        kind, real = SPREAD if shuffle else CARRIED, carried
    elif shuffle:
        kind = SHUFFLED
    planes_of_residual = residual is not None and residual.dtype == torch.int8
    start = weights.bias if start is None else start
    before = (start, out if residual is None else residual, out)
    after = (
        weights.bias if out_scale is None else out_scale,
        weights.bias if real is None else real,
        positions,
        grid.height,
        grid.width,
        outputs,
        inputs,
    )
    strides = (
        start.stride(2) if start.dim() > 1 else 0,
        residual.stride(0) if planes_of_residual else 0,  # type: ignore[union-attr]
        0 if residual is None else residual.stride(-2),
        residual_scale,
        out.stride(0),
        out.stride(-2),
        0 if real is None else real.stride(-2),
    )
    ends = {"AT": at, "RESIDUAL": 0 if residual is None else 1 + planes_of_residual, "OUT": kind}
    reads = {"INPUT": x.kind, "COLOUR": x.colour, "BLOCK_K": weights.block_k}
    tile = {"BLOCK_M": config.block, "BLOCK_N": config.outputs}
    tiles = triton.cdiv(positions, config.block), triton.cdiv(outputs, config.outputs)
    options = {"num_warps": config.warps, "num_stages": config.stages}
    if config.parts == 1:
        launch(
            _conv_kernel,
            tiles,
            x.planes,
            weights.planes,
            weights.scale,
            *before,
            *after,
            weights.channels,
            weights.kernel,
            int(activation),
            x.planes.stride(0),
            x.planes.stride(3),
            input_stride,
            weights.planes.stride(0),
            *strides,
            **ends,
            **reads,
            **tile,
            **options,
        )
        return
    shape = inputs, config.parts, positions, outputs
    totals = torch.empty(shape, dtype=torch.int32, device=out.device)
    launch(
        _parts_kernel,
        (*tiles, inputs * config.parts),
        x.planes,
        weights.planes,
        totals,
        positions,
        grid.height,
        grid.width,
        outputs,
        weights.channels,
        weights.kernel,
        config.parts,
        x.planes.stride(0),
        x.planes.stride(3),
        input_stride,
        weights.planes.stride(0),
        AT=at,
        **reads,
        **tile,
        **options,
    )
    block = launch_config("totals", out.device, positions)
    launch(
        _totals_kernel,
        (triton.cdiv(positions, block.block), triton.cdiv(outputs, block.outputs)),
        totals,
        weights.scale,
        *before,
        *after,
        config.parts,
        int(activation),
        *strides,
        **ends,
        BLOCK_M=block.block,
        BLOCK_N=block.outputs,
        num_warps=block.warps,
    )


def latents_twin(r: Tensor, latents: Tensor) -> Tensor:
    """The latents with their predicted residual, both float32 at the same positions."""
    return latents + half_tanh_twin(r)
