"""Linear attention of MLIC++: softmax over channels (q) times (softmax over positions (k)^T v).

Two launches, all heads in each (docs/arithmetic.md, section 4; D channels of a head). The launch
that makes the keys (:mod:`mlic_fast.kernels.depthwise`) gives the maxima of k over the positions of
each of its programs, and zeroes the sums of 1.

1. P = exp_int(k - maximum) of a chunk; adds P^T v to contexts [B, heads, D, D] and the sums of P to
   totals [B, heads, D], int64, by atomic additions: of integers, so their order changes nothing.
2. contexts / totals with the exponent of the head, then times softmax over D of q -> out.

Activations are planes of int8. Products are four int8 products with int32 sums. In 1 the largest
sum is that of the low bytes, at most 2^14 a position, so a chunk may have 2^17 - 1 positions;
:func:`chunks_of` gives it at most 2^16, and images beyond :data:`LARGEST` positions are refused.

q, k and v may be full tensors read at one colour: nothing is squeezed on the way.

Bytes at 32 x 48 positions, inter context of the last slice (9 heads of 32): k, v, q and out,
884,736 each; contexts 73,728. Products of numbers: 2 N D^2 a head, 28M (each four of bytes).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlic_fast.engine.arithmetic import ACTIVATION_LIMIT, EXPONENT_LIMIT
from mlic_fast.kernels.configs import config
from mlic_fast.kernels.depthwise import LEAST
from mlic_fast.kernels.functions import (
    await_launch_before,
    exp_int,
    exp_int_twin,
    high_byte,
    join_bytes,
    join_products,
    launch,
    low_byte,
    power_of_two,
    quantise,
    quantise_twin,
    rint,
    to_planes,
)
from mlic_fast.kernels.layouts import Input
from mlic_fast.kernels.planes import (
    SMALLEST_SIDE,
    Planes,
    add_product,
    check_planes,
    colour_positions,
    head_of,
    load_rows,
    no_product,
    padded,
    product,
    read_heads,
    store_planes,
    wide_product,
)

#: Most chunks of an image; a chunk has a multiple of SMALLEST_CHUNK positions.
CHUNKS = 64
SMALLEST_CHUNK = 64
#: Most positions of an image, so that a chunk's sums fit int32.
LARGEST = CHUNKS << 16
#: Heads whose sums of D products fit int32: 32 * 16383 * 4095 < 2^31.
NARROW_DEPTH = 32

#: Maxima of keys that are loaded at a time.
MAXIMA = 64

_LEAST = tl.constexpr(LEAST)
_BITS = tl.constexpr(ACTIVATION_LIMIT.bit_length())
_EXPONENT_LIMIT = tl.constexpr(EXPONENT_LIMIT)
# Mantissa bits of ACTIVATION_LIMIT / (ACTIVATION_LIMIT + 1).
_FITS = tl.constexpr((1 << 23) - (1 << 12))


# -- twin -------------------------------------------------------------------------------------


def linear_attention_twin(
    q: Input,
    k: Input,
    v: Input,
    heads: int,
    exponents: tuple[int, int, int],
    out_scale: float,
) -> Tensor:
    """As :func:`linear_attention` -> planes [2, B, N, C] of out."""
    q_exponent, k_exponent, v_exponent = exponents
    # Integers below 2^53 all along: exact in float64.
    queries, keys, values = (read_heads(x.planes, heads, x.read).double() for x in (q, k, v))
    top = keys.amax(2, keepdim=True)
    p = exp_int_twin((keys - top).float() * 2.0**-k_exponent).double()
    real = (p.mT @ values).float() / p.sum(2).float()[..., None]
    head_exponents = _exponents_twin(real.abs().amax((2, 3), keepdim=True))
    context = torch.round(torch.ldexp(real, head_exponents)).double()
    top = queries.amax(3, keepdim=True)
    p = exp_int_twin((queries - top).float() * 2.0**-q_exponent).double()
    r = (p @ context).float() / p.sum(3, keepdim=True).float()
    r = torch.ldexp(r, -head_exponents - v_exponent)
    return to_planes(quantise_twin(r.transpose(1, 2).flatten(2), out_scale))


def _exponents_twin(largest: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(largest)
    fits = ACTIVATION_LIMIT / (ACTIVATION_LIMIT + 1)
    exponent = ACTIVATION_LIMIT.bit_length() - exponent - (mantissa > fits).int()
    return torch.where(largest > 0, exponent.clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT), 0)


# -- kernels ----------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["blocks", "positions", "half_width", "length"])
def _contexts_kernel(
    k,
    v,
    sums,
    blocks,
    positions,
    half_width,
    length,
    k_scale,
    COLOUR: tl.constexpr,
    DEPTH: tl.constexpr,
    MAXIMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    await_launch_before()
    i_chunk, i_head, i_image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    d = tl.arange(0, BLOCK_D)
    mask_d = d < DEPTH
    largest = tl.full((MAXIMA, BLOCK_D), _LEAST, tl.int32)
    for start in range(0, blocks, MAXIMA):
        i_block = start + tl.arange(0, MAXIMA)
        offset = ((i_image * blocks + i_block) * heads + i_head)[:, None] * DEPTH + d[None, :]
        mask_block = (i_block < blocks)[:, None] & mask_d[None, :]  # [MAXIMA, BLOCK_D]
        maxima = tl.load(sums.maxima + offset, mask=mask_block, other=_LEAST)
        largest = tl.maximum(largest, maxima)
    top = tl.max(largest, axis=0)  # [BLOCK_D]

    p_k = head_of(k, i_image, i_head, d, positions, DEPTH, COLOUR)
    p_v = head_of(v, i_image, i_head, d, positions, DEPTH, COLOUR)
    total = tl.zeros((BLOCK_D,), tl.int32)
    hh, mid, ll = no_product(BLOCK_D, BLOCK_D)
    for start in range(0, length, BLOCK_M):
        m = i_chunk * length + start + tl.arange(0, BLOCK_M)
        mask = (m < positions)[:, None] & mask_d[None, :]
        k_low, k_high = load_rows(p_k, k, m, mask, half_width, COLOUR)  # [BLOCK_M, BLOCK_D]
        v_low, v_high = load_rows(p_v, v, m, mask, half_width, COLOUR)
        x = (join_bytes(k_low, k_high) - top[None, :]).to(tl.float32) * k_scale
        p = tl.where(mask, exp_int(x), 0)
        total += tl.sum(p, axis=0)
        p_low, p_high = tl.trans(low_byte(p)), tl.trans(high_byte(p))  # [BLOCK_D, BLOCK_M]
        hh, mid, ll = add_product(hh, mid, ll, p_low, p_high, v_low, v_high)
    context = join_products(hh.to(tl.int64), mid.to(tl.int64), ll.to(tl.int64))
    first = i_image * heads + i_head
    p_context = sums.contexts + first * (DEPTH * DEPTH) + d[:, None] * DEPTH + d[None, :]
    tl.atomic_add(p_context, context, mask=mask_d[:, None] & mask_d[None, :], sem="relaxed")
    p_total = sums.totals + first * DEPTH + d
    tl.atomic_add(p_total, total.to(tl.int64), mask=mask_d, sem="relaxed")


@triton.jit
def _exponent_of(largest):
    """The largest exponent with which this magnitude does not saturate; 0 for zero."""
    bits = largest.to(tl.int32, bitcast=True)
    # largest = mantissa * 2^(field - 126), mantissa in [1/2, 1)
    exponent = _BITS + 126 - (bits >> 23) - ((bits & 0x7FFFFF) > _FITS).to(tl.int32)
    exponent = tl.minimum(tl.maximum(exponent, -_EXPONENT_LIMIT), _EXPONENT_LIMIT)
    return tl.where(bits == 0, 0, exponent)


@triton.jit(do_not_specialize=["positions", "half_width", "v_exponent"])
def _apply_kernel(
    q,
    contexts,
    totals,
    out,
    positions,
    half_width,
    v_exponent,
    q_scale,
    out_scale,
    COLOUR: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    await_launch_before()
    i_block, i_head, i_image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d = tl.arange(0, BLOCK_D)
    v = tl.arange(0, BLOCK_V)
    mask_d = d < DEPTH
    first = i_image * tl.num_programs(1) + i_head
    square = d[:, None] * DEPTH + v[None, :]
    mask_square = mask_d[:, None] & (v < DEPTH)[None, :]  # [BLOCK_D, BLOCK_V]
    p_context = contexts + first * (DEPTH * DEPTH) + square
    context = tl.load(p_context, mask=mask_square, other=0)
    total = tl.load(totals + first * DEPTH + d, mask=mask_d, other=1)  # [BLOCK_D]
    context = tl.div_rn(context.to(tl.float32), total.to(tl.float32)[:, None])
    exponent = _exponent_of(tl.max(tl.max(tl.abs(context), axis=1), axis=0))
    c = rint(context * power_of_two(exponent))  # [BLOCK_D, BLOCK_V]

    m = i_block * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = m < positions
    p_q = head_of(q, i_image, i_head, d, positions, DEPTH, COLOUR)
    mask_q = mask_m[:, None] & mask_d[None, :]
    low, high = load_rows(p_q, q, m, mask_q, half_width, COLOUR)  # [BLOCK_M, BLOCK_D]
    query = tl.where(mask_d[None, :], join_bytes(low, high), -32768)
    top = tl.max(query, axis=1)  # [BLOCK_M]
    p = exp_int((query - top[:, None]).to(tl.float32) * q_scale)
    p = tl.where(mask_d[None, :], p, 0)
    if WIDE:
        weighted = wide_product(low_byte(p), high_byte(p), low_byte(c), high_byte(c))
    else:
        weighted = product(low_byte(p), high_byte(p), low_byte(c), high_byte(c))
    # [BLOCK_M, BLOCK_V]
    r = tl.div_rn(weighted.to(tl.float32), tl.sum(p, axis=1).to(tl.float32)[:, None])
    q_out = quantise(r * power_of_two(-exponent - v_exponent), out_scale)
    p_out = head_of(out, i_image, i_head, v, positions, DEPTH, -1)
    p_out += m[:, None] * out.stride_position
    store_planes(q_out, p_out, out.stride_plane, mask_m[:, None] & (v < DEPTH)[None, :])


# -- launcher ---------------------------------------------------------------------------------


def chunks_of(positions: int) -> tuple[int, int]:
    """How many chunks, and positions a chunk: a rule on the number of positions alone."""
    length = SMALLEST_CHUNK * triton.cdiv(positions, SMALLEST_CHUNK * CHUNKS)
    return triton.cdiv(positions, length), length


def contexts_warps(side: int) -> int:
    """Warps of the second launch: each has 16 rows of a context; more would repeat them."""
    return side // 16


def linear_attention(
    q: Input,
    k: Input,
    v: Input,
    heads: int,
    exponents: tuple[int, int, int],
    *,
    out: Tensor,
    out_scale: float,
) -> None:
    """q, k, v [.., heads D] of these exponents -> planes ``out``, of the queries that are read.

    q, and k and v alike, may be full tensors of which one colour is read; out is then squeezed,
    [2, B, H, W/2, heads D]. D is even and at most 64. ``k.sums``, which whoever made the keys gave,
    are used up. Raises ValueError for arrays that are not slices of channels, and for an image of
    more than :data:`LARGEST` positions.
    """
    assert k.sums is not None
    for x in (q.planes, k.planes, v.planes, out):
        check_planes(x)
    q_colour, kv_colour = q.read, k.read
    batch, channels = q.planes.shape[1], q.planes.shape[4]
    depth = channels // heads
    q_exponent, k_exponent, v_exponent = exponents
    queries, q_half_width = colour_positions(q.planes, q_colour)
    keys, k_half_width = colour_positions(k.planes, kv_colour)
    if keys > LARGEST:
        raise ValueError(f"{keys} positions: at most {LARGEST}")
    chunks, length = chunks_of(keys)
    side = padded(depth, SMALLEST_SIDE)
    block = config("linear_contexts", out.device, batch * keys)
    launch(
        _contexts_kernel,
        (chunks, heads, batch),
        Planes.of(k.planes),
        Planes.of(v.planes),
        k.sums,
        k.sums.maxima.shape[1],
        keys,
        k_half_width,
        length,
        2.0**-k_exponent,
        COLOUR=kv_colour,
        DEPTH=depth,
        MAXIMA=MAXIMA,
        BLOCK_M=block.block,
        BLOCK_D=side,
        num_warps=contexts_warps(side),
        num_stages=block.stages,
    )
    block = config("linear_apply", out.device, batch * queries)
    launch(
        _apply_kernel,
        (triton.cdiv(queries, block.block), heads, batch),
        Planes.of(q.planes),
        k.sums.contexts,
        k.sums.totals,
        Planes.of(out),
        queries,
        q_half_width,
        v_exponent,
        2.0**-q_exponent,
        out_scale,
        COLOUR=q_colour,
        DEPTH=depth,
        WIDE=depth > NARROW_DEPTH,
        BLOCK_M=block.block,
        BLOCK_D=padded(depth),
        BLOCK_V=side,
        num_warps=block.warps,
        num_stages=block.stages,
    )
