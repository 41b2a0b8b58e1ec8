"""Softmax attention of MLIC and MLIC+ over all positions: softmax(q k^T / sqrt(D)) v.

One launch, all heads in it; a program has a block of queries and goes over the keys twice, first
for the largest logit of each query, then for the sums of p and of p v (docs/arithmetic.md, section
4). All are integers, so the blocks change no bit, and the map is never held. D is at most 64: a
difference of logits then fits int32.

With ``exclude`` queries are non-anchors and keys anchors; keys within Chebyshev distance 2 of the
query in the full tensor are left out, and a query without keys gives 0. q, k and v may be full
tensors read at one colour: nothing is squeezed on the way.

Activations are planes of int8. Products are four int8 products with int32 sums, the largest that of
the low bytes, at most 2^14 a key: after :data:`SPAN` keys the sums go to int64.

Bytes at 32 x 48 positions, inter context of the last slice (9 heads of 32): q, k, v, out 884,736
each; k (twice) and v come again for each block of queries, from caches. Products of numbers:
3 N^2 D a head, 2,038M (each four of bytes).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mlic_fast.engine.arithmetic import EXCLUDED_RADIUS, QUERY_BLOCK, power_of_two
from mlic_fast.kernels.configs import config
from mlic_fast.kernels.functions import (
    await_launch_before,
    exp_int,
    exp_int_twin,
    high_byte,
    join_products,
    launch,
    low_byte,
    quantise,
    quantise_twin,
    to_planes,
)
from mlic_fast.kernels.layouts import Input
from mlic_fast.kernels.planes import (
    ALL,
    ANCHORS,
    NON_ANCHORS,
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
)

#: Keys a step.
KEYS = 64
#: Keys whose sums fit int32, a multiple of every block: 2^16 * 2^14 < 2^31.
SPAN = 1 << 16

_RADIUS = tl.constexpr(EXCLUDED_RADIUS)
_LOWEST = tl.constexpr(-(2**31))


# -- twin -------------------------------------------------------------------------------------


def softmax_attention_twin(
    q: Input,
    k: Input,
    v: Input,
    heads: int,
    exponents: tuple[int, int, int],
    out_scale: float,
    exclude: bool = False,
) -> Tensor:
    """As :func:`softmax_attention` -> planes [2, B, N, C] of out."""
    # Integers below 2^53 all along: exact in float64.
    queries, keys, values = (read_heads(x.planes, heads, x.read).double() for x in (q, k, v))
    scale = logit_scale(queries.shape[-1], *exponents[:2])
    query_places, key_places = (
        _places(*colour_positions(x.planes, x.read), colour, x.planes.device)
        for x, colour in ((q, NON_ANCHORS), (k, ANCHORS))
    )
    blocks = []
    for start in range(0, queries.shape[2], QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        logits = queries[:, :, block] @ keys.mT
        if exclude:
            distance = (query_places[block, None] - key_places[None]).abs().amax(-1)
            logits = logits.masked_fill(distance <= EXCLUDED_RADIUS, -torch.inf)
        # NaN where no key is allowed, which exp_int takes for 0.
        p = exp_int_twin((logits - logits.amax(-1, keepdim=True)).float() * scale).double()
        total = p.sum(-1, keepdim=True).clamp(min=1)
        blocks.append(((p @ values).float() / total.float()) * 2.0 ** -exponents[2])
    r = torch.cat(blocks, dim=2).transpose(1, 2).flatten(2)
    return to_planes(quantise_twin(r, out_scale))


def _places(positions: int, half_width: int, colour: int, device: torch.device) -> Tensor:
    """Row and column in the full tensor of the positions of one colour, [positions, 2]."""
    index = torch.arange(positions, device=device)
    row = index // half_width
    return torch.stack([row, 2 * (index % half_width) + ((row + colour) & 1)], -1)


def logit_scale(depth: int, q_exponent: int, k_exponent: int) -> float:
    """A logit is this times the sum of products of a query and a key: depth^-1/2 in reals."""
    return float(np.float32(depth**-0.5) * power_of_two(-q_exponent - k_exponent))


# -- kernel -----------------------------------------------------------------------------------


@triton.jit
def _allowed(queries, keys, limit, half_width, EXCLUDE: tl.constexpr):
    """Which keys count for which queries, [BLOCK_M, BLOCK_N]; both are numbers within a colour."""
    allowed = (keys < limit)[None, :]
    if EXCLUDE:
        q_row, k_row = queries // half_width, keys // half_width
        q_column = 2 * (queries % half_width) + (q_row & 1)
        k_column = 2 * (keys % half_width) + ((k_row + 1) & 1)
        rows = tl.abs(q_row[:, None] - k_row[None, :])
        columns = tl.abs(q_column[:, None] - k_column[None, :])
        allowed = allowed & (tl.maximum(rows, columns) > _RADIUS)
    return allowed


@triton.jit(do_not_specialize=["queries", "keys", "half_width"])
def _attention_kernel(
    q,
    k,
    v,
    out,
    queries,
    keys,
    half_width,
    scales,
    COLOURS: tl.constexpr,
    EXCLUDE: tl.constexpr,
    DEPTH: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    await_launch_before()
    i_block, i_head, i_image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d = tl.arange(0, BLOCK_D)
    mask_d = (d < DEPTH)[None, :]
    p_q = head_of(q, i_image, i_head, d, queries, DEPTH, COLOURS.q)
    p_k = head_of(k, i_image, i_head, d, keys, DEPTH, COLOURS.kv)
    p_v = head_of(v, i_image, i_head, d, keys, DEPTH, COLOURS.kv)
    m = i_block * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_q = (m < queries)[:, None] & mask_d
    q_low, q_high = load_rows(p_q, q, m, mask_q, half_width, COLOURS.q)  # [BLOCK_M, BLOCK_D]

    top = tl.full((BLOCK_M,), _LOWEST, tl.int32)
    for first in range(0, keys, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        mask_k = (n < keys)[:, None] & mask_d
        k_low, k_high = load_rows(p_k, k, n, mask_k, half_width, COLOURS.kv)  # [BLOCK_N, BLOCK_D]
        logits = product(q_low, q_high, tl.trans(k_low), tl.trans(k_high))  # [BLOCK_M, BLOCK_N]
        allowed = _allowed(m, n, keys, half_width, EXCLUDE)
        top = tl.maximum(top, tl.max(tl.where(allowed, logits, _LOWEST), axis=1))

    total = tl.zeros((BLOCK_M,), tl.int64)
    weighted = tl.zeros((BLOCK_M, BLOCK_D), tl.int64)
    for span in range(0, keys, SPAN):
        part = tl.zeros((BLOCK_M,), tl.int32)
        hh, mid, ll = no_product(BLOCK_M, BLOCK_D)
        for first in range(span, tl.minimum(keys, span + SPAN), BLOCK_N):
            n = first + tl.arange(0, BLOCK_N)
            mask_k = (n < keys)[:, None] & mask_d
            k_low, k_high = load_rows(p_k, k, n, mask_k, half_width, COLOURS.kv)
            v_low, v_high = load_rows(p_v, v, n, mask_k, half_width, COLOURS.kv)
            logits = product(q_low, q_high, tl.trans(k_low), tl.trans(k_high))
            # Logits of keys that do not count may be above the top.
            x = tl.minimum(logits - top[:, None], 0).to(tl.float32) * scales.logits
            allowed = _allowed(m, n, keys, half_width, EXCLUDE)
            p = tl.where(allowed, exp_int(x), 0)  # [BLOCK_M, BLOCK_N]
            part += tl.sum(p, axis=1)
            p_low, p_high = low_byte(p), high_byte(p)
            hh, mid, ll = add_product(hh, mid, ll, p_low, p_high, v_low, v_high)
        total += part
        weighted += join_products(hh.to(tl.int64), mid.to(tl.int64), ll.to(tl.int64))

    total = tl.maximum(total, 1).to(tl.float32)
    r = tl.div_rn(weighted.to(tl.float32), total[:, None]) * scales.v  # [BLOCK_M, BLOCK_D]
    p_out = head_of(out, i_image, i_head, d, queries, DEPTH, -1)
    p_out += m[:, None] * out.stride_position
    store_planes(quantise(r, scales.out), p_out, out.stride_plane, mask_q)


# -- launcher ---------------------------------------------------------------------------------


class _Scales(NamedTuple):
    """What products of q and k, sums of v, and results are multiplied with."""

    logits: float
    v: float
    out: float


class _Colours(NamedTuple):
    """Which positions are read: a colour, or ALL."""

    q: int
    kv: int


def softmax_attention(
    q: Input,
    k: Input,
    v: Input,
    heads: int,
    exponents: tuple[int, int, int],
    *,
    exclude: bool = False,
    out: Tensor,
    out_scale: float,
) -> None:
    """q, k, v [.., heads D] of these exponents -> planes ``out``, of the queries that are read.

    q, and k and v alike, may be full tensors of which one colour is read; out is then squeezed,
    [2, B, H, W/2, heads D]. With ``exclude`` queries are the non-anchors and keys the anchors, of
    full tensors or squeezed already. Raises ValueError for arrays that are not slices of channels.
    """
    for x in (q.planes, k.planes, v.planes, out):
        check_planes(x)
    q_colour, kv_colour = q.read, k.read
    batch, channels = q.planes.shape[1], q.planes.shape[4]
    depth = channels // heads
    queries, q_row = colour_positions(q.planes, q_colour)
    keys, k_row = colour_positions(k.planes, kv_colour)
    block = config("softmax", out.device, batch * queries)
    launch(
        _attention_kernel,
        (triton.cdiv(queries, block.block), heads, batch),
        *(Planes.of(x) for x in (q.planes, k.planes, v.planes, out)),
        queries,
        keys,
        # Rows of one colour are equally long; rows of a full tensor are of no interest.
        k_row if q_colour == ALL else q_row,
        _Scales(logit_scale(depth, *exponents[:2]), 2.0 ** -exponents[2], out_scale),
        COLOURS=_Colours(q_colour, kv_colour),
        EXCLUDE=exclude,
        DEPTH=depth,
        SPAN=SPAN,
        BLOCK_M=block.block,
        BLOCK_N=KEYS,
        BLOCK_D=padded(depth),
        num_warps=block.warps,
        num_stages=block.stages,
    )
