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
from mlic_fast.kernels.planes import (
    ALL,
    ANCHORS,
    NON_ANCHORS,
    add_product,
    check_planes,
    colour_positions,
    image_of,
    padded,
    position_of,
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
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    q_exponent: int,
    k_exponent: int,
    v_exponent: int,
    out_exponent: int,
    exclude: bool = False,
    q_colour: int = ALL,
    kv_colour: int = ALL,
) -> Tensor:
    """Planes as in :func:`softmax_attention` -> planes [2, B, N, C] of out."""
    # Integers below 2^53 all along: exact in float64.
    queries, keys, values = (
        read_heads(x, heads, colour).double()
        for x, colour in ((q, q_colour), (k, kv_colour), (v, kv_colour))
    )
    scale = logit_scale(queries.shape[-1], q_exponent, k_exponent)
    query_at = _places(queries.shape[2], colour_positions(q, q_colour)[1], NON_ANCHORS, q)
    key_at = _places(keys.shape[2], colour_positions(k, kv_colour)[1], ANCHORS, k)
    blocks = []
    for start in range(0, queries.shape[2], QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        logits = queries[:, :, block] @ keys.mT
        if exclude:
            distance = (query_at[block, None] - key_at[None]).abs().amax(-1)
            logits = logits.masked_fill(distance <= EXCLUDED_RADIUS, -torch.inf)
        # NaN where no key is allowed, which exp_int takes for 0.
        p = exp_int_twin((logits - logits.amax(-1, keepdim=True)).float() * scale).double()
        total = p.sum(-1, keepdim=True).clamp(min=1)
        blocks.append(((p @ values).float() / total.float()) * 2.0**-v_exponent)
    r = torch.cat(blocks, dim=2).transpose(1, 2).flatten(2)
    return to_planes(quantise_twin(r, 2.0**out_exponent))


def _places(positions: int, half_width: int, colour: int, like: Tensor) -> Tensor:
    """Row and column in the full tensor of the positions of one colour, [positions, 2]."""
    index = torch.arange(positions, device=like.device)
    row = index // half_width
    return torch.stack([row, 2 * (index % half_width) + ((row + colour) & 1)], -1)


def logit_scale(depth: int, q_exponent: int, k_exponent: int) -> float:
    return float(np.float32(depth**-0.5) * power_of_two(-q_exponent - k_exponent))


# -- kernel -----------------------------------------------------------------------------------


@triton.jit
def _load_rows(x, index, mask, half_width, plane, stride, COLOUR: tl.constexpr):
    """Both planes of the positions ``index`` of one colour; x points to their channels."""
    at = x + position_of(index, half_width, COLOUR)[:, None] * stride
    return tl.load(at, mask=mask, other=0), tl.load(at + plane, mask=mask, other=0)


@triton.jit
def _allowed(queries, keys, limit, half_width, EXCLUDE: tl.constexpr):
    """Which keys [queries, keys] count."""
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
    q_plane,
    q_stride,
    k_plane,
    k_stride,
    v_plane,
    v_stride,
    out_plane,
    out_stride,
    logit_scale,
    v_scale,
    out_scale,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    EXCLUDE: tl.constexpr,
    Q_COLOUR: tl.constexpr,
    KV_COLOUR: tl.constexpr,
    SPAN: tl.constexpr,
):
    await_launch_before()
    block, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    depth = tl.arange(0, WIDTH)
    is_depth = (depth < DEPTH)[None, :]
    q = image_of(q, image, queries, q_stride, Q_COLOUR) + head * DEPTH + depth[None, :]
    k = image_of(k, image, keys, k_stride, KV_COLOUR) + head * DEPTH + depth[None, :]
    v = image_of(v, image, keys, v_stride, KV_COLOUR) + head * DEPTH + depth[None, :]
    rows = block * BLOCK + tl.arange(0, BLOCK)
    here = (rows < queries)[:, None]
    q_low, q_high = _load_rows(q, rows, here & is_depth, half_width, q_plane, q_stride, Q_COLOUR)

    top = tl.full((BLOCK,), _LOWEST, tl.int32)
    for start in range(0, keys, KEYS):
        index = start + tl.arange(0, KEYS)
        mask = (index < keys)[:, None] & is_depth
        k_low, k_high = _load_rows(k, index, mask, half_width, k_plane, k_stride, KV_COLOUR)
        logits = product(q_low, q_high, tl.trans(k_low), tl.trans(k_high))
        allowed = _allowed(rows, index, keys, half_width, EXCLUDE)
        top = tl.maximum(top, tl.max(tl.where(allowed, logits, _LOWEST), axis=1))

    total = tl.zeros((BLOCK,), tl.int64)
    weighted = tl.zeros((BLOCK, WIDTH), tl.int64)
    for span in range(0, keys, SPAN):
        part = tl.zeros((BLOCK,), tl.int32)
        hh = tl.zeros((BLOCK, WIDTH), tl.int32)
        mid = tl.zeros((BLOCK, WIDTH), tl.int32)
        ll = tl.zeros((BLOCK, WIDTH), tl.int32)
        for start in range(span, tl.minimum(keys, span + SPAN), KEYS):
            index = start + tl.arange(0, KEYS)
            mask = (index < keys)[:, None] & is_depth
            k_low, k_high = _load_rows(k, index, mask, half_width, k_plane, k_stride, KV_COLOUR)
            v_low, v_high = _load_rows(v, index, mask, half_width, v_plane, v_stride, KV_COLOUR)
            logits = product(q_low, q_high, tl.trans(k_low), tl.trans(k_high))
            # Logits of keys that do not count may be above the top.
            x = tl.minimum(logits - top[:, None], 0).to(tl.float32) * logit_scale
            allowed = _allowed(rows, index, keys, half_width, EXCLUDE)
            p = tl.where(allowed, exp_int(x), 0)
            part += tl.sum(p, axis=1)
            p_low, p_high = low_byte(p), high_byte(p)
            hh, mid, ll = add_product(hh, mid, ll, p_low, p_high, v_low, v_high)
        total += part
        weighted += join_products(hh.to(tl.int64), mid.to(tl.int64), ll.to(tl.int64))

    total = tl.maximum(total, 1).to(tl.float32)
    r = tl.div_rn(weighted.to(tl.float32), total[:, None]) * v_scale
    to = image_of(out, image, queries, out_stride, -1) + head * DEPTH + depth[None, :]
    to += rows[:, None] * out_stride
    store_planes(quantise(r, out_scale), to, out_plane, here & is_depth)


# -- launcher ---------------------------------------------------------------------------------


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    q_exponent: int,
    k_exponent: int,
    v_exponent: int,
    out_exponent: int,
    out: Tensor,
    exclude: bool = False,
    q_colour: int = ALL,
    kv_colour: int = ALL,
) -> None:
    """Planes q, k, v [2, B, H, W, heads D] -> out, of the queries that are read.

    q_colour and kv_colour say which positions are read: :data:`ALL`, or those of one colour of a
    full tensor; then out is squeezed, [2, B, H, W/2, heads D]. With ``exclude`` queries are the
    non-anchors and keys the anchors, of full tensors or squeezed already.
    """
    for x in (q, k, v, out):
        check_planes(x)
    batch, channels = q.shape[1], q.shape[4]
    depth = channels // heads
    queries, q_row = colour_positions(q, q_colour)
    keys, k_row = colour_positions(k, kv_colour)
    # Rows of one colour are equally long; rows of a full tensor are of no interest.
    half_width = k_row if q_colour == ALL else q_row
    c = config("softmax", q.device, batch * queries)
    launch(
        _attention_kernel,
        (triton.cdiv(queries, c.block), heads, batch),
        q,
        k,
        v,
        out,
        queries,
        keys,
        half_width,
        q.stride(0),
        q.stride(3),
        k.stride(0),
        k.stride(3),
        v.stride(0),
        v.stride(3),
        out.stride(0),
        out.stride(3),
        logit_scale(depth, q_exponent, k_exponent),
        2.0**-v_exponent,
        2.0**out_exponent,
        DEPTH=depth,
        WIDTH=padded(depth),
        BLOCK=c.block,
        KEYS=KEYS,
        EXCLUDE=exclude,
        Q_COLOUR=q_colour,
        KV_COLOUR=kv_colour,
        SPAN=SPAN,
        num_warps=c.warps,
        num_stages=c.stages,
    )
