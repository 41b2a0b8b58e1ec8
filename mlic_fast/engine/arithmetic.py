"""The exact arithmetic of the entropy path: what every engine must equal, bit for bit.

The text is ``docs/arithmetic.md``. In short: products are sums of integers that fit int32 whatever
the order; everything else is IEEE float32 addition, multiplication, division and square root in the
order written here. numpy computes those correctly rounded on every machine (PyTorch's own square
root and fused operations are not); integer sums go through float64 convolutions, which are exact
below 2^53. Arrays are [B, H, W, C]; functions of single elements take any shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlic_fast.coder import scale_indexes
from mlic_fast.engine.digest import latents_digest
from mlic_fast.engine.operations import Act, Latents, Operations
from mlic_fast.models.parity import Parity

Int16 = npt.NDArray[np.int16]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float = npt.NDArray[np.float32]

#: Largest magnitude of a quantised activation, of a weight, and of a softmax weight.
ACTIVATION_LIMIT = 4095
WEIGHT_LIMIT = 16383
SOFTMAX_ONE = 16383
#: Bits of each of the two parts of a square.
SQUARE_BITS = 11
#: Largest magnitude of a symbol: float32 holds it exactly, and no latent comes near it.
SYMBOL_LIMIT = 1 << 22
#: Largest magnitude of an exponent.
EXPONENT_LIMIT = 60
#: Window of the local context, and the radius that the global context within a slice leaves to it.
WINDOW = 5
EXCLUDED_RADIUS = 2
#: Queries of softmax attention handled at a time; bounds memory, changes no bit.
QUERY_BLOCK = 512

f32 = np.float32

# gelu(x) = x (1/2 + t P(t^2)), t = x clamped to +-4: minimax, 5e-5 within the clamp.
GELU_CLAMP = f32(4.0)
GELU = tuple(
    f32(c)
    for c in (
        0.3986733853816986,
        -0.06588786095380783,
        0.009505406953394413,
        -0.0010064917150884867,
        7.485509559046477e-05,
        -3.657126626421814e-06,
        1.0419547891160619e-07,
        -1.3012811939105973e-09,
    )
)
# 2^-g on [0, 1): minimax, relative error 3e-6.
EXP2 = tuple(
    f32(c)
    for c in (
        0.9999973773956299,
        -0.6930297017097473,
        0.2393394410610199,
        -0.05307213217020035,
        0.006766298320144415,
    )
)
MINUS_LOG2_E = f32(-1.44269504)
# tanh as a continued fraction of order 7, which reaches 1 at the clamp: 1e-4.
TANH_CLAMP = f32(4.97)


def power_of_two(exponent: Any) -> Any:
    """2^exponent as float32, for an integer or an array of them."""
    return np.ldexp(f32(1.0), exponent)


def exponents_of(largest: Float | np.float32) -> Int32:
    """The largest exponents with which values of these magnitudes do not saturate; 0 for zero."""
    mantissa, exponent = np.frexp(largest)  # largest = mantissa * 2^exponent, mantissa in [1/2, 1)
    bits = ACTIVATION_LIMIT.bit_length()
    fits = f32(ACTIVATION_LIMIT / (ACTIVATION_LIMIT + 1))
    exponent = np.clip(bits - exponent - (mantissa > fits), -EXPONENT_LIMIT, EXPONENT_LIMIT)
    return np.where(largest > 0, exponent, 0).astype(np.int32)


def clamp(r: Float, limit: np.float32) -> Float:
    """min(max(r, -limit), limit), where NaN counts as -limit."""
    return np.fmin(np.fmax(r, -limit), limit)


def quantise(r: Float, exponent: int) -> Int16:
    """Round r * 2^exponent to the nearest integer, ties to even, after clamping."""
    return np.rint(clamp(r * power_of_two(exponent), f32(ACTIVATION_LIMIT))).astype(np.int16)


def gelu(r: Float) -> Float:
    """r times the normal distribution function at r, within 5e-5 for arguments up to 4."""
    t = clamp(r, GELU_CLAMP)
    s = t * t
    p = np.full_like(s, GELU[-1])
    for c in GELU[-2::-1]:
        p = p * s + c
    return r * (f32(0.5) + t * p)


def half_tanh(r: Float) -> Float:
    """tanh(r) / 2, the output of the latent residual prediction."""
    t = clamp(r, TANH_CLAMP)
    s = t * t
    numerator = ((s + f32(378)) * s + f32(17325)) * s + f32(135135)
    denominator = ((f32(28) * s + f32(3150)) * s + f32(62370)) * s + f32(135135)
    return f32(0.5) * ((t * numerator) / denominator)


def exp_int(x: Float) -> Int32:
    """exp(x) for x <= 0 as an integer in 0 .. SOFTMAX_ONE; 0 for NaN."""
    u: Float = np.fmin(x * MINUS_LOG2_E, f32(24.0))
    n = u.astype(np.int32)  # u >= 0: truncation is the floor
    g = u - n.astype(f32)
    p = np.full_like(g, EXP2[-1])
    for c in EXP2[-2::-1]:
        p = p * g + c
    p = np.ldexp(p, -n)  # exact
    return np.rint(p * f32(SOFTMAX_ONE)).astype(np.int32)


def to_symbols(x: Float) -> Int32:
    """Round to the nearest integer, ties to even; NaN becomes zero.

    (On a GPU y may come from transforms in bfloat16, which may overflow.)
    """
    x = np.nan_to_num(x, nan=0.0, posinf=SYMBOL_LIMIT, neginf=-SYMBOL_LIMIT)
    return np.clip(np.rint(x), -SYMBOL_LIMIT, SYMBOL_LIMIT).astype(np.int32)


def product(x: Int16, weight: Int16) -> Int32:
    """k x k convolution of integers, stride 1, zero padded: [B,H,W,C], [O,k,k,C] -> [B,H,W,O]."""
    import torch

    out = torch.nn.functional.conv2d(
        torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).double(),
        torch.from_numpy(weight).permute(0, 3, 1, 2).double(),
        padding=weight.shape[1] // 2,
    )
    return np.ascontiguousarray(out.permute(0, 2, 3, 1).numpy()).astype(np.int32)


def squeeze(x: npt.NDArray[Any], parity: Parity) -> npt.NDArray[Any]:
    """The positions of one colour: [B, H, W, C] -> [B, H, W/2, C]."""
    half = np.empty((*x.shape[:2], x.shape[2] // 2, x.shape[3]), x.dtype)
    half[:, 0::2] = x[:, 0::2, parity::2]
    half[:, 1::2] = x[:, 1::2, 1 - parity :: 2]
    return half


def place(half: npt.NDArray[Any], parity: Parity, into: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy of ``into`` [B, H, W, C] with the positions of one colour replaced by ``half``."""
    x = into.copy()
    x[:, 0::2, parity::2] = half[:, 0::2]
    x[:, 1::2, 1 - parity :: 2] = half[:, 1::2]
    return x


class SpecOps(Operations):
    """The operations of the entropy path on numpy arrays; activations are int16."""

    #: That work at the same time.
    threads = 1

    def room(self, shape: Sequence[int], dtype: Any) -> npt.NDArray[Any]:
        """An array to be written, as of numpy.empty."""
        return np.empty(shape, dtype)

    def step(self, do: Callable[[], None]) -> None:
        """Do something that is no operation, between operations."""
        do()

    # -- quantities ---------------------------------------------------------------------------

    def quantise(self, r: Float, out: str) -> Act:
        exponent = self.exponents[out]
        return Act(quantise(r, exponent), exponent)

    def hyper_latents(self, symbols: Int32) -> Act:
        return self.quantise(symbols.astype(f32) + self.layers["medians"].bias, "z_hat")

    def scale_indexes(self, scales: Float) -> npt.NDArray[np.uint8]:
        return scale_indexes(scales)

    def symbols(self, y: Float, means: Float, parity: Parity) -> Int32:
        return to_symbols(squeeze(y, parity) - means)

    # -- latents ------------------------------------------------------------------------------

    def digest(self, y: Float, first: int = 0) -> int:
        """:func:`latents_digest` of latents [1, H, W, C]; ``first`` is the number of the first."""
        return latents_digest(np.moveaxis(y, -1, 1), first)

    def new_latents(self, batch: int, height: int, width: int) -> Latents:
        return Latents(self.config.slices)

    def decoded(
        self, latents: Latents, index: int, symbols: Int32, means: Float, parity: Parity
    ) -> None:
        y = latents.y[index]
        if parity is Parity.ANCHOR:
            batch, height, half_width, channels = means.shape
            y = np.zeros((batch, height, 2 * half_width, channels), f32)
        self._set(latents, index, place(symbols.astype(f32) + means, parity, y))

    def add_prediction(
        self, latents: Latents, index: int, layer: str, x: Act, parity: Parity
    ) -> None:
        r = self.conv(layer, [x], at=parity)
        self._set(latents, index, self.add_residual(latents.y[index], r, parity))

    def add_residual(self, y: Float, r: Float, parity: Parity) -> Float:
        """y plus half_tanh of r [B, H, W/2, C] at one colour."""
        return place(squeeze(y, parity) + half_tanh(r), parity, y)

    def _set(self, latents: Latents, index: int, y: Float) -> None:
        latents.y[index] = y
        latents.q[index] = self.quantise(y, f"y_hat.{index}")

    # -- layouts ------------------------------------------------------------------------------

    def channels(self, x: Act, start: int, stop: int) -> Act:
        return Act(x.q[..., start:stop], x.exponent)

    def keep(self, x: Act, parity: Parity) -> Act:
        return Act(place(squeeze(x.q, parity), parity, np.zeros_like(x.q)), x.exponent)

    def squeeze(self, x: Act, parity: Parity) -> Act:
        return Act(squeeze(x.q, parity), x.exponent)

    def unsqueeze(self, x: Act, parity: Parity) -> Act:
        batch, height, half_width, channels = x.q.shape
        zeros = np.zeros((batch, height, 2 * half_width, channels), x.q.dtype)
        return Act(place(x.q, parity, zeros), x.exponent)

    def pixel_shuffle(self, x: Act) -> Act:
        """[B, H, W, 4C] -> [B, 2H, 2W, C], input channel 4c + 2 dy + dx."""
        batch, height, width, channels = x.q.shape
        q = x.q.reshape(batch, height, width, channels // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        q = np.ascontiguousarray(q).reshape(batch, 2 * height, 2 * width, channels // 4)
        return Act(q, x.exponent)

    # -- residual transforms ------------------------------------------------------------------

    def to_positions(self, images: npt.NDArray[np.uint8]) -> Act:
        return Act(np.moveaxis(images, 1, -1).astype(np.int16), 0)

    def from_positions(self, r: Float) -> npt.NDArray[np.uint8]:
        pixels = np.rint(np.fmin(np.fmax(r, f32(0)), f32(255))).astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 1))

    def squares(self, r: Float, out: str) -> list[Act]:
        exponent = self._square_exponent(out)
        limit = f32((1 << 2 * SQUARE_BITS) - 1)
        q = np.rint(np.fmin(r * r * power_of_two(exponent), limit)).astype(np.int32)
        upper = (q >> SQUARE_BITS).astype(np.int16)
        lower = (q & ((1 << SQUARE_BITS) - 1)).astype(np.int16)
        return [Act(upper, exponent - SQUARE_BITS), Act(lower, exponent)]

    def _square_exponent(self, out: str) -> int:
        """The exponent of squares in twice SQUARE_BITS bits; that of ``out`` is for activations."""
        return self.exponents[out] + 2 * SQUARE_BITS - ACTIVATION_LIMIT.bit_length()

    def normalise(
        self, r: Float, norm: Float, skip: Float, *, inverse: bool = False, out: str
    ) -> Act:
        root = np.sqrt(norm)
        skip = skip if skip.shape == r.shape else self.depth_to_space(skip)
        return self.quantise((r * root if inverse else r / root) + skip, out)

    # -- block transforms ---------------------------------------------------------------------

    def to_blocks(self, images: npt.NDArray[np.uint8]) -> Act:
        batch, colours, height, width = images.shape
        q = images.reshape(batch, colours, height // 8, 8, width // 8, 8)
        q = q.transpose(0, 2, 4, 1, 3, 5).reshape(batch, height // 8, width // 8, 64 * colours)
        return Act(q.astype(np.int16), 0)

    def to_pixels(self, r: Float) -> npt.NDArray[np.uint8]:
        batch, height, width, _ = r.shape
        q = np.rint(np.fmin(np.fmax(r, f32(0)), f32(255))).astype(np.uint8)
        q = q.reshape(batch, height, width, 3, 8, 8).transpose(0, 3, 1, 4, 2, 5)
        return q.reshape(batch, 3, 8 * height, 8 * width)

    def scale(self, r: Float, factors: Float) -> Float:
        return r * factors

    def every_second(self, x: Act) -> Act:
        return Act(x.q[:, ::2, ::2], x.exponent)

    def space_to_depth(self, x: Act) -> Act:
        batch, height, width, channels = x.q.shape
        q = x.q.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
        return Act(q.reshape(batch, height // 2, width // 2, 4 * channels), x.exponent)

    def depth_to_space(self, r: Float) -> Float:
        batch, height, width, channels = r.shape
        r = r.reshape(batch, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
        return r.reshape(batch, 2 * height, 2 * width, channels // 4)

    # -- products -----------------------------------------------------------------------------

    def conv(
        self,
        layer: str,
        inputs: Sequence[Act],
        *,
        partial: Float | None = None,
        first: int | None = None,
        at: Parity | None = None,
        gelu_after: bool = False,
        residual: Float | Act | None = None,
        out: str | None = None,
    ) -> Any:
        weights = self.layers[layer]
        segments = weights.segments[weights.used(inputs, partial, first)]
        r: Float = weights.bias if partial is None else partial
        for x, segment in zip(inputs, segments, strict=True):
            total = product(x.q, segment.weight)
            if at is not None:
                total = squeeze(total, at)
            r = r + total.astype(f32) * (segment.scale * power_of_two(-x.exponent))
        if gelu_after:
            r = gelu(r)
        if isinstance(residual, Act):
            r = r + residual.q.astype(f32) * power_of_two(-residual.exponent)
        elif residual is not None:
            r = r + residual
        return r if out is None else self.quantise(r, out)

    def subpixel_conv(self, layer: str, x: Act, out: str) -> Act:
        return self.pixel_shuffle(self.conv(layer, [x], gelu_after=True, out=out))

    def depthwise(self, layer: str, x: Act, *, gelu_after: bool = False, out: str) -> Act:
        weights = self.layers[layer]
        (segment,) = weights.segments
        _, height, width, _ = x.q.shape
        padded = np.pad(x.q, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.int32)
        total = np.zeros(x.q.shape, np.int32)
        for dy in range(3):
            for dx in range(3):
                tap = segment.weight[:, dy, dx, 0].astype(np.int32)
                total += padded[:, dy : dy + height, dx : dx + width] * tap
        r = weights.bias + total.astype(f32) * (segment.scale * power_of_two(-x.exponent))
        return self.quantise(gelu(r) if gelu_after else r, out)

    # -- attention ----------------------------------------------------------------------------

    def layer_norm(self, layer: str, x: Act, out: str) -> Act:
        weights = self.layers[layer]
        q = x.q.astype(np.int64)
        channels = q.shape[-1]
        total = q.sum(-1, keepdims=True)
        deviation = channels * q - total
        variance = channels * (q * q).sum(-1, keepdims=True) - total * total
        epsilon = f32(1e-5 * channels**2) * power_of_two(2 * x.exponent)
        root = np.sqrt(variance.astype(f32) + epsilon)
        return self.quantise((deviation.astype(f32) / root) * weights.gain + weights.bias, out)

    def window_attention(self, layer: str, qkv: Act, out: str) -> Act:
        bias = self.layers[layer].bias  # [heads, 25, 25]
        heads = len(bias)
        batch, height, width, triple = qkv.q.shape
        dim = triple // 3
        depth = dim // heads
        c = f32(depth**-0.5) * power_of_two(-2 * qkv.exponent)
        reach = WINDOW // 2
        # [B, H, W/2, 25, 3, depth, heads]
        padded = np.pad(qkv.q, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
        tokens = _windows(padded, height, width)
        tokens = tokens.reshape(*tokens.shape[:4], 3, depth, heads).astype(np.int64)
        q, k, v = (np.moveaxis(tokens[..., i, :, :], -1, 3) for i in range(3))
        logits = (q @ np.swapaxes(k, -1, -2)).astype(f32) * c + bias

        rows, columns = np.mgrid[0:height, 0:width]
        anchors = ((rows + columns) % 2 == int(Parity.ANCHOR))[None, :, :, None]
        anchors = np.pad(anchors, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
        anchors = _windows(anchors, height, width)[..., 0]  # [1, H, W/2, 25]
        allowed = anchors[..., None, :] | ~anchors[..., :, None]
        allowed = np.broadcast_to(allowed[:, :, :, None], logits.shape)

        top = np.where(allowed, logits, f32(-np.inf)).max(-1, keepdims=True)
        p = np.where(allowed, exp_int(np.minimum(logits - top, f32(0))), 0).astype(np.int64)
        total = p.sum(-1, keepdims=True).astype(f32)
        r = ((p @ v).astype(f32) / total) * power_of_two(-qkv.exponent)
        r = np.moveaxis(r, 3, 4).reshape(batch, height, width // 2, WINDOW**2 * dim)
        return self.quantise(r, out)

    def linear_attention(self, q: Act, k: Act, v: Act, heads: int, out: str) -> Act:
        keys = _split_heads(k.q, heads)  # [B, heads, N, depth]
        top = keys.max(2, keepdims=True)
        pk = exp_int((keys - top).astype(f32) * power_of_two(-k.exponent)).astype(np.int64)
        total = pk.sum(2)[..., None].astype(f32)
        context = np.swapaxes(pk, 2, 3) @ _split_heads(v.q, heads)
        # Averages of v: how much smaller than v depends on the image, so each head of each image
        # has an exponent of its own, [B, heads, 1, 1].
        real = context.astype(f32) / total
        exponents = exponents_of(np.abs(real).max((2, 3), keepdims=True))
        ctx = np.rint(real * power_of_two(exponents)).astype(np.int64)
        queries = _split_heads(q.q, heads)
        top = queries.max(3, keepdims=True)
        pq = exp_int((queries - top).astype(f32) * power_of_two(-q.exponent)).astype(np.int64)
        weighted = (pq @ ctx).astype(f32)
        r = (weighted / pq.sum(3, keepdims=True).astype(f32)) * power_of_two(
            -exponents - v.exponent
        )
        return self.quantise(_merge_heads(r, q.q.shape), out)

    def softmax_attention(
        self, q: Act, k: Act, v: Act, heads: int, out: str, *, exclude: bool = False
    ) -> Act:
        depth = q.q.shape[-1] // heads
        c = f32(depth**-0.5) * power_of_two(-q.exponent - k.exponent)
        queries, keys, values = (_split_heads(x.q, heads) for x in (q, k, v))
        query_at, key_at = (
            _positions(q.q.shape, exclude, False),
            _positions(k.q.shape, exclude, True),
        )
        r = np.zeros(queries.shape, f32)
        for start in range(0, queries.shape[2], QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            logits = queries[:, :, block] @ np.swapaxes(keys, 2, 3)
            allowed = np.ones(logits.shape[2:], bool)
            if exclude:
                distance = np.abs(query_at[block, None] - key_at[None]).max(-1)
                allowed = distance > EXCLUDED_RADIUS
            lowest = np.iinfo(np.int64).min // 2
            top = np.where(allowed, logits, lowest).max(-1, keepdims=True)
            x = np.minimum(logits - top, 0).astype(f32) * c
            p = np.where(allowed, exp_int(x), 0).astype(np.int64)
            total = p.sum(-1, keepdims=True)
            real = ((p @ values).astype(f32) / np.maximum(total, 1).astype(f32)) * power_of_two(
                -v.exponent
            )
            r[:, :, block] = real
        return self.quantise(_merge_heads(r, q.q.shape), out)


def _windows(padded: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """The 25 tokens around every non-anchor: [B, H + 4, W + 4, C] -> [B, H, W/2, 25, C]."""
    taps = [
        squeeze(padded[:, dy : dy + height, dx : dx + width], Parity.NON_ANCHOR)
        for dy in range(WINDOW)
        for dx in range(WINDOW)
    ]
    return np.stack(taps, axis=3)


def _split_heads(q: Int16, heads: int) -> Int64:
    """[B, H, W, heads * depth] -> int64 [B, heads, H * W, depth]."""
    batch, height, width, channels = q.shape
    split = q.reshape(batch, height * width, heads, channels // heads)
    return split.transpose(0, 2, 1, 3).astype(np.int64)


def _merge_heads(r: Float, shape: tuple[int, ...]) -> Float:
    """Inverse of :func:`_split_heads`."""
    return np.ascontiguousarray(r.transpose(0, 2, 1, 3)).reshape(shape)


def _positions(shape: tuple[int, ...], squeezed: bool, anchors: bool) -> Int64:
    """Row and column of every position of a (squeezed) grid, [H * W, 2]."""
    _, height, width, _ = shape
    rows, columns = np.mgrid[0:height, 0:width]
    if squeezed:
        columns = 2 * columns + (rows + anchors) % 2
    return np.stack([rows.reshape(-1), columns.reshape(-1)], axis=-1)
