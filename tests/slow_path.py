"""A small, slow entropy path, written from docs/arithmetic.md without a look at the engines.

With slow_decoder.py it decodes a .mlic file to its latents. It shares no code with the package, so
that a mistake in one of the two, or in the text, shows. Real arrays are float32, integers int64.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from slow_decoder import Payload, Table, read_container

Real = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]

LIMIT = 4095
ANCHORS, NON_ANCHORS = 1, 0  # (row + column) mod 2
SCALES = (0.11 * (256 / 0.11) ** (np.arange(64) / 63)).astype(np.float32)
G: Real = np.array(
    [
        *(0.3986733853816986, -0.06588786095380783, 0.009505406953394413),
        *(-0.0010064917150884867, 7.485509559046477e-05, -3.657126626421814e-06),
        *(1.0419547891160619e-07, -1.3012811939105973e-09),
    ],
    np.float32,
)
E: Real = np.array(
    [
        *(0.9999973776956299, -0.6930297017097473, 0.2393394410610199),
        *(-0.05307213217020035, 0.006766298320144415),
    ],
    np.float32,
)
L = np.float32(-1.44269504)


class Activation(NamedTuple):
    """Section 1: q * 2^-e, q is [height, width, channel]."""

    q: Ints
    e: int

    def real(self) -> Real:
        return real(self.q) * power(-self.e)

    def at(self, colour: int) -> Activation:
        """Squeezed to a colour."""
        return Activation(squeeze(self.q, colour), self.e)

    def only(self, colour: int) -> Activation:
        """With zeros at the other colour."""
        return Activation(spread(squeeze(self.q, colour), colour), self.e)


class Decoded(NamedTuple):
    """A pass of a slice: [height, width / 2, channel]."""

    indexes: Ints
    means: Real
    symbols: Ints


class Latents(NamedTuple):
    z_symbols: Ints
    passes: list[Decoded]
    y_hat: Real  # [height, width, channel]
    digest: int  # that the stream announces


# Section 1.


def real(integers: Ints) -> Real:
    return integers.astype(np.float32)


def power(exponent: int) -> np.float32:
    return np.float32(2.0**exponent)


def clamp(r: Real, low: float, high: float) -> Real:
    """fmin and fmax return the other operand for NaN."""
    return np.fmin(np.fmax(r, np.float32(low)), np.float32(high))


def quantise(r: Real, e: int) -> Activation:
    return Activation(np.rint(clamp(r * power(e), -LIMIT, LIMIT)).astype(np.int64), e)


def columns(height: int, width: int, colour: int) -> tuple[Ints, Ints]:
    """Rows and columns of the positions of a colour, in squeezed order."""
    rows = np.arange(height)[:, None]
    return rows, 2 * np.arange(width // 2)[None] + (rows + colour) % 2


def squeeze(x: Array, colour: int) -> Array:
    return x[columns(x.shape[0], x.shape[1], colour)]


def spread(squeezed: Array, colour: int) -> Array:
    """Of a squeezed tensor the full one, zero at the other colour."""
    height, half, channels = squeezed.shape
    full = np.zeros((height, 2 * half, channels), squeezed.dtype)
    full[columns(height, 2 * half, colour)] = squeezed
    return full


# Section 2. All sums are far below 2^53, so that products in float64 are exact in any order.


def matmul(a: Ints, b: Ints) -> Ints:
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)


def neighbourhoods(x: Array, k: int) -> Array:
    """[height, width, k * k, channel], zero outside."""
    height, width, _ = x.shape
    padded = np.pad(x, ((k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    taps = [padded[i : i + height, j : j + width] for i in range(k) for j in range(k)]
    return np.stack(taps, axis=2)


def convolve(x: Ints, weight: Ints, depthwise: bool) -> Ints:
    """``weight`` is [O, k, k, C]."""
    out, k, _, _ = weight.shape
    taps = neighbourhoods(x, k)
    if depthwise:
        return np.sum(taps * weight.reshape(out, k * k).T, axis=2)
    return matmul(taps.reshape(*x.shape[:2], -1), weight.reshape(out, -1).T)


# Section 3.


def gelu(r: Real) -> Real:
    t = clamp(r, -4, 4)
    s = t * t
    p = np.full_like(r, G[7])
    for g in G[6::-1]:
        p = p * s + g
    return r * (np.float32(0.5) + t * p)


def half_tanh(r: Real) -> Real:
    t = clamp(r, -4.97, 4.97)
    s = t * t
    c = np.float32
    n = ((s + c(378)) * s + c(17325)) * s + c(135135)
    d = ((c(28) * s + c(3150)) * s + c(62370)) * s + c(135135)
    return c(0.5) * ((t * n) / d)


def exp_int(x: Real) -> Ints:
    u = np.fmin(x * L, np.float32(24))
    i = np.trunc(u)
    g = u - i
    p = np.full_like(x, E[4])
    for e in E[3::-1]:
        p = p * g + e
    return np.rint((p * np.exp2(-i)) * np.float32(16383)).astype(np.int64)


# Section 4. Linear and softmax attention take [position, channel] of one head.


def layer_norm(x: Activation, gain: Real, bias: Real) -> Real:
    c = x.q.shape[-1]
    s = x.q.sum(-1, keepdims=True)
    v = c * (x.q * x.q).sum(-1, keepdims=True) - s * s
    epsilon = np.float32(1e-5 * c**2) * power(2 * x.e)
    return (real(c * x.q - s) / np.sqrt(real(v) + epsilon)) * gain + bias


def window_attention(qkv: Activation, bias: Real) -> Real:
    """Of the windows around non-anchors, squeezed; ``bias`` is [head, 25, 25]."""
    height, width, channels = qkv.q.shape
    heads = len(bias)
    rows, cols = columns(height, width, NON_ANCHORS)
    windows = neighbourhoods(qkv.q, 5)[rows, cols].reshape(-1, 25, 3, channels // 3 // heads, heads)
    q, k, v = np.moveaxis(windows, (2, 4), (0, 1))  # each [head, window, token, d]
    anchor = (np.indices((height, width)).sum(0) % 2)[..., None]  # zero, so false, outside
    anchors = neighbourhoods(anchor, 5)[rows, cols].reshape(-1, 25) == 1
    keys = anchors[:, None, :] | ~anchors[:, :, None]  # [window, a, b]
    scale = np.float32(q.shape[-1] ** -0.5) * power(-2 * qkv.e)
    logits = real(matmul(q, np.swapaxes(k, -1, -2))) * scale
    logits = np.where(keys, logits + bias[:, None], np.float32(-np.inf))
    p = np.where(keys, exp_int(logits - logits.max(-1, keepdims=True)), 0)
    r = (real(matmul(p, v)) / real(p.sum(-1, keepdims=True))) * power(-qkv.e)
    return r.transpose(1, 2, 0, 3).reshape(height, width // 2, -1)  # (token, head, d)


def linear_attention(q: Activation, k: Activation, v: Activation) -> Real:
    p = exp_int(real(k.q - k.q.max(0)) * power(-k.e))
    c = real(matmul(p.T, v.q)) / real(p.sum(0))[:, None]
    m, b = np.frexp(np.abs(c).max())
    x = 0 if m == 0 else int(np.clip(12 - b - (m > 4095 / 4096), -60, 60))
    c_int = np.rint(c * power(x)).astype(np.int64)
    p = exp_int(real(q.q - q.q.max(-1, keepdims=True)) * power(-q.e))
    return (real(matmul(p, c_int)) / real(p.sum(-1, keepdims=True))) * power(-(x + v.e))


def softmax_attention(q: Activation, k: Activation, v: Activation, allowed: Mask) -> Real:
    """``allowed`` is [query, key]."""
    logits = matmul(q.q, k.q.T)
    top = np.where(allowed, logits, np.iinfo(np.int64).min).max(-1, keepdims=True)
    scale = np.float32(q.q.shape[-1] ** -0.5) * power(-(q.e + k.e))
    p = np.where(allowed, exp_int(real(np.where(allowed, logits - top, 0)) * scale), 0)
    r = (real(matmul(p, v.q)) / real(np.maximum(p.sum(-1, keepdims=True), 1))) * power(-v.e)
    return np.where(allowed.any(-1, keepdims=True), r, np.float32(0))


# Section 6.


class Model:
    """Section 7: a packed model, from the bytes of its file."""

    def __init__(self, file: bytes) -> None:
        (length,) = struct.unpack("<Q", file[:8])
        header, content = json.loads(file[8 : 8 + length]), file[8 + length :]
        metadata = header.pop("__metadata__")
        types = {"F32": "<f4", "I32": "<i4", "I16": "<i2", "U16": "<u2", "U8": "u1"}
        self.tensors: dict[str, Array] = {}
        for name, entry in header.items():
            if name.startswith("packed."):
                start, end = entry["data_offsets"]
                data = np.frombuffer(content[start:end], types[entry["dtype"]])
                self.tensors[name[len("packed.") :]] = data.reshape(entry["shape"])
        config = json.loads(metadata["mlic_fast.config"])
        self.variant: str = config["variant"]
        self.slices: int = config["slices"]
        self.n: int = config["N"]
        self.m: int = config["M"]
        names = json.loads(metadata["mlic_fast.exponents"])
        self.exponents = dict(zip(names, self.tensors["exponents"].tolist(), strict=True))
        ends = np.cumsum(self.tensors["tables.sizes"])
        frequencies = np.split(self.tensors["tables.frequencies"], ends[:-1])
        precisions, minima = self.tensors["tables.precisions"], self.tensors["tables.minima"]
        self.tables = [
            Table(int(p), int(low), f.tolist())
            for p, low, f in zip(precisions, minima, frequencies, strict=True)
        ]

    # Layers.

    def quantise(self, r: Real, name: str) -> Activation:
        return quantise(r, self.exponents[name])

    def product(self, name: str, inputs: Sequence[Activation], depthwise: bool = False) -> Real:
        r = self.tensors[f"{name}.bias"]
        for s, x in enumerate(inputs):
            weight = self.tensors[f"{name}.{s}.weight"].astype(np.int64)
            scale = self.tensors[f"{name}.{s}.scale"] * power(-x.e)
            r = r + real(convolve(x.q, weight, depthwise)) * scale
        assert f"{name}.{len(inputs)}.weight" not in self.tensors
        return r

    def layer(self, name: str, *inputs: Activation, depthwise: bool = False) -> Activation:
        return self.quantise(self.product(name, inputs, depthwise), name)

    def gelu_layer(self, name: str, *inputs: Activation, depthwise: bool = False) -> Activation:
        return self.quantise(gelu(self.product(name, inputs, depthwise)), name)

    def stack(self, name: str, inputs: Sequence[Activation]) -> Real:
        """Layers 0, 2, 4 .. with gelu between; the last one stays real."""
        number = 0
        while f"{name}.{number + 2}.bias" in self.tensors:
            inputs = [self.gelu_layer(f"{name}.{number}", *inputs)]
            number += 2
        return self.product(f"{name}.{number}", inputs)

    def norm(self, name: str, x: Activation) -> Activation:
        gain, bias = self.tensors[f"{name}.gain"], self.tensors[f"{name}.bias"]
        return self.quantise(layer_norm(x, gain, bias), name)

    # Networks.

    def hyper(self, symbols: Ints) -> Activation:
        x = self.quantise(real(symbols) + self.tensors["medians.bias"], "z_hat")
        x = self.gelu_layer("h_s.increase.0", x)
        x = pixel_shuffle(self.gelu_layer("h_s.increase.2.0", x))
        x = self.gelu_layer("h_s.increase.4", x)
        x = pixel_shuffle(self.gelu_layer("h_s.increase.6.0", x))
        return self.quantise(self.product("h_s.increase.8", [x]), "hyper")

    def channel_context(self, i: int, previous: Sequence[Activation]) -> Activation:
        name = f"channel_context.{i}.fushion"
        return self.quantise(self.stack(name, previous), f"{name}.4")

    def local_context(self, i: int, anchors: Activation) -> Activation:
        """At non-anchors, squeezed."""
        name = f"local_context.{i}"
        if self.variant == "mlic":
            x = self.gelu_layer(f"{name}.convs.0", anchors)
            x = self.gelu_layer(f"{name}.convs.1", x)
            return self.layer(f"{name}.convs.2", x).at(NON_ANCHORS)
        qkv = self.layer(f"{name}.qkv_proj", self.norm(f"{name}.norm1", anchors))
        attended = window_attention(qkv, self.tensors[f"{name}.attention.bias"])
        x = self.layer(f"{name}.fusion", self.quantise(attended, f"{name}.attention"))
        f = self.product(f"{name}.proj", [x])
        x = self.norm(f"{name}.norm2", self.quantise(f, f"{name}.proj"))
        x = self.gelu_layer(f"{name}.mlp.fc1", x)
        return self.quantise(self.product(f"{name}.mlp.fc2", [x]) + f, f"{name}.mlp.fc2")

    def queries(self, name: str, inputs: Sequence[Activation]) -> Activation:
        """Or keys, or values."""
        return self.layer(f"{name}.1", self.layer(f"{name}.0", *inputs), depthwise=True)

    def attention(
        self, q: Activation, k: Activation, v: Activation, heads: int, allowed: Mask
    ) -> Real:
        """``allowed``, [query, key], matters to softmax attention only."""
        parts = []
        for head in range(heads):
            a, b, c = (
                Activation(x.q.reshape(-1, heads, x.q.shape[-1] // heads)[:, head], x.e)
                for x in (q, k, v)
            )
            if self.variant == "mlic_plus_plus":
                parts.append(linear_attention(a, b, c))
            else:
                parts.append(softmax_attention(a, b, c, allowed))
        return np.concatenate(parts, axis=-1).reshape(q.q.shape)

    def mlp(self, name: str, x: Activation, residual: Real) -> Activation:
        x = self.gelu_layer(f"{name}.0", x)
        x = self.gelu_layer(f"{name}.2", x, depthwise=True)
        return self.quantise(self.product(f"{name}.4", [x]) + residual, f"{name}.4")

    def inter_context(self, i: int, previous: Sequence[Activation]) -> Activation:
        name = f"global_inter_context.{i}"
        q, k, v = (self.queries(f"{name}.{x}", previous) for x in ("queries", "keys", "values"))
        positions = q.q.shape[0] * q.q.shape[1]
        everywhere = np.ones((positions, positions), np.bool_)
        x = self.attention(q, k, v, q.q.shape[-1] // 32, everywhere)
        x = self.quantise(x, f"{name}.attention")
        x = self.layer(f"{name}.reprojection", x)
        return self.mlp(f"{name}.mlp", x, self.product(f"{name}.skip", [x]))

    def intra_context(self, i: int, previous: Activation, anchors: Activation) -> Activation:
        name = f"global_intra_context.{i}"
        q = self.queries(f"{name}.queries", [previous.only(NON_ANCHORS)]).at(NON_ANCHORS)
        k = self.queries(f"{name}.keys", [previous.only(ANCHORS)]).at(ANCHORS)
        v = self.queries(f"{name}.values", [anchors]).at(ANCHORS)
        height, width, _ = anchors.q.shape
        of_q, of_k = places(height, width, NON_ANCHORS), places(height, width, ANCHORS)
        far = np.abs(of_q[:, None] - of_k[None]).max(-1) > 2
        x = self.quantise(self.attention(q, k, v, 2, far), f"{name}.attention")
        x = self.layer(f"{name}.reprojection", Activation(spread(x.q, NON_ANCHORS), x.e))
        return self.mlp(f"{name}.mlp", x, x.real())

    # The path.

    def decode(self, data: bytes) -> Latents:
        container = read_container(data)
        payload = Payload(self.tables, container.payload, container.lanes)
        height, width = -(-container.height // 64), -(-container.width // 64)
        numbers = np.broadcast_to(64 + np.arange(self.n), (height, width, self.n))
        z_symbols = decode_pass(payload, numbers)
        hyper = self.hyper(z_symbols)
        mu = Activation(hyper.q[..., self.m :], hyper.e)
        passes: list[Decoded] = []
        slices: list[Real] = []
        previous: list[Activation] = []

        for i in range(self.slices):
            contexts = [hyper]
            if i > 0 and self.variant != "mlic":
                contexts.append(self.inter_context(i, previous))
            if i > 0:
                contexts.append(self.channel_context(i, previous))
            y = np.zeros((4 * height, 4 * width, self.m // self.slices), np.float32)
            for colour, word in ((ANCHORS, "anchor"), (NON_ANCHORS, "nonanchor")):
                inputs = [x.at(colour) for x in contexts]
                if colour == NON_ANCHORS:
                    anchors = self.quantise(y, f"y_hat.{i}")
                    inputs.append(self.local_context(i, anchors))
                    if i > 0:
                        intra = self.intra_context(i, previous[-1], anchors)
                        inputs.append(intra.at(NON_ANCHORS))
                parameters = self.stack(f"entropy_parameters_{word}.{i}.fusion", inputs)
                scales, means = np.split(parameters, 2, axis=-1)
                indexes = np.sum(~(SCALES[:63] >= scales[..., None]), axis=-1)
                symbols = decode_pass(payload, indexes)
                passes.append(Decoded(indexes, means, symbols))
                y = y + spread(real(symbols) + means, colour)
                known = [mu, *previous, self.quantise(y, f"y_hat.{i}")]
                r = self.stack(f"lrp_{word}.{i}.lrp_transform", known)
                y = y + spread(half_tanh(squeeze(r, colour)), colour)
            slices.append(y)
            previous.append(self.quantise(y, f"y_hat.{i}"))
        return Latents(z_symbols, passes, np.concatenate(slices, axis=-1), payload.digest())


def decode_pass(payload: Payload, indexes: Ints) -> Ints:
    height, width, channels = indexes.shape
    symbols = payload.decode_pass(indexes.ravel().tolist())
    return np.array(symbols, np.int64).reshape(height, width, channels)


def pixel_shuffle(x: Activation) -> Activation:
    """Channel 4 c + 2 i + j of a position becomes channel c in row i, column j of its 2 x 2."""
    height, width, channels = x.q.shape
    parts = x.q.reshape(height, width, channels // 4, 2, 2).transpose(0, 3, 1, 4, 2)
    return Activation(parts.reshape(2 * height, 2 * width, channels // 4), x.e)


def places(height: int, width: int, colour: int) -> Ints:
    """Row and column of every position of a colour, in squeezed order: [position, 2]."""
    rows, cols = np.broadcast_arrays(*columns(height, width, colour))
    return np.stack([rows.ravel(), cols.ravel()], axis=-1)
