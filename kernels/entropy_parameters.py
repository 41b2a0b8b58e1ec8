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
from typing import NamedTuple

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
from mlic_fast.kernels.layouts import SQUEEZED, Grid, Input
from mlic_fast.kernels.planes import Planes, Rows, add_product, no_product, product

_SYMBOL_LIMIT = tl.constexpr(float(SYMBOL_LIMIT))
#: Layer 0 is computed in blocks of so many outputs, each used up by layer 2 at once.
_BLOCK_N = 64
_BLOCK_K = 32


class HiddenLayer(NamedTuple):
    """Weights int8 [2, .., outputs, inputs], and float32 ``scale`` and ``bias`` of the outputs.

    ``input_scale``: 2^exponent of its input, the output of the layer before.
    """

    planes: Tensor
    scale: Tensor
    bias: Tensor
    input_scale: float


class PassLayers(NamedTuple):
    """The layers as the kernel takes them, widths rounded up with zeros.

    Attributes:
        contexts: of layer 0, int8 [2, blocks of all contexts, a, BLOCK_K].
        context_scale: float32 [contexts, a].
        stride_plane: of ``contexts``.
        layer2: planes [2, a / BLOCK_N, b, BLOCK_N].
        layer4: planes [2, c, b].
        layer6: planes [2, 2, C, c], scale and bias [2, C]: scales, then means.
        thresholds: float32 [63], the scales of the tables.
    """

    contexts: Tensor
    context_scale: Tensor
    stride_plane: int
    layer2: HiddenLayer
    layer4: HiddenLayer
    layer6: HiddenLayer
    thresholds: Tensor


@dataclass(frozen=True)
class PassWeights:
    """The entropy parameters of one slice and colour.

    Attributes:
        layers: as the kernel takes them.
        widths: channels of each context; 0 of one that comes as what it adds to layer 0.
        hidden: a, b, c and C before rounding up.
    """

    layers: PassLayers
    widths: tuple[int, ...]
    hidden: tuple[int, int, int, int]

    @classmethod
    def pack(
        cls,
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

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        def planes(array: np.ndarray) -> Tensor:
            return to_planes(torch.from_numpy(np.ascontiguousarray(array))).to(device)

        def hidden(
            matrix: np.ndarray, scale: np.ndarray, bias: np.ndarray, exponent: int
        ) -> HiddenLayer:
            """``scale`` and ``bias`` as wide as the matrix; ``exponent`` of the input."""
            width = matrix.shape[-2]
            scale, bias = _padded(scale * _power(-exponent), width), _padded(bias, width)
            return HiddenLayer(planes(matrix), tensor(scale), tensor(bias), float(_power(exponent)))

        contexts_planes = planes(context)
        layers_of_pass = PassLayers(
            contexts_planes,
            tensor(np.stack(scales) if scales else np.zeros((1, 1), np.float32)),
            contexts_planes.stride(0),
            hidden(layer2, second.segments[0].scale, second.bias, exponents[0]),
            hidden(layer4, third.segments[0].scale, third.bias, exponents[1]),
            hidden(
                wide,
                last.segments[0].scale.reshape(2, channels),
                last.bias.reshape(2, channels),
                exponents[2],
            ),
            tensor(SCALES[:-1]),
        )
        return cls(layers_of_pass, tuple(widths), (a, b, c, channels))


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
    layers = weights.layers
    r, block = start, 0
    for x, width, scale in zip(contexts, weights.widths, layers.context_scale, strict=False):
        if width == 0:
            r = r + x
            continue
        blocks = -(-width // _BLOCK_K)
        w = from_planes(layers.contexts[:, block : block + blocks]).permute(1, 0, 2)
        r = r + _product_twin(x, w.reshape(w.shape[0], -1)[:a, :width]) * scale[:a]
        block += blocks
    x = quantise_twin(gelu_twin(r), layers.layer2.input_scale)
    w = from_planes(layers.layer2.planes).permute(1, 0, 2)
    r = _layer_twin(x, w.reshape(w.shape[0], -1)[:b, :a], layers.layer2.scale, layers.layer2.bias)
    x = quantise_twin(gelu_twin(r), layers.layer4.input_scale)
    w = from_planes(layers.layer4.planes)[:c, :b]
    r = _layer_twin(x, w, layers.layer4.scale, layers.layer4.bias)
    x = quantise_twin(gelu_twin(r), layers.layer6.input_scale)
    w = from_planes(layers.layer6.planes)[:, :channels, :c]
    scales, means = map(_layer_twin, (x, x), w, layers.layer6.scale, layers.layer6.bias)
    thresholds = layers.thresholds
    indexes = len(thresholds) - (scales[..., None] <= thresholds).sum(-1)
    symbols = None
    if y is not None:
        bound = torch.tensor(float(SYMBOL_LIMIT), device=y.device)
        symbols = torch.nan_to_num(y - means, nan=0.0, posinf=float(bound), neginf=-float(bound))
        symbols = torch.round(torch.clamp(symbols, -bound, bound)).to(torch.int32)
    return indexes.to(torch.uint8), means, symbols


def _layer_twin(x: Tensor, w: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Integers [P, C], [O, C], and float32 of at least O outputs -> float32 [P, O]."""
    outputs = len(w)
    return bias[:outputs] + _product_twin(x, w) * scale[:outputs]


def _product_twin(x: Tensor, w: Tensor) -> Tensor:
    """Integers [P, C], [O, C] -> their product [P, O] as float32."""
    return (x.double() @ w.double().T).to(torch.int32).to(torch.float32)


@triton.jit
def _context_product(
    x,
    p_x,
    w_ptr,
    stride_plane,
    mask_m,
    n,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """int32 [BLOCK_M, BLOCK_N]: a context at the positions ``p_x`` [BLOCK_M, 1], times its weights
    ``w_ptr`` of a block of outputs.
    """
    k = tl.arange(0, BLOCK_K)
    p_w = w_ptr + n * BLOCK_K  # [BLOCK_N]
    hh, mid, ll = no_product(mask_m.shape[0], n.shape[0])
    for step in tl.static_range((WIDTH + BLOCK_K - 1) // BLOCK_K):
        c = step * BLOCK_K + k
        p_tile = p_x + c[None, :]
        mask = mask_m[:, None] & (c < WIDTH)[None, :]
        x_low = tl.load(p_tile, mask=mask, other=0)  # [BLOCK_M, BLOCK_K]
        x_high = tl.load(p_tile + x.stride_plane, mask=mask, other=0)
        p_tile = p_w[None, :] + (step * OUTPUTS * BLOCK_K + k[:, None])
        w_low = tl.load(p_tile)  # [BLOCK_K, BLOCK_N]
        w_high = tl.load(p_tile + stride_plane)
        hh, mid, ll = add_product(hh, mid, ll, x_low, x_high, w_low, w_high)
    return join_products(hh, mid, ll)


@triton.jit
def _layer(q, layer, PART: tl.constexpr, PARTS: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    """bias + float(q * W) * scale, float32 [BLOCK_M, N], of int32 q [BLOCK_M, K] in registers.

    W is one of the parts of planes [2, PARTS, N, K].
    """
    n = tl.arange(0, N)
    p_w = layer.planes + PART * N * K + n[None, :] * K + tl.arange(0, K)[:, None]
    w_low = tl.load(p_w)  # [K, N]
    w_high = tl.load(p_w + PARTS * N * K)
    total = product(low_byte(q), high_byte(q), w_low, w_high).to(tl.float32)  # [BLOCK_M, N]
    o_n = PART * N + n
    return tl.load(layer.bias + o_n)[None, :] + total * tl.load(layer.scale + o_n)[None, :]


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
    layers,
    y,
    results,
    positions,
    height,
    width,
    COLOUR: tl.constexpr,
    WIDTHS: tl.constexpr,
    SQUEEZED: tl.constexpr,
    SIZES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    await_launch_before()
    A: tl.constexpr = SIZES.padded_a
    B: tl.constexpr = SIZES.padded_b
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = m < positions
    half_width = width // 2
    image_row = m // half_width
    position = image_row * width + 2 * (m % half_width) + ((image_row % height + COLOUR) & 1)

    hh, mid, ll = no_product(BLOCK_M, B)
    k = tl.arange(0, BLOCK_N)
    b = tl.arange(0, B)
    for i_block in range(A // BLOCK_N):  # of outputs of layer 0, the inputs k of layer 2
        n = i_block * BLOCK_N + k
        mask = mask_m[:, None] & (n < SIZES.a)[None, :]
        p_start = start.ptr + m[:, None].to(tl.int64) * start.stride_position + n[None, :]
        r = tl.load(p_start, mask=mask, other=0.0)  # [BLOCK_M, BLOCK_N]
        w_ptr = layers.contexts
        for i in tl.static_range(len(WIDTHS)):
            x = contexts[i]
            x_position = m if SQUEEZED[i] else position
            p_x = x.ptr + x_position[:, None].to(tl.int64) * x.stride_position  # [BLOCK_M, 1]
            if WIDTHS[i] == 0:
                r = r + tl.load(p_x + n[None, :], mask=mask, other=0.0)
            else:
                total = _context_product(
                    x, p_x, w_ptr, layers.stride_plane, mask_m, n, WIDTHS[i], A, BLOCK_K
                )  # [BLOCK_M, BLOCK_N]
                scale = tl.load(layers.context_scale + i * A + n)
                r = r + total.to(tl.float32) * scale[None, :]
                w_ptr += (WIDTHS[i] + BLOCK_K - 1) // BLOCK_K * (A * BLOCK_K)
        q = quantise(gelu(r), layers.layer2.input_scale)  # [BLOCK_M, BLOCK_N]
        p_w = layers.layer2.planes + (i_block * B + b)[None, :] * BLOCK_N + k[:, None]
        w_low = tl.load(p_w)  # [BLOCK_N, B]
        w_high = tl.load(p_w + A * B)
        hh, mid, ll = add_product(hh, mid, ll, low_byte(q), high_byte(q), w_low, w_high)

    total = join_products(hh, mid, ll).to(tl.float32)  # [BLOCK_M, B]
    scale = tl.load(layers.layer2.scale + b)
    r = tl.load(layers.layer2.bias + b)[None, :] + total * scale[None, :]
    q = quantise(gelu(r), layers.layer4.input_scale)
    r = _layer(q, layers.layer4, 0, 1, B, SIZES.padded_c)  # [BLOCK_M, padded_c]
    q = quantise(gelu(r), layers.layer6.input_scale)
    scales = _layer(q, layers.layer6, 0, 2, SIZES.padded_c, SIZES.padded_channels)
    means = _layer(q, layers.layer6, 1, 2, SIZES.padded_c, SIZES.padded_channels)
    c = tl.arange(0, SIZES.padded_channels)
    mask = mask_m[:, None] & (c < SIZES.channels)[None, :]  # [BLOCK_M, padded_channels]
    offset = m[:, None].to(tl.int64) * SIZES.channels + c[None, :]
    index = _scale_index(scales, layers.thresholds)
    tl.store(results.indexes + offset, index.to(tl.uint8), mask=mask)
    tl.store(results.means + offset, means, mask=mask)
    if y is not None:
        p_y = y.ptr + position[:, None].to(tl.int64) * y.stride_position + c[None, :]
        x = tl.load(p_y, mask=mask, other=0.0) - means
        x = clamp(tl.where(x == x, x, 0.0), _SYMBOL_LIMIT)
        tl.store(results.symbols + offset, rint(x), mask=mask)


# -- launcher ---------------------------------------------------------------------------------


class _Results(NamedTuple):
    indexes: Tensor
    means: Tensor
    symbols: Tensor | None


class _Sizes(NamedTuple):
    """Outputs of layers 0, 2, 4 and 6, as they are and as tiles have them."""

    a: int
    padded_a: int
    padded_b: int
    padded_c: int
    channels: int
    padded_channels: int


def _sizes(weights: PassWeights) -> _Sizes:
    a, *_, channels = weights.hidden
    layer2, layer4, layer6 = (x.planes.shape for x in weights.layers[3:6])
    return _Sizes(a, layer2[1] * _BLOCK_N, layer2[2], layer4[1], channels, layer6[2])


def stages(weights: PassWeights, config: configs.Config, shared_memory: int) -> int:
    """Software stages: those of the configuration, or as many as shared memory holds.

    With s stages the weights of s - 1 blocks of outputs are in shared memory, beside the contexts.
    One block would be waited for as soon as its copy has begun, so two stages are none.
    """
    contexts = sum(_round_up(width, _BLOCK_K) for width in weights.widths)
    ahead = 2 * _BLOCK_N * (contexts + weights.layers.layer2.planes.shape[2])
    beside = config.block * (2 * contexts + 3 * 4 * _BLOCK_N)
    most = min(config.stages, 1 + (shared_memory - beside) // ahead)
    return most if most > 2 else 1


def entropy_parameters(
    start: Tensor,
    contexts: Sequence[Input | Tensor],
    weights: PassWeights,
    colour: int,
    grid: Grid,
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
    launch(
        _pass_kernel,
        (triton.cdiv(positions, config.block),),
        Rows.of(start),
        tuple(Planes.of(x) for x in planes),
        weights.layers,
        None if y is None else Rows.of(y),
        _Results(indexes, means, symbols),
        positions,
        grid.height,
        grid.width,
        COLOUR=colour,
        WIDTHS=weights.widths,
        SQUEEZED=tuple(not isinstance(x, Input) or x.kind == SQUEEZED for x in contexts),
        SIZES=_sizes(weights),
        BLOCK_M=config.block,
        BLOCK_N=_BLOCK_N,
        BLOCK_K=_BLOCK_K,
        num_warps=config.warps,
        num_stages=stages(weights, config, configs.shared_memory(start.device)),
    )
