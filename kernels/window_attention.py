"""The local context of MLIC+ and MLIC++: attention in 5x5 windows around non-anchors.

Four launches (docs/arithmetic.md, sections 4 and 6.5; T = 25 tokens of a window, C channels):

1. ``norm1`` and ``qkv_proj`` at all positions: x [2, B, H, W, C] -> qkv [2, B, H, W, 3C].
2. Attention, a program for each window and head, all 25 tokens at once:
   softmax(q k^T / sqrt(d) + bias) v -> tokens [2, B, H W / 2, 25 C].
3. ``fusion`` over 25 C channels, a product (:mod:`mlic_fast.kernels.products`)
   -> [2, B, H, W/2, 2C].
4. ``proj``, ``norm2``, ``mlp.fc1``, gelu, ``mlp.fc2`` plus what ``proj`` gave: -> out [2, B, H,
   W/2, 2C].

Activations are planes of int8 (:mod:`mlic_fast.kernels.functions`), sums int32. q, k and v are
gathered from the image, never unfolded. What attention gives for the 25 tokens of a window is
written, since 2 and 3 are blocked in opposite ways: tensor cores take 25 tokens of one window as
rows in 2, at least 16 windows as rows in 3. ``fusion`` has many steps of K, which a product spreads
over more programs than the layers after it have, where a program needs all channels.

Bytes at H x W = 32 x 48, C = 32, B = 1: x 98,304, qkv 294,912 written and read (12.5 times, from
caches), tokens 1,228,800 and what fusion gives, 98,304, written and read, weights 149,504, out
98,304. Products of numbers (each four of bytes): qkv 4.7M, attention 31M, fusion 39M, the rest 16M.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlic_fast.engine.arithmetic import WINDOW
from mlic_fast.kernels import products
from mlic_fast.kernels.configs import config
from mlic_fast.kernels.functions import (
    await_launch_before,
    exp_int,
    exp_int_twin,
    from_planes,
    gelu,
    gelu_twin,
    high_byte,
    join_bytes,
    join_products,
    launch,
    low_byte,
    quantise,
    quantise_twin,
    to_planes,
)
from mlic_fast.kernels.layouts import Grid, Input
from mlic_fast.kernels.planes import (
    Planes,
    add_product,
    check_planes,
    no_product,
    padded,
    product,
    store_planes,
)
from mlic_fast.kernels.window_weights import TILE, TOKENS, Linear, Norm, WindowWeights
from mlic_fast.models.checkerboard import Parity, squeeze

_TOKENS = tl.constexpr(TOKENS)
_TILE = tl.constexpr(TILE)


# -- twin -------------------------------------------------------------------------------------


def local_context_twin(x: Tensor, weights: WindowWeights) -> Tensor:
    """Planes of the anchors [2, B, H, W, C] -> planes at non-anchors [2, B, H, W/2, 2C]."""
    w = weights
    normed = _norm_twin(from_planes(x), w.norm1)
    qkv = quantise_twin(_linear_twin(normed, w.qkv), w.qkv.out_scale)
    tokens = _attention_twin(qkv, w)
    fused = quantise_twin(products.conv_twin([tokens], w.fusion, w.fusion.bias), w.fusion_scale)
    real = _linear_twin(fused, w.proj)
    normed = _norm_twin(quantise_twin(real, w.proj.out_scale), w.norm2)
    hidden = quantise_twin(gelu_twin(_linear_twin(normed, w.fc1)), w.fc1.out_scale)
    return to_planes(quantise_twin(_linear_twin(hidden, w.fc2) + real, w.fc2.out_scale))


def _linear_twin(x: Tensor, layer: Linear) -> Tensor:
    # Sums of integers below 2^53: exact in float64.
    total = x.double() @ from_planes(layer.weight).double().T
    return layer.bias + total.float() * layer.scale


def _norm_twin(q: Tensor, norm: Norm) -> Tensor:
    q = q.long()
    channels = q.shape[-1]
    total = q.sum(-1, keepdim=True)
    variance = channels * (q * q).sum(-1, keepdim=True) - total * total
    # Through float64, since the float32 square root of a CPU is not correctly rounded.
    root = (variance.float() + norm.epsilon).double().sqrt().float()
    r = ((channels * q - total).float() / root) * norm.gain + norm.bias
    return quantise_twin(r, norm.out_scale)


def _attention_twin(qkv: Tensor, weights: WindowWeights) -> Tensor:
    """[B, H, W, 3C] -> [B, H, W/2, 25 C]."""
    batch, height, width, triple = qkv.shape
    heads = len(weights.relative)
    image = torch.ones(1, height, width, 1, device=qkv.device)
    tokens = _windows(qkv.double())
    tokens = tokens.reshape(*tokens.shape[:4], 3, heads, triple // 3 // heads)
    q, k, v = tokens.permute(4, 0, 1, 2, 5, 3, 6)  # [B, H, W/2, heads, 25, depth]
    odd = torch.arange(TOKENS, device=qkv.device) % 2 == 1
    anchor = (_windows(image)[..., 0] > 0) & odd
    allowed = (anchor[..., None, :] | ~anchor[..., :, None]).unsqueeze(3)

    relative = weights.relative[:, :TOKENS, :TOKENS]
    logits = (q @ k.mT).float() * weights.logit_scale + relative
    logits = logits.masked_fill(~allowed, -torch.inf)
    p = exp_int_twin(logits - logits.amax(-1, keepdim=True)).double()
    r = ((p @ v).float() / p.sum(-1, keepdim=True).float()) * (1 / weights.qkv.out_scale)
    r = r.transpose(3, 4).reshape(batch, height, width // 2, -1)
    return quantise_twin(r, weights.tokens_scale)


def _windows(x: Tensor) -> Tensor:
    """The 25 tokens around every non-anchor: [B, H, W, C] -> [B, H, W/2, 25, C], 0 outside."""
    _, height, width, _ = x.shape
    reach = WINDOW // 2
    x = torch.nn.functional.pad(x.permute(0, 3, 1, 2), (reach,) * 4)
    taps = [
        squeeze(x[..., dy : dy + height, dx : dx + width], Parity.NON_ANCHOR)
        for dy in range(WINDOW)
        for dx in range(WINDOW)
    ]
    return torch.stack(taps, -1).permute(0, 2, 3, 4, 1)


# -- kernels ----------------------------------------------------------------------------------


@triton.jit
def _layer_norm(q, norm, c, CHANNELS: tl.constexpr):
    """int32 [BLOCK_M, channels c], zero beyond CHANNELS -> the same, normed and quantised."""
    gain = tl.load(norm.gain + c, mask=c < CHANNELS, other=0.0)  # [channels]
    bias = tl.load(norm.bias + c, mask=c < CHANNELS, other=0.0)
    total = tl.sum(q, axis=1)  # [BLOCK_M]
    wide = q.to(tl.int64)
    square = total.to(tl.int64) * total.to(tl.int64)
    variance = CHANNELS * tl.sum(wide * wide, axis=1) - square
    root = tl.sqrt_rn(variance.to(tl.float32) + norm.epsilon)
    deviation = (CHANNELS * q - total[:, None]).to(tl.float32)
    r = tl.div_rn(deviation, root[:, None]) * gain[None, :] + bias[None, :]
    return quantise(r, norm.out_scale)


@triton.jit
def _weights(linear, n, k, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr):
    """Tiles [inputs k, outputs n] of both planes of a weight [2, OUTPUTS, INPUTS], 0 outside."""
    offset = n[None, :] * INPUTS + k[:, None]
    mask = (n < OUTPUTS)[None, :] & (k < INPUTS)[:, None]
    low = tl.load(linear.weight + offset, mask=mask, other=0)
    high = tl.load(linear.weight + offset + OUTPUTS * INPUTS, mask=mask, other=0)
    return low, high


@triton.jit
def _affine(total, linear, n, OUTPUTS: tl.constexpr):
    """bias + total * scale, float32 [BLOCK_M, outputs n]."""
    scale = tl.load(linear.scale + n, mask=n < OUTPUTS, other=0.0)
    bias = tl.load(linear.bias + n, mask=n < OUTPUTS, other=0.0)
    return bias[None, :] + total.to(tl.float32) * scale[None, :]


@triton.jit(do_not_specialize=["positions"])
def _qkv_kernel(
    x,
    norm,
    qkv,
    out,
    positions,
    CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_C)
    mask = (m < positions)[:, None] & (c < CHANNELS)[None, :]
    p_x = x.ptr + m.to(tl.int64)[:, None] * x.stride_position + c[None, :]
    low = tl.load(p_x, mask=mask, other=0)  # [BLOCK_M, BLOCK_C]
    high = tl.load(p_x + x.stride_plane, mask=mask, other=0)
    normed = _layer_norm(join_bytes(low, high), norm, c, CHANNELS)
    low, high = low_byte(normed), high_byte(normed)
    stride_plane = positions.to(tl.int64) * (3 * CHANNELS)
    for part in tl.static_range(3):
        n = part * CHANNELS + c
        w_low, w_high = _weights(qkv, n, c, 3 * CHANNELS, CHANNELS)  # [BLOCK_C, BLOCK_C]
        r = _affine(product(low, high, w_low, w_high), qkv, n, 3 * CHANNELS)  # [BLOCK_M, BLOCK_C]
        p_out = out + m.to(tl.int64)[:, None] * (3 * CHANNELS) + n[None, :]
        store_planes(quantise(r, qkv.out_scale), p_out, stride_plane, mask)


@triton.jit(do_not_specialize=["height", "half_width"])
def _attention_kernel(
    qkv,
    relative,
    tokens,
    height,
    half_width,
    logit_scale,
    v_scale,
    tokens_scale,
    CHANNELS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    await_launch_before()
    i_window, i_head, i_image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    windows = height * half_width
    images = tl.num_programs(2).to(tl.int64)
    token = tl.arange(0, _TILE)
    d = tl.arange(0, BLOCK_D)
    v = tl.arange(0, BLOCK_V)
    window_row = i_window // half_width
    row = window_row + token // 5 - 2
    column = 2 * (i_window % half_width) + (window_row & 1) + token % 5 - 2
    mask_token = token < _TOKENS
    mask_image = mask_token & (row >= 0) & (row < height)
    mask_image = mask_image & (column >= 0) & (column < 2 * half_width)
    # Around a non-anchor, every other token is an anchor.
    anchor = mask_image & (token % 2 == 1)
    allowed = (anchor[None, :] | ~anchor[:, None]) & mask_token[None, :]  # [_TILE, _TILE]

    position = row * (2 * half_width) + column
    first = qkv + 2 * windows * i_image * (3 * CHANNELS) + i_head * DEPTH
    p_token = first + position[:, None] * (3 * CHANNELS)
    p_q = p_token + d[None, :]
    p_v = p_token + 2 * CHANNELS + v[None, :]
    stride_plane = 2 * windows * images * (3 * CHANNELS)
    mask_q = mask_image[:, None] & (d < DEPTH)[None, :]
    q_low = tl.load(p_q, mask=mask_q, other=0)  # [_TILE, BLOCK_D], as of the keys
    q_high = tl.load(p_q + stride_plane, mask=mask_q, other=0)
    k_low = tl.load(p_q + CHANNELS, mask=mask_q, other=0)
    k_high = tl.load(p_q + CHANNELS + stride_plane, mask=mask_q, other=0)
    mask_v = mask_image[:, None] & (v < DEPTH)[None, :]
    v_low = tl.load(p_v, mask=mask_v, other=0)  # [_TILE, BLOCK_V]
    v_high = tl.load(p_v + stride_plane, mask=mask_v, other=0)

    bias = tl.load(relative + (i_head * _TILE + token)[:, None] * _TILE + token[None, :])
    logits = product(q_low, q_high, tl.trans(k_low), tl.trans(k_high)).to(tl.float32)
    logits = tl.where(allowed, logits * logit_scale + bias, -float("inf"))  # [_TILE, _TILE]
    p = exp_int(logits - tl.max(logits, axis=1)[:, None])
    total = tl.sum(p, axis=1).to(tl.float32)  # [_TILE]
    # At most 25 * 16383 * 4095 < 2^31.
    weighted = product(low_byte(p), high_byte(p), v_low, v_high).to(tl.float32)
    r = tl.div_rn(weighted, total[:, None]) * v_scale  # [_TILE, BLOCK_V]

    p_out = tokens + (windows * i_image + i_window) * (_TOKENS * CHANNELS)
    p_out += i_head * DEPTH + token[:, None] * CHANNELS + v[None, :]
    mask_out = mask_token[:, None] & (v < DEPTH)[None, :]
    stride_plane = windows * images * (_TOKENS * CHANNELS)
    store_planes(quantise(r, tokens_scale), p_out, stride_plane, mask_out)


@triton.jit(do_not_specialize=["windows"])
def _mlp_kernel(
    fused,
    proj,
    norm,
    fc1,
    fc2,
    out,
    windows,
    CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_K inputs of ``proj``, then outputs of ``mlp.fc1``, are held at a time; of the other
    layers all 2 CHANNELS, in BLOCK_N.
    """
    await_launch_before()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = m < windows
    n = tl.arange(0, BLOCK_N)
    block = tl.arange(0, BLOCK_K)
    p_m = fused.ptr + m.to(tl.int64)[:, None] * (2 * CHANNELS)

    hh, mid, ll = no_product(BLOCK_M, BLOCK_N)
    for first in range(0, 2 * CHANNELS, BLOCK_K):
        k = first + block
        mask = mask_m[:, None] & (k < 2 * CHANNELS)[None, :]
        low = tl.load(p_m + k[None, :], mask=mask, other=0)  # [BLOCK_M, BLOCK_K]
        high = tl.load(p_m + fused.stride_plane + k[None, :], mask=mask, other=0)
        w_low, w_high = _weights(proj, n, k, 2 * CHANNELS, 2 * CHANNELS)  # [BLOCK_K, BLOCK_N]
        hh, mid, ll = add_product(hh, mid, ll, low, high, w_low, w_high)
    projected = _affine(join_products(hh, mid, ll), proj, n, 2 * CHANNELS)  # [BLOCK_M, BLOCK_N]

    normed = _layer_norm(quantise(projected, proj.out_scale), norm, n, 2 * CHANNELS)
    low, high = low_byte(normed), high_byte(normed)  # [BLOCK_M, BLOCK_N]

    hh, mid, ll = no_product(BLOCK_M, BLOCK_N)
    for first in range(0, 4 * CHANNELS, BLOCK_K):
        k = first + block
        w_low, w_high = _weights(fc1, k, n, 4 * CHANNELS, 2 * CHANNELS)  # [BLOCK_N, BLOCK_K]
        hidden = gelu(_affine(product(low, high, w_low, w_high), fc1, k, 4 * CHANNELS))
        hidden = quantise(hidden, fc1.out_scale)  # [BLOCK_M, BLOCK_K]
        h_low, h_high = low_byte(hidden), high_byte(hidden)
        w_low, w_high = _weights(fc2, n, k, 2 * CHANNELS, 4 * CHANNELS)  # [BLOCK_K, BLOCK_N]
        hh, mid, ll = add_product(hh, mid, ll, h_low, h_high, w_low, w_high)
    r = _affine(join_products(hh, mid, ll), fc2, n, 2 * CHANNELS) + projected
    p_out = out.ptr + m.to(tl.int64)[:, None] * out.stride_position + n[None, :]
    mask = mask_m[:, None] & (n < 2 * CHANNELS)[None, :]
    store_planes(quantise(r, fc2.out_scale), p_out, out.stride_plane, mask)


# -- launcher ---------------------------------------------------------------------------------


def local_context(x: Tensor, weights: WindowWeights, *, out: Tensor) -> None:
    """Planes of the anchors x [2, B, H, W, C], zero elsewhere -> out [2, B, H, W/2, 2C]."""
    check_planes(x)
    check_planes(out)
    _, batch, height, width, channels = x.shape
    if out.shape != (2, batch, height, width // 2, 2 * channels):
        raise ValueError(f"out has shape {tuple(out.shape)}")
    w = weights
    heads = len(w.relative)
    positions, windows = batch * height * width, height * width // 2
    qkv = torch.empty((2, positions, 3 * channels), dtype=torch.int8, device=x.device)
    wide = "_wide" if channels > 32 else ""
    grid = Grid(batch, height, width // 2)
    tokens = _planes(grid, TOKENS * channels, x.device)
    fused = _planes(grid, 2 * channels, x.device)
    c = config(f"window_qkv{wide}", x.device, positions)
    launch(
        _qkv_kernel,
        (triton.cdiv(positions, c.block),),
        Planes.of(x),
        w.norm1,
        w.qkv,
        qkv,
        positions,
        CHANNELS=channels,
        BLOCK_M=c.block,
        BLOCK_C=padded(channels),
        num_warps=c.warps,
        num_stages=c.stages,
    )
    depth = channels // heads
    c = config("window_attention", x.device, positions)
    launch(
        _attention_kernel,
        (windows, heads, batch),
        qkv,
        w.relative,
        tokens,
        height,
        width // 2,
        w.logit_scale,
        1 / w.qkv.out_scale,
        w.tokens_scale,
        CHANNELS=channels,
        DEPTH=depth,
        BLOCK_D=padded(depth),
        BLOCK_V=triton.next_power_of_2(depth),
        num_warps=c.warps,
        num_stages=c.stages,
    )
    products.conv(Input(tokens), w.fusion, grid, out=fused, out_scale=w.fusion_scale)
    c = config(f"window_mlp{wide}", x.device, batch * windows)
    launch(
        _mlp_kernel,
        (triton.cdiv(batch * windows, c.block),),
        Planes.of(fused),
        w.proj,
        w.norm2,
        w.fc1,
        w.fc2,
        Planes.of(out),
        batch * windows,
        CHANNELS=channels,
        BLOCK_M=c.block,
        BLOCK_N=padded(2 * channels),
        BLOCK_K=c.outputs,
        num_warps=c.warps,
        num_stages=c.stages,
    )


def _planes(grid: Grid, channels: int, device: torch.device) -> Tensor:
    shape = (2, grid.batch, grid.height, grid.width, channels)
    return torch.empty(shape, dtype=torch.int8, device=device)
