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
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlic_fast.kernels.configs import product_config, wide_steps
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
    launch_tiles,
    quantise,
    rint,
)
from mlic_fast.kernels.layouts import FULL, SQUEEZED, Grid, Input
from mlic_fast.kernels.planes import (
    ALL,
    Planes,
    add_product,
    load_planes,
    no_product,
    store_planes,
    tile_of,
)
from mlic_fast.kernels.product_weights import ProductWeights

#: What becomes of the sum: see :func:`conv`.
REAL, PLANES, SHUFFLED, LATENTS, CARRIED, SPREAD, GATHERED, PIXELS = range(8)
# The same for kernels.
_FULL, _SQUEEZED = tl.constexpr(FULL), tl.constexpr(SQUEEZED)
_REAL, _SHUFFLED, _LATENTS = (tl.constexpr(kind) for kind in (REAL, SHUFFLED, LATENTS))
_CARRIED, _SPREAD = tl.constexpr(CARRIED), tl.constexpr(SPREAD)
_GATHERED, _PIXELS = tl.constexpr(GATHERED), tl.constexpr(PIXELS)
#: Parts that are loaded at a time.
_ADDED = tl.constexpr(4)
#: Arguments whose value (1, or a multiple of 16) must not make another variant to compile.
_SIZES = ("positions", "height", "width", "inputs", "side", "gelu_after", "parts")


def conv_twin(
    inputs: Sequence[Tensor],
    weights: ProductWeights,
    start: Tensor,
    *,
    gelu_after: bool = False,
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
    if gelu_after:
        r = gelu_twin(r)
    return r if residual is None else r + residual


# -- kernels ----------------------------------------------------------------------------------


class _Inputs(NamedTuple):
    """Activations of equal shape, ``stride_input`` bytes apart; see :class:`Planes`."""

    ptr: Tensor
    stride_plane: int
    stride_position: int
    stride_input: int


class _Weights(NamedTuple):
    """:class:`ProductWeights` without what is done with the sums."""

    planes: Tensor
    stride_plane: int
    outputs: int
    channels: int


class _Residual(NamedTuple):
    """float32 [.., O], or planes [2, .., O] times ``scale``."""

    ptr: Tensor
    stride_plane: int
    stride_position: int
    scale: float


class _Terms(NamedTuple):
    """What becomes one sum: ``start`` float32 [.., O], the products of every input times ``scale``
    float32 [inputs, O], and the residual.
    """

    scale: Tensor
    start: Tensor
    stride_start: int
    residual: _Residual | None


class _Out(NamedTuple):
    """Results: float32 or bytes; or planes, quantised with ``scale``, and float32 ``real``."""

    ptr: Tensor
    stride_plane: int
    stride_position: int
    scale: Tensor | None
    real: Tensor | None
    stride_real: int


class _Grid(NamedTuple):
    """Output positions, and rows and columns of the full grid."""

    positions: Any
    height: Any
    width: Any


class _Read(NamedTuple):
    """How inputs are read: FULL, KEPT or SQUEEZED, and the colour."""

    kind: int
    colour: int


class _End(NamedTuple):
    """What becomes of the sums (REAL, PLANES, ..), and the colour of their positions, or ALL."""

    kind: int
    colour: int


@triton.jit
def _places(m, grid, COLOUR: tl.constexpr):
    """Output positions m -> image and row as one number, row, column of the full grid."""
    out_width = grid.width // 2 if COLOUR >= 0 else grid.width
    image_row = m // out_width
    row = image_row % grid.height
    column = m % out_width
    if COLOUR >= 0:
        column = 2 * column + ((row + COLOUR) & 1)
    return image_row, row, column


@triton.jit
def _product(
    x,
    weights,
    i_input,
    first_step,
    last_step,
    m,
    n,
    grid,
    side,
    READ: tl.constexpr,
    COLOUR: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """int32 [BLOCK_M, BLOCK_N]: an input's steps of K from first_step up to last_step, mod 2^32."""
    k = tl.arange(0, BLOCK_K)
    mask_m = m < grid.positions
    mask_n = n < weights.outputs
    image_row, row, column = _places(m, grid, COLOUR)
    blocks = tl.cdiv(weights.channels, BLOCK_K)
    first_weight = (i_input * (side * side * blocks) + first_step).to(tl.int64)
    x_ptr = x.ptr + i_input * x.stride_input
    w_ptr = weights.planes + first_weight * (weights.outputs * BLOCK_K)
    tap = first_step // blocks
    first_channel = first_step % blocks * BLOCK_K
    dy = tap // side - side // 2
    dx = tap % side - side // 2
    o_w = n[None, :] * BLOCK_K + k[:, None]  # [BLOCK_K, BLOCK_N]
    hh, mid, ll = no_product(m.shape[0], n.shape[0])  # [BLOCK_M, BLOCK_N]
    for _ in range(first_step, last_step):
        c = first_channel + k
        tap_row = row + dy
        tap_column = column + dx
        mask_tap = mask_m & (tap_row >= 0) & (tap_row < grid.height)
        mask_tap = mask_tap & (tap_column >= 0) & (tap_column < grid.width)
        if READ.kind != _FULL:
            mask_tap = mask_tap & (((tap_row + tap_column) & 1) == READ.colour)
        if READ.kind == _SQUEEZED:
            position = (image_row + dy) * (grid.width // 2) + (tap_column >> 1)
        else:
            position = (image_row + dy) * grid.width + tap_column
        p_x = x_ptr + position[:, None].to(tl.int64) * x.stride_position + c[None, :]
        mask_x = mask_tap[:, None] & (c < weights.channels)[None, :]
        x_low = tl.load(p_x, mask=mask_x, other=0)  # [BLOCK_M, BLOCK_K]
        x_high = tl.load(p_x + x.stride_plane, mask=mask_x, other=0)
        w_low = tl.load(w_ptr + o_w, mask=mask_n[None, :], other=0)  # [BLOCK_K, BLOCK_N]
        w_high = tl.load(w_ptr + weights.stride_plane + o_w, mask=mask_n[None, :], other=0)
        hh, mid, ll = add_product(hh, mid, ll, x_low, x_high, w_low, w_high)
        w_ptr += weights.outputs * BLOCK_K
        # Selections: a branch here would keep the loads from being made ahead.
        first_channel += BLOCK_K
        next_tap = first_channel >= weights.channels
        first_channel = tl.where(next_tap, 0, first_channel)
        dx += next_tap.to(tl.int32)
        next_row = dx > side // 2
        dx = tl.where(next_row, -(side // 2), dx)
        dy += next_row.to(tl.int32)
    return join_products(hh, mid, ll)


@triton.jit
def _begin(terms, m, n, mask):
    """What the sums begin with: float32 [BLOCK_M, BLOCK_N]."""
    p_start = terms.start + m[:, None].to(tl.int64) * terms.stride_start + n[None, :]
    return tl.load(p_start, mask=mask, other=0.0)


@triton.jit
def _add(r, total, terms, i_input, n, outputs):
    """r with the products of an input, int32 [BLOCK_M, BLOCK_N]."""
    scale = tl.load(terms.scale + i_input * outputs + n, mask=n < outputs, other=0.0)
    return r + total.to(tl.float32) * scale[None, :]


@triton.jit
def _finish(r, terms, out, m, n, mask, grid, outputs, gelu_after, END: tl.constexpr):
    """What becomes of the sums r, float32 [BLOCK_M, BLOCK_N], at output positions m and channels n.

    Offsets and masks below are [BLOCK_M, BLOCK_N].
    """
    image_row, row, column = _places(m, grid, END.colour)
    if gelu_after:
        r = gelu(r)
    if terms.residual is not None:
        residual = terms.residual
        offset = m[:, None].to(tl.int64) * residual.stride_position + n[None, :]
        if residual.ptr.dtype.element_ty == tl.int8:
            low, high = load_planes(residual.ptr, offset, residual.stride_plane, mask)
            r = r + join_bytes(low, high).to(tl.float32) * residual.scale
        else:
            r = r + tl.load(residual.ptr + offset, mask=mask, other=0.0)

    if END.kind == _REAL:
        p_out = out.ptr + m[:, None].to(tl.int64) * out.stride_position + n[None, :]
        tl.store(p_out, r, mask=mask)
    elif END.kind == _PIXELS:  # channel 64c + 8v + u: primary c, row 8 row + v, column 8 column + u
        primary = (image_row // grid.height * 3)[:, None] + (n // 64)[None, :]
        line = primary * (8 * grid.height) + (8 * row)[:, None] + (n // 8 % 8)[None, :]
        offset = line.to(tl.int64) * (8 * grid.width) + (8 * column)[:, None] + (n % 8)[None, :]
        r = tl.where(r > 0.0, r, 0.0)
        pixel = rint(tl.where(r < 255.0, r, 255.0)).to(tl.uint8)
        tl.store(out.ptr + offset, pixel, mask=mask)
    else:
        if END.kind == _SHUFFLED:  # channel 4c + 2u + v: row 2 row + u, column 2 column + v
            line = (2 * image_row[:, None] + ((n >> 1) & 1)[None, :]) * (2 * grid.width)
            position = line + 2 * column[:, None] + (n & 1)[None, :]
            offset = position.to(tl.int64) * out.stride_position + (n >> 2)[None, :]
        elif END.kind == _LATENTS:  # in place on the full grid
            position = image_row * grid.width + column
            p_real = out.real + position[:, None].to(tl.int64) * out.stride_real + n[None, :]
            r = tl.load(p_real, mask=mask, other=0.0) + half_tanh(r)
            tl.store(p_real, r, mask=mask)
            offset = position[:, None].to(tl.int64) * out.stride_position + n[None, :]
        elif END.kind == _SPREAD:  # channel (2u + v) C + c: row 2 row + u, column 2 column + v
            part = n // (outputs // 4)
            line = (2 * image_row[:, None] + (part // 2)[None, :]) * (2 * grid.width)
            position = (line + 2 * column[:, None] + (part % 2)[None, :]).to(tl.int64)
            c = (n % (outputs // 4))[None, :]
            tl.store(out.real + position * out.stride_real + c, r, mask=mask)
            offset = position * out.stride_position + c
        elif END.kind == _GATHERED:  # row 2i + u, column 2j + v: row i, column j, (2u + v) C + n
            position = (image_row // 2) * (grid.width // 2) + column // 2
            part = 2 * (row % 2) + column % 2
            offset = position.to(tl.int64) * out.stride_position + part * outputs
            offset = offset[:, None] + n[None, :]
        else:
            if END.kind == _CARRIED:
                p_real = out.real + m[:, None].to(tl.int64) * out.stride_real + n[None, :]
                tl.store(p_real, r, mask=mask)
            offset = m[:, None].to(tl.int64) * out.stride_position + n[None, :]
        scale = tl.load(out.scale + n, mask=n < outputs, other=0.0)  # [BLOCK_N]
        store_planes(quantise(r, scale[None, :]), out.ptr + offset, out.stride_plane, mask)


@triton.jit(do_not_specialize=_SIZES)
def _conv_kernel(
    x,
    weights,
    terms,
    out,
    positions,
    height,
    width,
    inputs,
    side,
    gelu_after,
    READ: tl.constexpr,
    END: tl.constexpr,
    ONE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``ONE`` input takes fewer registers: what its sum begins with is loaded when products are
    done.
    """
    await_launch_before()
    grid = _Grid(positions, height, width)
    m, n, mask = tile_of(positions, weights.outputs, BLOCK_M, BLOCK_N)
    steps = side * side * tl.cdiv(weights.channels, BLOCK_K)
    if ONE:
        total = _product(
            x, weights, 0, 0, steps, m, n, grid, side, READ, END.colour, BLOCK_K
        )  # [BLOCK_M, BLOCK_N]
        r = _add(_begin(terms, m, n, mask), total, terms, 0, n, weights.outputs)
    else:
        r = _begin(terms, m, n, mask)
        for i_input in range(inputs):
            total = _product(
                x, weights, i_input, 0, steps, m, n, grid, side, READ, END.colour, BLOCK_K
            )  # [BLOCK_M, BLOCK_N]
            r = _add(r, total, terms, i_input, n, weights.outputs)
    _finish(r, terms, out, m, n, mask, grid, weights.outputs, gelu_after, END)


@triton.jit(do_not_specialize=_SIZES)
def _parts_kernel(
    x,
    weights,
    totals,
    positions,
    height,
    width,
    side,
    parts,
    READ: tl.constexpr,
    COLOUR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """totals int32 [inputs, parts, positions, outputs]: each input's sum, over a part of its K."""
    await_launch_before()
    grid = _Grid(positions, height, width)
    m, n, mask = tile_of(positions, weights.outputs, BLOCK_M, BLOCK_N)
    i_total = tl.program_id(2)
    i_input = i_total // parts
    i_part = i_total % parts
    steps = side * side * tl.cdiv(weights.channels, BLOCK_K)
    first_step = i_part * steps // parts
    last_step = (i_part + 1) * steps // parts
    total = _product(
        x, weights, i_input, first_step, last_step, m, n, grid, side, READ, COLOUR, BLOCK_K
    )  # [BLOCK_M, BLOCK_N]
    row = i_total.to(tl.int64) * positions + m[:, None]
    tl.store(totals + row * weights.outputs + n[None, :], total, mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def _totals_kernel(
    totals,
    terms,
    out,
    outputs,
    positions,
    height,
    width,
    inputs,
    parts,
    gelu_after,
    END: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    await_launch_before()
    m, n, mask = tile_of(positions, outputs, BLOCK_M, BLOCK_N)
    r = _begin(terms, m, n, mask)
    offset = m[:, None].to(tl.int64) * outputs + n[None, :]  # [BLOCK_M, BLOCK_N]
    stride_part = positions.to(tl.int64) * outputs
    for i_input in range(inputs):
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
        for part in range(0, parts, _ADDED):
            for j in tl.static_range(_ADDED):
                mask_part = mask & (part + j < parts)
                total += tl.load(totals + offset + j * stride_part, mask=mask_part, other=0)
            offset += _ADDED * stride_part
        offset += (parts - tl.cdiv(parts, _ADDED) * _ADDED) * stride_part
        r = _add(r, total, terms, i_input, n, outputs)
    grid = _Grid(positions, height, width)
    _finish(r, terms, out, m, n, mask, grid, outputs, gelu_after, END)


# -- launcher ---------------------------------------------------------------------------------


def conv(
    x: Input,
    weights: ProductWeights,
    grid: Grid,
    *,
    inputs: int = 1,
    input_stride: int = 0,
    start: Tensor | None = None,
    colour: int = ALL,
    gelu_after: bool = False,
    residual: Tensor | None = None,
    residual_exponent: int = 0,
    latents: Tensor | None = None,
    carried: Tensor | None = None,
    shuffle: bool = False,
    gather: bool = False,
    out: Tensor,
    out_scale: Tensor | None = None,
) -> None:
    """Convolution of ``inputs`` activations that lie ``input_stride`` bytes apart.

    Args:
        x: the first input: FULL, KEPT, or SQUEEZED and then zero off its colour.
        weights: of the layer, or of layers side by side.
        grid: B, H, W of the full grid.
        start: float32 [.., O] to begin the sum with, channels contiguous; default: the bias.
        colour: ALL, or the colour (0 non-anchors, 1 anchors) whose positions are computed, [..,
            W/2, ..].
        residual: added after the activation: float32 [.., O], or an activation, planes [2, .., O]
            of ``residual_exponent``.
        latents: float32 [B, H, W, C] to which half_tanh of the sum is added at the positions of
            ``colour``, in place; ``out`` receives them quantised, on the full grid.
        carried: receives, beside the planes, the sum before they are quantised, float32 like
            them. It may be the residual.
        shuffle: ``out`` is [2, B, 2H, 2W, O/4], channel 4c + 2u + v at row 2y + u, column 2z + v;
            with ``carried`` both are, channel (2u + v) O/4 + c at row 2y + u, column 2z + v.
        gather: ``out`` is [2, B, H/2, W/2, 4 O], row 2y + u and column 2z + v in the channels from
            (2u + v) O on. H and W are even.
        out: float32 [.., O]; or planes [2, .., O], quantised with ``out_scale`` float32 [O]; or
            uint8 [B, 3, 8H, 8W], the pixels that 192 channels are.
    """
    outputs, side = weights.outputs, weights.kernel
    positions = grid.count // (1 if colour == ALL else 2)
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
    elif gather:
        kind = GATHERED
    source = _Inputs(*Planes.of(x.planes), input_stride)
    start = weights.bias if start is None else start
    layer = _Weights(weights.planes, weights.stride_plane, outputs, weights.channels)
    added = None
    if residual is not None:
        added = _Residual(*Planes.of(residual), 2.0**-residual_exponent)
    stride_start = start.stride(2) if start.dim() > 1 else 0
    terms = _Terms(weights.scale, start, stride_start, added)
    result = _Out(*Planes.of(out), out_scale, real, 0 if real is None else real.stride(-2))
    sizes = positions, grid.height, grid.width
    read, end = _Read(x.kind, x.colour), _End(kind, colour)
    tile = {"BLOCK_M": config.block, "BLOCK_N": config.outputs, "BLOCK_K": weights.block_k}
    tiles = triton.cdiv(positions, config.block), triton.cdiv(outputs, config.outputs)
    options = {"num_warps": config.warps, "num_stages": config.stages}
    if config.parts == 1:
        launch(
            _conv_kernel,
            tiles,
            source,
            layer,
            terms,
            result,
            *sizes,
            inputs,
            side,
            int(gelu_after),
            READ=read,
            END=end,
            ONE=inputs == 1 and wide_steps(out.device),  # one tile would spill on sm_100
            **tile,
            **options,
        )
        return
    shape = inputs, config.parts, positions, outputs
    totals = torch.empty(shape, dtype=torch.int32, device=out.device)
    launch(
        _parts_kernel,
        (*tiles, inputs * config.parts),
        source,
        layer,
        totals,
        *sizes,
        side,
        config.parts,
        READ=read,
        COLOUR=colour,
        **tile,
        **options,
    )
    launch_tiles(
        _totals_kernel,
        "totals",
        positions,
        outputs,
        totals,
        terms,
        result,
        outputs,
        *sizes,
        inputs,
        config.parts,
        int(gelu_after),
        END=end,
    )


def latents_twin(r: Tensor, latents: Tensor) -> Tensor:
    """The latents with their predicted residual, both float32 at the same positions."""
    return latents + half_tanh_twin(r)
