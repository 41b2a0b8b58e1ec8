"""The pass kernel: contexts of one colour -> scale indexes and means (docs/arithmetic.md, section
6).

    r   = start + sum over contexts of float(context * W) * scale       the hyper part is in start
    q_0 = quantise(gelu(r))
    q_2 = quantise(gelu(layer 2 of q_0))
    q_4 = quantise(gelu(layer 4 of q_2))
    r   = layer 6 of q_4: C scales, then C means
    index = number of thresholds below the scale;  symbol = rint(y - mean), when encoding

A whole chain of 1x1 layers in one launch. A program has BLOCK_M positions of the colour and all
their channels: nothing but contexts, hyper part and weights is read, nothing but the results
written, and no layer waits for another program. Contexts are gathered where they lie: on the full
grid or squeezed to the colour, without a copy or a concatenation.

Shapes: contexts planes [2, B, H, W (or W/2), c], start float32 [B, H, W/2, a]; indexes uint8, means
float32, symbols int32 [B, H, W/2, C]. Operations: 4 products of int8 for each of positions *
(contexts * a + a * b + b * c + 2 c C), a, b, c = 320, 256, 128 in the full-size models. Bytes: the
weights (0.45 MB, from L2) for each program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mlic_fast.coder import SCALES
from mlic_fast.engine.arithmetic import SYMBOL_LIMIT
from mlic_fast.engine.packing.packed import Layer
from mlic_fast.kernels import configs
from mlic_fast.kernels.functions import (
    await_launch_before,
    clamp,
    from_planes,
    gelu,
    gelu_twin,
    high_byte,
    join_products,
    launch,
    low_byte,
    quantise,
    quantise_twin,
    rint,
    to_planes,
)
from mlic_fast.kernels.grid import SQUEEZED, Input, Positions
from mlic_fast.kernels.planes import add_product, product

_SYMBOL_LIMIT = tl.constexpr(float(SYMBOL_LIMIT))
#: Layer 0 is computed in blocks of so many outputs, each used up by layer 2 at once.
_BLOCK_N = 64
_BLOCK_K = 32


@dataclass(frozen=True)
class PassWeights:
    """The entropy parameters of one slice and colour, widths rounded up with zeros.

    Attributes:
        context: int8 [2, blocks of all contexts, a, BLOCK_K].
        context_scale: float32 [contexts, a].
        widths: channels of each context; 0 of one that comes as what it adds to layer 0.
        layer2: int8 [2, a / BLOCK_N, b, BLOCK_N].
        layer4: int8 [2, c, b].
        layer6: int8 [2, 2, C, c], scales and means.
        scale2, bias2, scale4, bias4 [b], [c]; scale6, bias6 [2, C]: float32.
        out_scales: 2^exponent of the outputs of layers 0, 2, 4.
        thresholds: float32 [63], the scales of the tables.
        hidden: a, b, c and C before rounding up.
    """

    context: Tensor
    context_scale: Tensor
    widths: tuple[int, ...]
    layer2: Tensor
    scale2: Tensor
    bias2: Tensor
    layer4: Tensor
    scale4: Tensor
    bias4: Tensor
    layer6: Tensor
    scale6: Tensor
    bias6: Tensor
    out_scales: tuple[float, float, float]
    thresholds: Tensor
    hidden: tuple[int, int, int, int]


def pack_weights(
    layers: Sequence[Layer],
    context_exponents: Sequence[int | None],
    exponents: Sequence[int],
    device: torch.device,
) -> PassWeights:
    """Layers 0, 2, 4, 6 -> what :func:`entropy_parameters` takes.

    ``context_exponents``: of the last inputs of layer 0, the contexts; those before are summed
    already. None for a context that comes as what it adds to layer 0.
    ``exponents``: of the outputs of layers 0, 2, 4.
    """
    first, second, third, last = layers
    a, b, c, channels = (len(second_input.bias) for second_input in layers)
    channels //= 2
    contexts = first.segments[len(first.segments) - len(context_exponents) :]
    blocks, scales, widths = [], [], []
    a_padded = _round_up(a, _BLOCK_N)
    for segment, exponent in zip(contexts, context_exponents, strict=True):
        if exponent is None:
            scales.append(np.zeros(a_padded, np.float32))
            widths.append(0)
            continue
        width = segment.weight.shape[-1]
        w = np.zeros((a_padded, _round_up(width, _BLOCK_K)), np.int32)
        w[:a, :width] = segment.weight.reshape(a, width)
        blocks.append(w.reshape(a_padded, -1, _BLOCK_K).swapaxes(0, 1))
        scales.append(_padded(segment.scale * _power(-exponent), a_padded))
        widths.append(width)
    context = np.concatenate(blocks) if blocks else np.zeros((1, 1, 1), np.int32)
    layer2 = _matrix(second, _power_of_two_above(b), a_padded)
    layer2 = layer2.reshape(len(layer2), -1, _BLOCK_N).swapaxes(0, 1)
    b_padded, c_padded = layer2.shape[1], _power_of_two_above(c)
    layer4 = _matrix(third, c_padded, b_padded)
    # Scales and means apart: a tile of registers cannot be cut.
    layer6 = last.segments[0].weight.reshape(2, channels, c)
    wide = np.zeros((2, _power_of_two_above(channels), c_padded), np.int32)
    wide[:, :channels, :c] = layer6
    scale6 = last.segments[0].scale * _power(-exponents[2])

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    def planes(array: np.ndarray) -> Tensor:
        return to_planes(torch.from_numpy(np.ascontiguousarray(array))).to(device)

    return PassWeights(
        planes(context),
        tensor(np.stack(scales) if scales else np.zeros((1, 1), np.float32)),
        tuple(widths),
        planes(layer2),
        tensor(_padded(second.segments[0].scale * _power(-exponents[0]), b_padded)),
        tensor(_padded(second.bias, b_padded)),
        planes(layer4),
        tensor(_padded(third.segments[0].scale * _power(-exponents[1]), c_padded)),
        tensor(_padded(third.bias, c_padded)),
        planes(wide),
        tensor(_padded(scale6.reshape(2, channels), wide.shape[1])),
        tensor(_padded(last.bias.reshape(2, channels), wide.shape[1])),
        tuple(float(_power(e)) for e in exponents),  # type: ignore[arg-type]
        tensor(SCALES[:-1]),
        (a, b, c, channels),
    )


def _power(exponent: int) -> np.float32:
    return np.ldexp(np.float32(1), exponent)


def _round_up(n: int, block: int) -> int:
    return -(-n // block) * block


def _power_of_two_above(n: int) -> int:
    """At least 32, as the tensor cores take 32 bytes at a time."""
    return max(32, 1 << (n - 1).bit_length())


def _padded(values: np.ndarray, width: int) -> np.ndarray:
    wide = np.zeros((*values.shape[:-1], width), np.float32)
    wide[..., : values.shape[-1]] = values
    return wide


def _matrix(layer: Layer, rows: int, columns: int) -> np.ndarray:
    """Weights of a 1x1 layer of one input [O, C] in a larger matrix of zeros."""
    w = layer.segments[0].weight[:, 0, 0]
    wide = np.zeros((rows, columns), np.int32)
    wide[: w.shape[0], : w.shape[1]] = w
    return wide


def entropy_parameters_twin(
    start: Tensor, contexts: Sequence[Tensor], weights: PassWeights, y: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All at the positions of the colour: start [P, a], contexts int32 [P, c] or float32 [P, a], y
    [P, C].
    """
    a, b, c, channels = weights.hidden
    r, block = start, 0
    for x, width, scale in zip(contexts, weights.widths, weights.context_scale, strict=False):
        if width == 0:
            r = r + x
            continue
        blocks = -(-width // _BLOCK_K)
        w = from_planes(weights.context[:, block : block + blocks]).permute(1, 0, 2)
        r = r + _product_twin(x, w.reshape(w.shape[0], -1)[:a, :width]) * scale[:a]
        block += blocks
    x = quantise_twin(gelu_twin(r), weights.out_scales[0])
    w = from_planes(weights.layer2).permute(1, 0, 2)
    w = w.reshape(w.shape[0], -1)[:b, :a]
    x = _hidden(x, w, weights.bias2[:b], weights.scale2[:b], weights.out_scales[1])
    w = from_planes(weights.layer4)[:c, :b]
    x = _hidden(x, w, weights.bias4[:c], weights.scale4[:c], weights.out_scales[2])
    scales, means = (
        bias[:channels] + _product_twin(x, w[:channels, :c]) * scale[:channels]
        for w, bias, scale in zip(
            from_planes(weights.layer6), weights.bias6, weights.scale6, strict=True
        )
    )
    thresholds = weights.thresholds
    indexes = len(thresholds) - (scales[..., None] <= thresholds).sum(-1)
    symbols = None
    if y is not None:
        bound = torch.tensor(float(SYMBOL_LIMIT), device=y.device)
        symbols = torch.nan_to_num(y - means, nan=0.0, posinf=float(bound), neginf=-float(bound))
        symbols = torch.round(torch.clamp(symbols, -bound, bound)).to(torch.int32)
    return indexes.to(torch.uint8), means, symbols


def _hidden(x: Tensor, w: Tensor, bias: Tensor, scale: Tensor, out_scale: float) -> Tensor:
    return quantise_twin(gelu_twin(bias + _product_twin(x, w) * scale), out_scale)


def _product_twin(x: Tensor, w: Tensor) -> Tensor:
    """Integers [P, C], [O, C] -> their product [P, O] as float32."""
    return (x.double() @ w.double().T).to(torch.int32).to(torch.float32)


@triton.jit
def _product(
    x,
    x_plane,
    inside,
    w,
    w_plane,
    OUTPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One context, rows ``x`` [M, 1], times a block of outputs, columns ``w`` [N]: int32."""
    k = tl.arange(0, BLOCK_K)
    hh = tl.zeros((x.shape[0], BLOCK_N), tl.int32)
    mid = tl.zeros((x.shape[0], BLOCK_N), tl.int32)
    ll = tl.zeros((x.shape[0], BLOCK_N), tl.int32)
    for step in tl.static_range((WIDTH + BLOCK_K - 1) // BLOCK_K):
        channel = step * BLOCK_K + k
        tile = x + channel[None, :]
        mask = inside[:, None] & (channel < WIDTH)[None, :]
        low = tl.load(tile, mask=mask, other=0)
        high = tl.load(tile + x_plane, mask=mask, other=0)
        tile = w[None, :] + (step * OUTPUTS * BLOCK_K + k[:, None])
        w_low = tl.load(tile)
        w_high = tl.load(tile + w_plane)
        hh, mid, ll = add_product(hh, mid, ll, low, high, w_low, w_high)
    return join_products(hh, mid, ll)


@triton.jit
def _layer(q, w, w_plane, scale, bias, K: tl.constexpr, N: tl.constexpr):
    """bias + float(q * W) * scale: int32 [M, K] in registers, planes [2, N, K] -> real [M, N]."""
    n = tl.arange(0, N)
    tile = w + n[None, :] * K + tl.arange(0, K)[:, None]
    w_low = tl.load(tile)
    w_high = tl.load(tile + w_plane)
    total = product(low_byte(q), high_byte(q), w_low, w_high).to(tl.float32)
    return tl.load(bias + n)[None, :] + total * tl.load(scale + n)[None, :]


@triton.jit
def _scale_index(scales, thresholds):
    """The number of the 63 thresholds below each scale; 63 for NaN."""
    index = tl.zeros(scales.shape, tl.int32)
    for level in tl.static_range(6):
        step = 32 >> level
        below = scales <= tl.load(thresholds + index + step - 1)
        index = tl.where(below, index, index + step)
    return index


@triton.jit(do_not_specialize=("positions", "height", "width"))
def _pass_kernel(
    start,
    contexts,
    context,
    context_scale,
    layer2,
    scale2,
    bias2,
    layer4,
    scale4,
    bias4,
    layer6,
    scale6,
    bias6,
    thresholds,
    y,
    indexes,
    means,
    symbols,
    positions,
    height,
    width,
    start_position,
    context_planes,
    context_positions,
    w_plane,
    y_position,
    out_scale0,
    out_scale2,
    out_scale4,
    COLOUR: tl.constexpr,
    WIDTHS: tl.constexpr,
    SQUEEZED: tl.constexpr,
    HIDDEN: tl.constexpr,
    PADDED0: tl.constexpr,
    PADDED2: tl.constexpr,
    PADDED4: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    ENCODE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_inside = m < positions
    half = width // 2
    image_row = m // half
    full = image_row * width + 2 * (m % half) + ((image_row % height + COLOUR) & 1)

    hh = tl.zeros((BLOCK_M, PADDED2), tl.int32)
    mid = tl.zeros((BLOCK_M, PADDED2), tl.int32)
    ll = tl.zeros((BLOCK_M, PADDED2), tl.int32)
    k = tl.arange(0, BLOCK_N)
    n2 = tl.arange(0, PADDED2)
    for j in range(PADDED0 // BLOCK_N):
        n = j * BLOCK_N + k
        r = tl.load(
            start + m[:, None].to(tl.int64) * start_position + n[None, :],
            mask=m_inside[:, None] & (n < HIDDEN)[None, :],
            other=0.0,
        )
        w = context + n * BLOCK_K
        for i in tl.static_range(len(WIDTHS)):
            at = m if SQUEEZED[i] else full
            x = contexts[i] + at[:, None].to(tl.int64) * context_positions[i]
            if WIDTHS[i] == 0:
                inside = m_inside[:, None] & (n < HIDDEN)[None, :]
                r = r + tl.load(x + n[None, :], mask=inside, other=0.0)
            else:
                total = _product(
                    x, context_planes[i], m_inside, w, w_plane, PADDED0, WIDTHS[i], BLOCK_N, BLOCK_K
                )
                r = r + total.to(tl.float32) * tl.load(context_scale + i * PADDED0 + n)[None, :]
                w += (WIDTHS[i] + BLOCK_K - 1) // BLOCK_K * (PADDED0 * BLOCK_K)
        q = quantise(gelu(r), out_scale0)
        low = low_byte(q)
        high = high_byte(q)
        tile = layer2 + (j * PADDED2 + n2)[None, :] * BLOCK_N + k[:, None]
        w_low = tl.load(tile)
        w_high = tl.load(tile + PADDED0 * PADDED2)
        hh, mid, ll = add_product(hh, mid, ll, low, high, w_low, w_high)

    total = join_products(hh, mid, ll).to(tl.float32)
    r = tl.load(bias2 + n2)[None, :] + total * tl.load(scale2 + n2)[None, :]
    q = quantise(gelu(r), out_scale2)
    r = _layer(q, layer4, PADDED4 * PADDED2, scale4, bias4, PADDED2, PADDED4)
    q = quantise(gelu(r), out_scale4)
    scales = _layer(q, layer6, 2 * PADDED * PADDED4, scale6, bias6, PADDED4, PADDED)
    mean = _layer(
        q, layer6 + PADDED * PADDED4, 2 * PADDED * PADDED4,
        scale6 + PADDED, bias6 + PADDED, PADDED4, PADDED,
    )  # fmt: skip
    c = tl.arange(0, PADDED)
    mask = m_inside[:, None] & (c < CHANNELS)[None, :]
    at = m[:, None].to(tl.int64) * CHANNELS + c[None, :]
    tl.store(indexes + at, _scale_index(scales, thresholds).to(tl.uint8), mask=mask)
    tl.store(means + at, mean, mask=mask)
    if ENCODE:
        place = full[:, None].to(tl.int64) * y_position + c[None, :]
        x = tl.load(y + place, mask=mask, other=0.0) - mean
        x = clamp(tl.where(x == x, x, 0.0), _SYMBOL_LIMIT)
        tl.store(symbols + at, rint(x), mask=mask)


def stages(weights: PassWeights, config: configs.Config, shared_memory: int) -> int:
    """Software stages: those of the configuration, or as many as shared memory holds.

    With s stages the weights of s - 1 blocks of outputs are in shared memory, beside the contexts.
    One block would be waited for as soon as its copy has begun, so two stages are none.
    """
    contexts = sum(_round_up(width, _BLOCK_K) for width in weights.widths)
    ahead = 2 * _BLOCK_N * (contexts + weights.layer2.shape[2])
    beside = config.block * (2 * contexts + 3 * 4 * _BLOCK_N)
    most = min(config.stages, 1 + (shared_memory - beside) // ahead)
    return most if most > 2 else 1


def entropy_parameters(
    start: Tensor,
    contexts: Sequence[Input | Tensor],
    weights: PassWeights,
    colour: int,
    grid: Positions,
    *,
    indexes: Tensor,
    means: Tensor,
    y: Tensor | None = None,
    symbols: Tensor | None = None,
) -> None:
    """One launch for the entropy parameters of a slice at a colour (0 non-anchors, 1 anchors).

    Args:
        start: float32 [B, H, W/2, a], the sum of the first layer over what comes before the
            contexts: bias, hyper part.
        contexts: FULL, or SQUEEZED to the colour; or what they add to the first layer, float32
            [B, H, W/2, a]; in the order of the weights.
        indexes, means: receive the results, [B, H, W/2, C], contiguous.
        y: float32 [B, H, W, C], the latents to encode; ``symbols`` then receives int32 [B, H, W/2,
        C].
    """
    positions = grid.count // 2
    config = configs.config("pass", start.device, positions)
    planes = [x.planes if isinstance(x, Input) else x for x in contexts]
    widths = (x.shape[-1] if x.dtype == torch.int8 else 0 for x in planes)
    assert tuple(widths) == weights.widths
    a, *_, channels = weights.hidden
    launch(
        _pass_kernel,
        (triton.cdiv(positions, config.block),),
        start,
        tuple(planes),
        weights.context,
        weights.context_scale,
        weights.layer2,
        weights.scale2,
        weights.bias2,
        weights.layer4,
        weights.scale4,
        weights.bias4,
        weights.layer6,
        weights.scale6,
        weights.bias6,
        weights.thresholds,
        start if y is None else y,
        indexes,
        means,
        indexes if symbols is None else symbols,
        positions,
        grid.height,
        grid.width,
        start.stride(-2),
        tuple(x.stride(0) for x in planes),
        tuple(x.stride(-2) for x in planes),
        weights.context.stride(0),
        0 if y is None else y.stride(-2),
        *weights.out_scales,
        COLOUR=colour,
        WIDTHS=weights.widths,
        SQUEEZED=tuple(not isinstance(x, Input) or x.kind == SQUEEZED for x in contexts),
        HIDDEN=a,
        PADDED0=weights.layer2.shape[1] * _BLOCK_N,
        PADDED2=weights.layer2.shape[2],
        PADDED4=weights.layer4.shape[1],
        CHANNELS=channels,
        PADDED=weights.layer6.shape[2],
        ENCODE=y is not None,
        BLOCK_M=config.block,
        BLOCK_N=_BLOCK_N,
        BLOCK_K=_BLOCK_K,
        num_warps=config.warps,
        num_stages=stages(weights, config, configs.shared_memory(start.device)),
    )
