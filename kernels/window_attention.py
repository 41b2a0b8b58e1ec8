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

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from mlic_fast.engine.arithmetic import WINDOW, power_of_two
from mlic_fast.engine.packing.packed import Layer
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
from mlic_fast.kernels.grid import Input, Positions
from mlic_fast.kernels.planes import add_product, check_planes, padded, product, store_planes
from mlic_fast.models.checkerboard import Parity, squeeze

TOKENS = WINDOW**2
#: Tokens of a tile: the next power of two.
TILE = 32
_TOKENS = tl.constexpr(TOKENS)
_TILE = tl.constexpr(TILE)


# -- weights ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear:
    """A linear layer: weight planes [2, O, K], scale (times 2^-e of its input) and bias [O]."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    @classmethod
    def from_packed(
        cls, layer: Layer, exponent: int, device: torch.device, order: Tensor | None = None
    ) -> Linear:
        """``exponent`` of the input; ``order`` of the outputs, if it changes."""
        (segment,) = layer.segments
        weight = torch.from_numpy(segment.weight).flatten(1)
        scale = torch.from_numpy(segment.scale * power_of_two(-exponent))
        bias = torch.from_numpy(layer.bias)
        if order is not None:
            weight, scale, bias = weight[order], scale[order], bias[order]
        return cls(to_planes(weight).to(device), scale.to(device), bias.to(device))


@dataclass(frozen=True)
class Norm:
    """A layer norm over C channels: gain and bias [C], epsilon times C^2 and 4^e of its input."""

    gain: Tensor
    bias: Tensor
    epsilon: float

    @classmethod
    def from_packed(cls, layer: Layer, exponent: int, device: torch.device) -> Norm:
        gain, bias = _array(layer.gain), _array(layer.bias)
        epsilon = np.float32(1e-5 * len(gain) ** 2) * power_of_two(2 * exponent)
        return cls(gain.to(device), bias.to(device), float(epsilon))


@dataclass(frozen=True)
class WindowWeights:
    """All that one local context needs on its device. Scales are 2^e, their inverses 2^-e.

    The outputs of ``qkv`` are in the order (q k v, head, d), so that a head is contiguous.
    """

    norm1: Norm
    norm1_scale: float
    qkv: Linear
    qkv_scale: float
    logit_scale: float
    #: Relative position bias [heads, TILE, TILE], padded with zeros.
    relative: Tensor
    tokens_scale: float
    fusion: products.ProductWeights
    fusion_scale: Tensor
    proj: Linear
    proj_scale: float
    norm2: Norm
    norm2_scale: float
    fc1: Linear
    fc1_scale: float
    fc2: Linear
    out_scale: float

    @classmethod
    def from_packed(
        cls,
        layers: Mapping[str, Layer],
        exponents: Mapping[str, int],
        prefix: str,
        source: str,
        device: torch.device,
    ) -> WindowWeights:
        """Of the local context ``prefix`` ("local_context.3") that reads ``source`` ("y_hat.3")."""

        def exponent(name: str) -> int:
            return exponents[f"{prefix}.{name}"]

        def scale(name: str) -> float:
            return float(power_of_two(exponent(name)))

        def linear(name: str, source: str, order: Tensor | None = None) -> Linear:
            return Linear.from_packed(layers[f"{prefix}.{name}"], exponent(source), device, order)

        relative = _array(layers[f"{prefix}.attention"].bias)
        heads = len(relative)
        channels = len(layers[f"{prefix}.norm1"].bias)
        depth = channels // heads
        order = torch.arange(3 * channels).reshape(3, depth, heads).transpose(1, 2).flatten()
        pad = TILE - TOKENS
        return cls(
            norm1=Norm.from_packed(layers[f"{prefix}.norm1"], exponents[source], device),
            norm1_scale=scale("norm1"),
            qkv=linear("qkv_proj", "norm1", order),
            qkv_scale=scale("qkv_proj"),
            logit_scale=float(np.float32(depth**-0.5) * power_of_two(-2 * exponent("qkv_proj"))),
            relative=torch.nn.functional.pad(relative, (0, pad, 0, pad)).to(device),
            tokens_scale=scale("attention"),
            fusion=products.pack_weights(
                [layers[f"{prefix}.fusion"].segments],
                [exponent("attention")],
                [layers[f"{prefix}.fusion"].bias],
                device,
            ),
            fusion_scale=torch.full((2 * channels,), scale("fusion"), device=device),
            proj=linear("proj", "fusion"),
            proj_scale=scale("proj"),
            norm2=Norm.from_packed(layers[f"{prefix}.norm2"], exponent("proj"), device),
            norm2_scale=scale("norm2"),
            fc1=linear("mlp.fc1", "norm2"),
            fc1_scale=scale("mlp.fc1"),
            fc2=linear("mlp.fc2", "mlp.fc1"),
            out_scale=scale("mlp.fc2"),
        )


def _array(x: npt.NDArray[np.float32] | None) -> Tensor:
    assert x is not None
    return torch.from_numpy(x)


# -- twin -------------------------------------------------------------------------------------


def local_context_twin(x: Tensor, weights: WindowWeights) -> Tensor:
    """Planes of the anchors [2, B, H, W, C] -> planes at non-anchors [2, B, H, W/2, 2C]."""
    w = weights
    normed = _norm_twin(from_planes(x), w.norm1, w.norm1_scale)
    qkv = quantise_twin(_linear_twin(normed, w.qkv), w.qkv_scale)
    tokens = _attention_twin(qkv, w)
    fused = quantise_twin(products.conv_twin([tokens], w.fusion, w.fusion.bias), w.fusion_scale)
    real = _linear_twin(fused, w.proj)
    normed = _norm_twin(quantise_twin(real, w.proj_scale), w.norm2, w.norm2_scale)
    hidden = quantise_twin(gelu_twin(_linear_twin(normed, w.fc1)), w.fc1_scale)
    return to_planes(quantise_twin(_linear_twin(hidden, w.fc2) + real, w.out_scale))


def _linear_twin(x: Tensor, layer: Linear) -> Tensor:
    # Sums of integers below 2^53: exact in float64.
    total = x.double() @ from_planes(layer.weight).double().T
    return layer.bias + total.float() * layer.scale


def _norm_twin(q: Tensor, norm: Norm, scale: float) -> Tensor:
    q = q.long()
    channels = q.shape[-1]
    total = q.sum(-1, keepdim=True)
    variance = channels * (q * q).sum(-1, keepdim=True) - total * total
    # Through float64, since the float32 square root of a CPU is not correctly rounded.
    root = (variance.float() + norm.epsilon).double().sqrt().float()
    r = ((channels * q - total).float() / root) * norm.gain + norm.bias
    return quantise_twin(r, scale)


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
    r = ((p @ v).float() / p.sum(-1, keepdim=True).float()) * (1 / weights.qkv_scale)
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
def _layer_norm(q, gain, bias, epsilon, scale, CHANNELS: tl.constexpr):
    """int32 [rows, channels] (zero beyond CHANNELS) -> the same, normed and quantised."""
    total = tl.sum(q, axis=1)
    wide = q.to(tl.int64)
    square = total.to(tl.int64) * total.to(tl.int64)
    variance = CHANNELS * tl.sum(wide * wide, axis=1) - square
    root = tl.sqrt_rn(variance.to(tl.float32) + epsilon)
    deviation = (CHANNELS * q - total[:, None]).to(tl.float32)
    return quantise(tl.div_rn(deviation, root[:, None]) * gain[None, :] + bias[None, :], scale)


@triton.jit
def _weights(weight, outputs, inputs, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr):
    """Tiles [inputs, outputs] of both planes of a weight [2, OUTPUTS, INPUTS], 0 outside."""
    addresses = weight + outputs[None, :] * INPUTS + inputs[:, None]
    mask = (outputs < OUTPUTS)[None, :] & (inputs < INPUTS)[:, None]
    low = tl.load(addresses, mask=mask, other=0)
    high = tl.load(addresses + OUTPUTS * INPUTS, mask=mask, other=0)
    return low, high


@triton.jit
def _affine(total, scale, bias, outputs, OUTPUTS: tl.constexpr):
    """bias + total * scale, float32 [rows, outputs]."""
    mask = outputs < OUTPUTS
    a = tl.load(scale + outputs, mask=mask, other=0.0)
    b = tl.load(bias + outputs, mask=mask, other=0.0)
    return b[None, :] + total.to(tl.float32) * a[None, :]


@triton.jit(do_not_specialize=["positions"])
def _qkv_kernel(
    x,
    gain,
    shift,
    weight,
    scale,
    bias,
    qkv,
    positions,
    x_plane,
    x_stride,
    epsilon,
    norm_scale,
    qkv_scale,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    await_launch_before()
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = rows < positions
    channels = tl.arange(0, WIDTH)
    real = channels < C
    addresses = x + rows.to(tl.int64)[:, None] * x_stride + channels[None, :]
    mask = here[:, None] & real[None, :]
    low = tl.load(addresses, mask=mask, other=0)
    high = tl.load(addresses + x_plane, mask=mask, other=0)
    g = tl.load(gain + channels, mask=real, other=0.0)
    s = tl.load(shift + channels, mask=real, other=0.0)
    normed = _layer_norm(join_bytes(low, high), g, s, epsilon, norm_scale, C)
    low, high = low_byte(normed), high_byte(normed)
    out_plane = positions.to(tl.int64) * (3 * C)
    for part in tl.static_range(3):
        outputs = part * C + channels
        w_low, w_high = _weights(weight, outputs, channels, 3 * C, C)
        r = _affine(product(low, high, w_low, w_high), scale, bias, outputs, 3 * C)
        to = qkv + rows.to(tl.int64)[:, None] * (3 * C) + outputs[None, :]
        store_planes(quantise(r, qkv_scale), to, out_plane, mask)


@triton.jit(do_not_specialize=["height", "half_width"])
def _attention_kernel(
    qkv,
    relative,
    tokens,
    height,
    half_width,
    logit_scale,
    value_scale,
    tokens_scale,
    C: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
):
    await_launch_before()
    window, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    windows = height * half_width
    batch = tl.num_programs(2).to(tl.int64)
    token = tl.arange(0, _TILE)
    depth = tl.arange(0, WIDTH)
    value = tl.arange(0, VALUES)
    row = window // half_width
    y = row + token // 5 - 2
    x = 2 * (window % half_width) + (row & 1) + token % 5 - 2
    is_token = token < _TOKENS
    inside = is_token & (y >= 0) & (y < height) & (x >= 0) & (x < 2 * half_width)
    # Around a non-anchor, every other token is an anchor.
    anchor = inside & (token % 2 == 1)
    allowed = (anchor[None, :] | ~anchor[:, None]) & is_token[None, :]

    position = y * (2 * half_width) + x
    at = qkv + 2 * windows * image * (3 * C) + head * DEPTH + position[:, None] * (3 * C)
    plane = 2 * windows * batch * (3 * C)
    q_at = at + depth[None, :]
    v_at = at + 2 * C + value[None, :]
    mask = inside[:, None] & (depth < DEPTH)[None, :]
    q_low = tl.load(q_at, mask=mask, other=0)
    q_high = tl.load(q_at + plane, mask=mask, other=0)
    k_low = tl.load(q_at + C, mask=mask, other=0)
    k_high = tl.load(q_at + C + plane, mask=mask, other=0)
    mask = inside[:, None] & (value < DEPTH)[None, :]
    v_low = tl.load(v_at, mask=mask, other=0)
    v_high = tl.load(v_at + plane, mask=mask, other=0)

    bias = tl.load(relative + (head * _TILE + token)[:, None] * _TILE + token[None, :])
    logits = product(q_low, q_high, tl.trans(k_low), tl.trans(k_high)).to(tl.float32)
    logits = tl.where(allowed, logits * logit_scale + bias, -float("inf"))
    p = exp_int(logits - tl.max(logits, axis=1)[:, None])
    total = tl.sum(p, axis=1).to(tl.float32)
    # At most 25 * 16383 * 4095 < 2^31.
    weighted = product(low_byte(p), high_byte(p), v_low, v_high).to(tl.float32)
    r = tl.div_rn(weighted, total[:, None]) * value_scale

    to = tokens + (windows * image + window) * (_TOKENS * C)
    to += head * DEPTH + token[:, None] * C + value[None, :]
    mask = is_token[:, None] & (value < DEPTH)[None, :]
    store_planes(quantise(r, tokens_scale), to, windows * batch * (_TOKENS * C), mask)


@triton.jit(do_not_specialize=["windows"])
def _mlp_kernel(
    fused,
    proj_weight,
    proj_scale,
    proj_bias,
    gain,
    shift,
    fc1_weight,
    fc1_scale,
    fc1_bias,
    fc2_weight,
    fc2_scale,
    fc2_bias,
    out,
    windows,
    fused_plane,
    out_plane,
    out_stride,
    real_scale,
    epsilon,
    normed_scale,
    hidden_scale,
    out_scale,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """CHUNK inputs of ``proj``, then outputs of ``mlp.fc1``, are held at a time."""
    await_launch_before()
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = rows < windows
    outputs = tl.arange(0, WIDTH)
    chunk = tl.arange(0, CHUNK)
    fused += rows.to(tl.int64)[:, None] * (2 * C)

    hh = tl.zeros((BLOCK, WIDTH), tl.int32)
    mid = tl.zeros((BLOCK, WIDTH), tl.int32)
    ll = tl.zeros((BLOCK, WIDTH), tl.int32)
    for first in range(0, 2 * C, CHUNK):
        inputs = first + chunk
        mask = here[:, None] & (inputs < 2 * C)[None, :]
        low = tl.load(fused + inputs[None, :], mask=mask, other=0)
        high = tl.load(fused + fused_plane + inputs[None, :], mask=mask, other=0)
        w_low, w_high = _weights(proj_weight, outputs, inputs, 2 * C, 2 * C)
        hh, mid, ll = add_product(hh, mid, ll, low, high, w_low, w_high)
    real = _affine(join_products(hh, mid, ll), proj_scale, proj_bias, outputs, 2 * C)

    is_output = outputs < 2 * C
    g = tl.load(gain + outputs, mask=is_output, other=0.0)
    s = tl.load(shift + outputs, mask=is_output, other=0.0)
    normed = _layer_norm(quantise(real, real_scale), g, s, epsilon, normed_scale, 2 * C)
    low, high = low_byte(normed), high_byte(normed)

    hh = tl.zeros((BLOCK, WIDTH), tl.int32)
    mid = tl.zeros((BLOCK, WIDTH), tl.int32)
    ll = tl.zeros((BLOCK, WIDTH), tl.int32)
    for first in range(0, 4 * C, CHUNK):
        w_low, w_high = _weights(fc1_weight, first + chunk, outputs, 4 * C, 2 * C)
        hidden = product(low, high, w_low, w_high)
        hidden = gelu(_affine(hidden, fc1_scale, fc1_bias, first + chunk, 4 * C))
        hidden = quantise(hidden, hidden_scale)
        h_low, h_high = low_byte(hidden), high_byte(hidden)
        w_low, w_high = _weights(fc2_weight, outputs, first + chunk, 2 * C, 4 * C)
        hh, mid, ll = add_product(hh, mid, ll, h_low, h_high, w_low, w_high)
    r = _affine(join_products(hh, mid, ll), fc2_scale, fc2_bias, outputs, 2 * C) + real
    to = out + rows.to(tl.int64)[:, None] * out_stride + outputs[None, :]
    store_planes(quantise(r, out_scale), to, out_plane, here[:, None] & is_output[None, :])


# -- launcher ---------------------------------------------------------------------------------


def local_context(x: Tensor, weights: WindowWeights, out: Tensor) -> None:
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
    grid = Positions(batch, height, width // 2)
    tokens = _planes(grid, TOKENS * channels, x.device)
    fused = _planes(grid, 2 * channels, x.device)
    c = config(f"window_qkv{wide}", x.device, positions)
    launch(
        _qkv_kernel,
        (triton.cdiv(positions, c.block),),
        x,
        w.norm1.gain,
        w.norm1.bias,
        w.qkv.weight,
        w.qkv.scale,
        w.qkv.bias,
        qkv,
        positions,
        x.stride(0),
        x.stride(3),
        w.norm1.epsilon,
        w.norm1_scale,
        w.qkv_scale,
        C=channels,
        WIDTH=padded(channels),
        BLOCK=c.block,
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
        1 / w.qkv_scale,
        w.tokens_scale,
        C=channels,
        DEPTH=depth,
        WIDTH=padded(depth),
        VALUES=triton.next_power_of_2(depth),
        num_warps=c.warps,
        num_stages=c.stages,
    )
    products.conv(Input(tokens), w.fusion, grid, out=fused, out_scale=w.fusion_scale)
    c = config(f"window_mlp{wide}", x.device, batch * windows)
    launch(
        _mlp_kernel,
        (triton.cdiv(batch * windows, c.block),),
        fused,
        w.proj.weight,
        w.proj.scale,
        w.proj.bias,
        w.norm2.gain,
        w.norm2.bias,
        w.fc1.weight,
        w.fc1.scale,
        w.fc1.bias,
        w.fc2.weight,
        w.fc2.scale,
        w.fc2.bias,
        out,
        batch * windows,
        fused.stride(0),
        out.stride(0),
        out.stride(3),
        w.proj_scale,
        w.norm2.epsilon,
        w.norm2_scale,
        w.fc1_scale,
        w.out_scale,
        C=channels,
        WIDTH=padded(2 * channels),
        BLOCK=c.block,
        CHUNK=c.outputs,
        num_warps=c.warps,
        num_stages=c.stages,
    )


def _planes(grid: Positions, channels: int, device: torch.device) -> Tensor:
    shape = (2, grid.batch, grid.height, grid.width, channels)
    return torch.empty(shape, dtype=torch.int8, device=device)
