"""Linear attention of MLIC++: softmax over channels (q) times (softmax over positions (k)^T v).

Three launches, all heads in each (docs/arithmetic.md, section 4; D channels of a head):

1. Maxima of k over the positions of a chunk, [B, chunks, heads D]; zeroes the sums of 2.
2. P = exp_int(k - maximum) of a chunk; adds P^T v to contexts [B, heads, D, D] and the sums of P to
   totals [B, heads, D], int64, by atomic additions: of integers, so their order changes nothing.
3. contexts / totals with the exponent of the head, then times softmax over D of q -> out.

Activations are planes of int8. Products are four int8 products with int32 sums. In 2 the largest
sum is that of the low bytes, at most 2^14 a position, so a chunk may have 2^17 - 1 positions;
:func:`chunks_of` gives it at most 2^16, and images beyond :data:`LARGEST` positions are refused.

q, k and v may be full tensors read at one colour: nothing is squeezed on the way.

Bytes at 32 x 48 positions, inter context of the last slice (9 heads of 32): k twice, v, q and out,
884,736 each; contexts 73,728. Products of numbers: 2 N D^2 a head, 28M (each four of bytes).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlic_fast.engine.arithmetic import ACTIVATION_LIMIT, EXPONENT_LIMIT
from mlic_fast.kernels.configs import config
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
from mlic_fast.kernels.grid import KeySums
from mlic_fast.kernels.planes import (
    ALL,
    SMALLEST_SIDE,
    add_product,
    check_planes,
    colour_positions,
    image_of,
    padded,
    position_of,
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

_BITS = tl.constexpr(ACTIVATION_LIMIT.bit_length())
_EXPONENT_LIMIT = tl.constexpr(EXPONENT_LIMIT)
# Mantissa bits of ACTIVATION_LIMIT / (ACTIVATION_LIMIT + 1).
_FITS = tl.constexpr((1 << 23) - (1 << 12))


# -- twin -------------------------------------------------------------------------------------


def linear_attention_twin(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    q_exponent: int,
    k_exponent: int,
    v_exponent: int,
    out_exponent: int,
    q_colour: int = ALL,
    kv_colour: int = ALL,
) -> Tensor:
    """Planes as in :func:`linear_attention` -> planes [2, B, N, C] of out."""
    # Integers below 2^53 all along: exact in float64.
    queries, keys, values = (
        read_heads(x, heads, colour).double()
        for x, colour in ((q, q_colour), (k, kv_colour), (v, kv_colour))
    )
    top = keys.amax(2, keepdim=True)
    p = exp_int_twin((keys - top).float() * 2.0**-k_exponent).double()
    real = (p.mT @ values).float() / p.sum(2).float()[..., None]
    exponents = _exponents_twin(real.abs().amax((2, 3), keepdim=True))
    context = torch.round(torch.ldexp(real, exponents)).double()
    top = queries.amax(3, keepdim=True)
    p = exp_int_twin((queries - top).float() * 2.0**-q_exponent).double()
    r = (p @ context).float() / p.sum(3, keepdim=True).float()
    r = torch.ldexp(r, -exponents - v_exponent)
    return to_planes(quantise_twin(r.transpose(1, 2).flatten(2), 2.0**out_exponent))


def _exponents_twin(largest: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(largest)
    fits = ACTIVATION_LIMIT / (ACTIVATION_LIMIT + 1)
    exponent = ACTIVATION_LIMIT.bit_length() - exponent - (mantissa > fits).int()
    return torch.where(largest > 0, exponent.clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT), 0)


# -- kernels ----------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["positions", "half_width", "length"])
def _maxima_kernel(
    k,
    maxima,
    contexts,
    totals,
    positions,
    half_width,
    length,
    plane,
    stride,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    COLOUR: tl.constexpr,
):
    await_launch_before()
    chunk, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    channels = tl.arange(0, WIDTH)
    real = channels < DEPTH
    if chunk == 0:
        at = image * heads + head
        square = channels[:, None] * DEPTH + channels[None, :]
        mask = real[:, None] & real[None, :]
        zero = tl.zeros((WIDTH, WIDTH), tl.int64)
        tl.store(contexts + at * (DEPTH * DEPTH) + square, zero, mask=mask)
        tl.store(totals + at * DEPTH + channels, tl.zeros((WIDTH,), tl.int64), mask=real)

    k = image_of(k, image, positions, stride, COLOUR) + head * DEPTH + channels[None, :]
    top = tl.full((BLOCK, WIDTH), -32768, tl.int32)
    for start in range(0, length, BLOCK):
        index = chunk * length + start + tl.arange(0, BLOCK)
        at = k + position_of(index, half_width, COLOUR)[:, None] * stride
        mask = (index < positions)[:, None] & real[None, :]
        q = join_bytes(tl.load(at, mask=mask, other=0), tl.load(at + plane, mask=mask, other=0))
        top = tl.maximum(top, tl.where(mask, q, -32768))
    at = (image * tl.num_programs(0) + chunk) * heads + head
    tl.store(maxima + at * DEPTH + channels, tl.max(top, axis=0), mask=real)


@triton.jit(do_not_specialize=["positions", "half_width", "length"])
def _contexts_kernel(
    k,
    v,
    maxima,
    contexts,
    totals,
    positions,
    half_width,
    length,
    k_plane,
    k_stride,
    v_plane,
    v_stride,
    k_scale,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    COLOUR: tl.constexpr,
):
    await_launch_before()
    chunk, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    chunks, heads = tl.num_programs(0), tl.num_programs(1)
    channels = tl.arange(0, WIDTH)
    real = channels < DEPTH
    part = tl.arange(0, CHUNKS)
    at = ((image * chunks + part) * heads + head)[:, None] * DEPTH + channels[None, :]
    known = (part < chunks)[:, None] & real[None, :]
    top = tl.max(tl.load(maxima + at, mask=known, other=-32768), axis=0)

    k = image_of(k, image, positions, k_stride, COLOUR) + head * DEPTH + channels[None, :]
    v = image_of(v, image, positions, v_stride, COLOUR) + head * DEPTH + channels[None, :]
    total = tl.zeros((WIDTH,), tl.int32)
    hh = tl.zeros((WIDTH, WIDTH), tl.int32)
    mid = tl.zeros((WIDTH, WIDTH), tl.int32)
    ll = tl.zeros((WIDTH, WIDTH), tl.int32)
    for start in range(0, length, BLOCK):
        index = chunk * length + start + tl.arange(0, BLOCK)
        position = position_of(index, half_width, COLOUR)[:, None]
        mask = (index < positions)[:, None] & real[None, :]
        k_at = k + position * k_stride
        v_at = v + position * v_stride
        k_low = tl.load(k_at, mask=mask, other=0)
        k_high = tl.load(k_at + k_plane, mask=mask, other=0)
        v_low = tl.load(v_at, mask=mask, other=0)
        v_high = tl.load(v_at + v_plane, mask=mask, other=0)
        x = (join_bytes(k_low, k_high) - top[None, :]).to(tl.float32) * k_scale
        p = tl.where(mask, exp_int(x), 0)
        total += tl.sum(p, axis=0)
        p_low, p_high = tl.trans(low_byte(p)), tl.trans(high_byte(p))
        hh, mid, ll = add_product(hh, mid, ll, p_low, p_high, v_low, v_high)
    context = join_products(hh.to(tl.int64), mid.to(tl.int64), ll.to(tl.int64))
    at = image * heads + head
    to = contexts + at * (DEPTH * DEPTH) + channels[:, None] * DEPTH + channels[None, :]
    tl.atomic_add(to, context, mask=real[:, None] & real[None, :], sem="relaxed")
    to = totals + at * DEPTH + channels
    tl.atomic_add(to, total.to(tl.int64), mask=real, sem="relaxed")


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
    plane,
    stride,
    out_plane,
    out_stride,
    q_scale,
    out_scale,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
    COLOUR: tl.constexpr,
    WIDE: tl.constexpr,
):
    await_launch_before()
    block, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channels = tl.arange(0, WIDTH)
    values = tl.arange(0, VALUES)
    real = channels < DEPTH
    at = image * tl.num_programs(1) + head
    square = channels[:, None] * DEPTH + values[None, :]
    mask = real[:, None] & (values < DEPTH)[None, :]
    context = tl.load(contexts + at * (DEPTH * DEPTH) + square, mask=mask, other=0)
    total = tl.load(totals + at * DEPTH + channels, mask=real, other=1)
    context = tl.div_rn(context.to(tl.float32), total.to(tl.float32)[:, None])
    exponent = _exponent_of(tl.max(tl.max(tl.abs(context), axis=1), axis=0))
    c = rint(context * power_of_two(exponent))

    index = block * BLOCK + tl.arange(0, BLOCK)
    here = index < positions
    mask = here[:, None] & real[None, :]
    q = image_of(q, image, positions, stride, COLOUR) + head * DEPTH + channels[None, :]
    q += position_of(index, half_width, COLOUR)[:, None] * stride
    query = join_bytes(tl.load(q, mask=mask, other=0), tl.load(q + plane, mask=mask, other=0))
    query = tl.where(real[None, :], query, -32768)
    top = tl.max(query, axis=1)
    p = exp_int((query - top[:, None]).to(tl.float32) * q_scale)
    p = tl.where(real[None, :], p, 0)
    if WIDE:
        weighted = wide_product(low_byte(p), high_byte(p), low_byte(c), high_byte(c))
    else:
        weighted = product(low_byte(p), high_byte(p), low_byte(c), high_byte(c))
    r = tl.div_rn(weighted.to(tl.float32), tl.sum(p, axis=1).to(tl.float32)[:, None])
    r = quantise(r * power_of_two(-exponent - v_exponent), out_scale)
    to = image_of(out, image, positions, out_stride, -1) + head * DEPTH + values[None, :]
    to += index[:, None] * out_stride
    store_planes(r, to, out_plane, here[:, None] & (values < DEPTH)[None, :])


# -- launcher ---------------------------------------------------------------------------------


def chunks_of(positions: int) -> tuple[int, int]:
    """How many chunks, and positions a chunk: a rule on the number of positions alone."""
    length = SMALLEST_CHUNK * triton.cdiv(positions, SMALLEST_CHUNK * CHUNKS)
    return triton.cdiv(positions, length), length


def contexts_warps(side: int) -> int:
    """Warps of the second launch: each has 16 rows of a context; more would repeat them."""
    return side // 16


def begin(k: Tensor, heads: int, colour: int = ALL) -> KeySums:
    """What needs the keys alone, so that it can be done before there are values."""
    check_planes(k)
    batch, channels = k.shape[1], k.shape[4]
    depth = channels // heads
    keys, half = colour_positions(k, colour)
    if keys > LARGEST:
        raise ValueError(f"{keys} positions: at most {LARGEST}")
    chunks, length = chunks_of(keys)
    sums = KeySums(
        torch.empty((batch, chunks, channels), dtype=torch.int32, device=k.device),
        torch.empty((batch, heads, depth, depth), dtype=torch.int64, device=k.device),
        torch.empty((batch, heads, depth), dtype=torch.int64, device=k.device),
    )
    c = config("linear_maxima", k.device, batch * keys)
    launch(
        _maxima_kernel,
        (chunks, heads, batch),
        k,
        sums.maxima,
        sums.contexts,
        sums.totals,
        keys,
        half,
        length,
        k.stride(0),
        k.stride(3),
        DEPTH=depth,
        WIDTH=padded(depth, SMALLEST_SIDE),
        BLOCK=c.block,
        COLOUR=colour,
        num_warps=c.warps,
        num_stages=c.stages,
    )
    return sums


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    q_exponent: int,
    k_exponent: int,
    v_exponent: int,
    out_exponent: int,
    out: Tensor,
    q_colour: int = ALL,
    kv_colour: int = ALL,
    sums: KeySums | None = None,
) -> None:
    """Planes q, k, v [2, B, H, W, heads D] -> out, of the queries that are read.

    q_colour and kv_colour say which positions are read: :data:`ALL`, or those of one colour of a
    full tensor; then out is squeezed, [2, B, H, W/2, heads D]. D is even and at most 64. ``sums``:
    what :func:`begin` gave for these keys; they are used up.
    """
    for x in (q, v, out):
        check_planes(x)
    batch, channels = q.shape[1], q.shape[4]
    depth = channels // heads
    queries, q_half = colour_positions(q, q_colour)
    keys, kv_half = colour_positions(k, kv_colour)
    sums = sums or begin(k, heads, kv_colour)
    chunks, length = chunks_of(keys)
    side = padded(depth, SMALLEST_SIDE)
    device = q.device
    c = config("linear_contexts", device, batch * keys)
    launch(
        _contexts_kernel,
        (chunks, heads, batch),
        k,
        v,
        sums.maxima,
        sums.contexts,
        sums.totals,
        keys,
        kv_half,
        length,
        k.stride(0),
        k.stride(3),
        v.stride(0),
        v.stride(3),
        2.0**-k_exponent,
        DEPTH=depth,
        WIDTH=side,
        BLOCK=c.block,
        CHUNKS=CHUNKS,
        COLOUR=kv_colour,
        num_warps=contexts_warps(side),
        num_stages=c.stages,
    )
    c = config("linear_apply", device, batch * queries)
    launch(
        _apply_kernel,
        (triton.cdiv(queries, c.block), heads, batch),
        q,
        sums.contexts,
        sums.totals,
        out,
        queries,
        q_half,
        v_exponent,
        q.stride(0),
        q.stride(3),
        out.stride(0),
        out.stride(3),
        2.0**-q_exponent,
        2.0**out_exponent,
        DEPTH=depth,
        WIDTH=padded(depth),
        VALUES=side,
        BLOCK=c.block,
        COLOUR=q_colour,
        WIDE=depth > NARROW_DEPTH,
        num_warps=c.warps,
        num_stages=c.stages,
    )
