"""The CPU backend of the entropy path: the operations of the specification on C++ kernels.

Bit-equal to :class:`mlic_fast.engine.arithmetic.SpecOps`, whose interface it has, on every machine,
for every instruction set and any number of threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mlic_fast._C import exact
from mlic_fast.coder import SCALES
from mlic_fast.engine.arithmetic import (
    SQUARE_BITS,
    WINDOW,
    Act,
    Float,
    Int16,
    Int32,
    SpecOps,
    f32,
    power_of_two,
)
from mlic_fast.engine.bands import bands, in_bands
from mlic_fast.engine.operations import (
    Latents,
    inter_context_prefixes,
    residual_layer,
    residual_layers,
)
from mlic_fast.engine.packing.packed import Layer, Segment
from mlic_fast.engine.surroundings import thread_count
from mlic_fast.errors import EngineError
from mlic_fast.models.parity import Parity

if TYPE_CHECKING:
    from mlic_fast.engine.packing.packed import PackedLayers

#: Environment variable that overrides the instruction set.
ISA_VARIABLE = "MLIC_FAST_ISA"
ISA_NAMES = ("amx", "avx512", "avxvnni", "avx2", "neon", "scalar")

#: Where a convolution is computed, if not at one colour (its number): everywhere, or at even rows
#: and columns.
_ALL_POSITIONS = -1
_EVEN_POSITIONS = 2


def instruction_set(name: str | None = None) -> str:
    """The instruction set that the kernels use.

    Args:
        name: one of ISA_NAMES; default: that of MLIC_FAST_ISA, else the fastest of this machine.

    Raises:
        EngineError: unknown, or not supported by this machine.
    """
    supported = exact.instruction_sets()
    name = name or os.environ.get(ISA_VARIABLE) or supported[0]
    if name not in ISA_NAMES:
        raise EngineError(
            f"unknown instruction set {name!r}: set {ISA_VARIABLE} to one of "
            f"{', '.join(ISA_NAMES)}, or leave it unset."
        )
    if name not in supported:
        raise EngineError(
            f"this machine does not support {name}: set {ISA_VARIABLE} to one of "
            f"{', '.join(supported)}, or leave it unset."
        )
    return name


def _scale(exponent: int) -> float:
    """2^exponent. A tenth of the time of numpy's."""
    return math.ldexp(1.0, exponent)


class Later(NamedTuple):
    """A sum that is made when it is gone on with, together with what is added then if it can be: no
    other one takes memory until it is used.
    """

    inputs: list[Act]
    at: Parity | None


class OneColour(NamedTuple):
    """An activation at one colour, which is squeezed when it is used."""

    x: Act
    parity: Parity


def _rows(x: Any, at: slice) -> Any:
    """Of an activation, an array [B, H, ..], a sum that is made later, or nothing."""
    if isinstance(x, Act):
        return x.rows(at)
    if isinstance(x, Later):
        return Later([_rows(each, at) for each in x.inputs], x.at)
    return None if x is None else x[:, at]


class CpuOps(SpecOps):
    """The operations of the exact arithmetic on C++ kernels; a few layouts are inherited.

    Args:
        packed: the networks.
        isa: as in :func:`instruction_set`.
        threads: default: see :func:`mlic_fast.engine.surroundings.thread_count`.

    Raises:
        EngineError: see :func:`instruction_set`.
        ValueError: here, weights beyond what the arithmetic allows; in the operations, arrays whose
            shapes or dtypes do not fit.
    """

    def __init__(
        self, packed: PackedLayers, *, isa: str | None = None, threads: int | None = None
    ) -> None:
        super().__init__(packed)
        self.threads = threads or thread_count()
        self.isa = instruction_set(isa)
        self._kernels = exact.Kernels(self.isa, self.threads)
        #: Layers that give a part of what those of the model give.
        self._parts: dict[str, Layer] = {}
        self._weights: dict[str, list[Any]] = {}
        #: [3, 3, C] of the layers that can be depthwise.
        self._taps: dict[str, Int16] = {}
        for name, layer in packed.layers.items():
            self._prepare(name, layer)
        self._blocks: dict[str, Any] = {}

    def _prepare(self, name: str, layer: Layer) -> None:
        self._weights[name] = [
            exact.Weights(s.weight, self.isa, self.threads) for s in layer.segments
        ]
        if layer.segments and layer.segments[0].weight.shape[1:] == (3, 3, 1):
            weight = layer.segments[0].weight
            self._taps[name] = np.ascontiguousarray(weight[..., 0].transpose(1, 2, 0))

    # -- quantities ---------------------------------------------------------------------------

    def quantise(self, r: Float, out: str) -> Act:
        exponent = self.exponents[out]
        q = np.empty(r.shape, np.int16)
        self._kernels.quantise(r, out=q, out_scale=_scale(exponent))
        return Act(q, exponent)

    def scale_indexes(self, scales: Float) -> npt.NDArray[np.uint8]:
        indexes = np.empty(scales.shape, np.uint8)
        self._kernels.scale_indexes(scales, SCALES[:-1], out=indexes)
        return indexes

    def symbols(self, y: Float, means: Float, parity: Parity) -> Int32:
        symbols = np.empty(means.shape, np.int32)
        self._kernels.symbols(y, means, int(parity), out=symbols)
        return symbols

    def decoded(
        self, latents: Latents, index: int, symbols: Int32, means: Float, parity: Parity
    ) -> None:
        first = parity is Parity.ANCHOR
        batch, height, half, channels = means.shape
        y = np.empty((batch, height, 2 * half, channels), f32) if first else latents.y[index]
        self._kernels.decoded(symbols, means, int(parity), first, y)
        self._set(latents, index, y)

    def add_residual(self, y: Float, r: Float, parity: Parity) -> Float:
        self._kernels.add_half_tanh(r, int(parity), y)
        return y

    # -- layouts ------------------------------------------------------------------------------

    def keep(self, x: Act, parity: Parity) -> Act:
        return self._colour(x, parity, x.q.shape[2])

    def squeeze(self, x: Act, parity: Parity) -> Act:
        return self._colour(x, parity, x.q.shape[2] // 2)

    def unsqueeze(self, x: Act, parity: Parity) -> Act:
        return self._colour(x, parity, 2 * x.q.shape[2])

    def _colour(self, x: Act, parity: Parity, width: int) -> Act:
        batch, height, _, channels = x.q.shape
        q = np.empty((batch, height, width, channels), np.int16)
        self._kernels.colour(x.q, int(parity), out=q)
        return Act(q, x.exponent)

    # -- residual transforms ------------------------------------------------------------------

    def squares(self, r: Float, out: str) -> list[Act]:
        exponent = self._square_exponent(out)
        channels = r.shape[-1]
        q = np.empty((*r.shape[:3], 2 * channels), np.int16)
        self._kernels.squares(r, out=q, scale=_scale(exponent))
        return [
            Act(q[..., :channels], exponent - SQUARE_BITS),
            Act(q[..., channels:], exponent),
        ]

    def normalise(
        self, r: Float, norm: Float, skip: Float, *, inverse: bool = False, out: str
    ) -> Act:
        exponent = self.exponents[out]
        q = np.empty(r.shape, np.int16)
        self._kernels.normalise(r, norm, skip, inverse=inverse, out=q, out_scale=_scale(exponent))
        return Act(q, exponent)

    # -- block transforms ---------------------------------------------------------------------

    def to_blocks(self, images: npt.NDArray[np.uint8]) -> Act:
        batch, _, height, width = images.shape
        q = np.empty((batch, height // 8, width // 8, 192), np.int16)
        self._kernels.to_blocks(images, q)
        return Act(q, 0)

    def to_pixels(self, r: Float) -> npt.NDArray[np.uint8]:
        batch, height, width, _ = r.shape
        images = np.empty((batch, 3, 8 * height, 8 * width), np.uint8)
        self._kernels.to_pixels(r, images)
        return images

    def mixing_blocks(self, prefix: str, count: int, r: Float) -> Float:
        r = np.ascontiguousarray(r)
        blocks = [self._mixing_block(prefix, index) for index in range(count)]
        self._kernels.mixing_blocks(blocks, r)
        return r

    def _mixing_block(self, prefix: str, index: int) -> Any:
        name = f"{prefix}.{index}"
        if name not in self._blocks:
            picture = self.exponents[prefix]

            def pointwise(layer: str, before: int, after: int) -> Any:
                (segment,) = self.layers[f"{name}.{layer}"].segments
                return exact.Pointwise(
                    self._weights[f"{name}.{layer}"][0],
                    self.layers[f"{name}.{layer}"].bias,
                    segment.scale,
                    unit=_scale(-before),
                    out_scale=_scale(after),
                )

            inner = {
                layer: self.exponents[f"{name}.{layer}"]
                for layer in ("mix_in", "depthwise", "expand")
            }
            depthwise = self.layers[f"{name}.depthwise"]
            self._blocks[name] = exact.MixingBlock(
                pointwise("mix_in", picture, inner["mix_in"]),
                self._taps[f"{name}.depthwise"],
                depthwise.bias,
                depthwise.segments[0].scale,
                _scale(-inner["mix_in"]),
                _scale(inner["depthwise"]),
                pointwise("mix_out", inner["depthwise"], picture),
                pointwise("expand", picture, inner["expand"]),
                pointwise("contract", inner["expand"], 0),
                _scale(picture),
            )
        return self._blocks[name]

    # -- products -----------------------------------------------------------------------------

    def conv(
        self,
        layer: str,
        inputs: Sequence[Act],
        *,
        partial: Float | Later | None = None,
        first: int | None = None,
        at: Parity | None = None,
        activation: bool = False,
        residual: Float | Act | None = None,
        out: str | None = None,
    ) -> Any:
        if isinstance(partial, Later):
            if partial.at is at:
                inputs, partial, first = [*partial.inputs, *inputs], None, 0
            else:
                # One operation for who watches: not the method that is watched.
                partial = CpuOps.conv(self, layer, partial.inputs, at=partial.at)
                assert isinstance(partial, np.ndarray)
        used = self._layer(layer).used(inputs, partial, first)
        if partial is not None:
            shape = partial.shape[:3]
        elif inputs:
            batch, height, width, _ = inputs[0].q.shape
            shape = (batch, height, width if at is None else width // 2)
        else:
            raise ValueError("a convolution needs an input or a partial sum")
        return self._conv_at(
            _ALL_POSITIONS if at is None else int(at),
            shape,
            layer,
            inputs,
            used=used,
            partial=partial,
            activation=activation,
            residual=residual,
            out=out,
        )

    def strided_conv(
        self, layer: str, x: Act, *, activation: bool = False, out: str | None = None
    ) -> Any:
        batch, height, width, _ = x.q.shape
        shape = (batch, height // 2, width // 2)
        return self._conv_at(_EVEN_POSITIONS, shape, layer, [x], activation=activation, out=out)

    def _conv_at(
        self,
        positions: int,
        shape: tuple[int, ...],
        layer: str,
        inputs: Sequence[Act],
        *,
        used: slice = slice(None),
        partial: Float | None = None,
        activation: bool = False,
        residual: Float | Act | None = None,
        out: str | None = None,
    ) -> Any:
        """:meth:`conv` at some of the positions.

        Args:
            positions: a colour, or one of the constants above.
            shape: of the result without its channels, (B, H, W).
            used: the segments of the layer that multiply ``inputs``.
        """
        weights = self._layer(layer)
        exponent = 0 if out is None else self.exponents[out]
        r = np.empty((*shape, len(weights.bias)), np.float32 if out is None else np.int16)
        added = residual.q if isinstance(residual, Act) else residual
        self._kernels.conv(
            [x.q for x in inputs],
            self._weights[layer][used],
            [segment.scale for segment in weights.segments[used]],
            [_scale(-x.exponent) for x in inputs],
            at=positions,
            bias=weights.bias if partial is None else None,
            partial=partial,
            gelu=activation,
            residual=added,
            residual_scale=_scale(-residual.exponent) if isinstance(residual, Act) else 0.0,
            out=r,
            out_scale=_scale(exponent),
        )
        return r if out is None else Act(r, exponent)

    def sums(
        self,
        layers: Sequence[str],
        inputs: Sequence[Act],
        *,
        partials: Sequence[Later] | None = None,
        first: int = 0,
        at: Parity | None = None,
    ) -> list[Later]:
        before = partials or [Later([], at)] * len(layers)
        return [Later([*partial.inputs, *inputs], at) for partial in before]

    def inter_attention(self, i: int, last: Act, starts: Sequence[Any] | None) -> Act:
        batch, height, width, _ = last.q.shape
        channels = self.config.slice_channels
        linear = self.config.variant == "mlic_plus_plus" and channels % 32 == 0
        if len(bands(height, width, 0)) == 1 or not linear:
            return super().inter_attention(i, last, starts)
        out = f"global_inter_context.{i}.attention"
        r = np.empty((batch, height, width, i * channels), np.int16)
        for first in range(0, i * channels, channels):  # heads know nothing of each other
            part = slice(first, first + channels)
            q, k, v = (
                self._project_part(prefix, part, last, start)
                for prefix, start in zip(
                    inter_context_prefixes(i), starts or 3 * [None], strict=True
                )
            )
            r[..., part] = self.linear_attention(q, k, v, channels // 32, out).q
        return Act(r, self.exponents[out])

    def _project_part(self, prefix: str, part: slice, x: Act, partial: Later | None) -> Act:
        """A part of the channels of :meth:`project`."""
        names = [f"{prefix}.{index}" for index in (0, 1)]
        pointwise, depthwise = (self._part(name, part) for name in names)
        x = self.conv(pointwise, [x], partial=partial, out=names[0])
        return self.depthwise(depthwise, x, out=names[1])

    def _layer(self, name: str) -> Layer:
        """A layer of the model, or one that :meth:`_part` has made."""
        return self._parts.get(name) or self.layers[name]

    def _part(self, whole: str, part: slice) -> str:
        """The layer that gives a part of the channels of another one."""
        name = f"{whole}[{part.start}:{part.stop}]"
        if name not in self._parts:
            layer = self.layers[whole]
            segments = tuple(
                Segment(np.ascontiguousarray(s.weight[part]), s.scale[part].copy())
                for s in layer.segments
            )
            narrowed = Layer(layer.bias[part].copy(), segments)
            self._prepare(name, narrowed)
            self._parts[name] = narrowed  # last: other threads may look for it
        return name

    # -- networks in bands, for large pictures ------------------------------------------------

    def local_context(self, i: int, anchors: Act) -> Act:
        network = super().local_context
        if self.config.variant == "mlic":  # it takes little memory
            return network(i, anchors)
        out = f"local_context.{i}.mlp.fc2"
        return self.in_bands(anchors, WINDOW // 2, lambda at: network(i, _rows(anchors, at)), out)

    def channel_context(self, i: int, last: Act, start: Any = None) -> Act:
        network = super().channel_context
        layers = [f"channel_context.{i}.fushion.{index}" for index in (0, 2, 4)]
        return self.in_bands(
            last,
            self._halo(layers),
            lambda at: network(i, _rows(last, at), _rows(start, at)),
            layers[-1],
        )

    def _inter_projection(self, i: int, x: Act) -> Act:
        return self._projection(super()._inter_projection, f"global_inter_context.{i}", i, x)

    def _intra_projection(self, i: int, x: Act) -> Act:
        return self._projection(super()._intra_projection, f"global_intra_context.{i}", i, x)

    def _projection(self, network: Callable[[int, Act], Act], prefix: str, i: int, x: Act) -> Act:
        layers = [f"{prefix}.{name}" for name in ("reprojection", "mlp.0", "mlp.2", "mlp.4")]
        return self.in_bands(x, self._halo(layers), lambda at: network(i, _rows(x, at)), layers[-1])

    def predict_residual(self, latents: Latents, i: int, parity: Parity, start: Any) -> None:
        q = latents.q[i]
        layers = [
            residual_layer(i, parity, index) for index in residual_layers(self.config.weight_family)
        ]

        def network(at: slice) -> tuple[Float]:
            x = self._residual_hidden(i, parity, _rows(q, at), _rows(start, at))
            return (self.conv(layers[-1], [x], at=parity),)

        _, height, width, _ = q.q.shape
        (r,) = in_bands(bands(height, width, self._halo(layers)), network)
        self._set(latents, i, self.add_residual(latents.y[i], r, parity))

    def entropy_parameters(
        self, i: int, parity: Parity, start: Any, contexts: Sequence[Any], y: Float | None
    ) -> tuple[Any, Float, Any]:
        whole = super().entropy_parameters

        def network(at: slice) -> tuple[Any, ...]:
            inputs = [self._context_rows(x, at) for x in contexts]
            found = whole(i, parity, _rows(start, at), inputs, None if y is None else y[:, at])
            return found if y is not None else found[:2]

        first = start if isinstance(start, np.ndarray) else start.inputs[0].q
        _, height, width, _ = first.shape
        indexes, means, *symbols = in_bands(bands(height, width, 0), network)
        return indexes, means, symbols[0] if symbols else None

    def context_at(self, context: Act, parity: Parity) -> OneColour:
        return OneColour(context, parity)

    def _context_rows(self, context: Act | OneColour, at: slice) -> Act:
        if isinstance(context, OneColour):
            return self.squeeze(context.x.rows(at), context.parity)
        return context.rows(at)

    def in_bands(self, x: Act, halo: int, network: Callable[[slice], Act], out: str) -> Act:
        _, height, width, _ = x.q.shape
        (q,) = in_bands(bands(height, width, halo), lambda at: (network(at).q,))
        return Act(q, self.exponents[out])

    def _halo(self, layers: Sequence[str]) -> int:
        """Rows that layers, one after the other, see on each side."""
        return sum(self.layers[layer].segments[0].weight.shape[1] // 2 for layer in layers)

    def depthwise(self, layer: str, x: Act, *, activation: bool = False, out: str) -> Act:
        weights = self._layer(layer)
        exponent = self.exponents[out]
        q = np.empty(x.q.shape, np.int16)
        self._kernels.depthwise(
            x.q,
            self._taps[layer],
            weights.segments[0].scale,
            _scale(-x.exponent),
            weights.bias,
            gelu=activation,
            out=q,
            out_scale=_scale(exponent),
        )
        return Act(q, exponent)

    # -- attention ----------------------------------------------------------------------------

    def layer_norm(self, layer: str, x: Act, out: str) -> Act:
        weights = self.layers[layer]
        exponent = self.exponents[out]
        q = np.empty(x.q.shape, np.int16)
        epsilon = f32(1e-5 * x.q.shape[-1] ** 2) * power_of_two(2 * x.exponent)
        self._kernels.layer_norm(
            x.q,
            weights.gain,
            weights.bias,
            epsilon=epsilon,
            out=q,
            out_scale=_scale(exponent),
        )
        return Act(q, exponent)

    def window_attention(self, layer: str, qkv: Act, out: str) -> Act:
        bias = self.layers[layer].bias
        batch, height, width, triple = qkv.q.shape
        depth = triple // 3 // len(bias)
        exponent = self.exponents[out]
        q = np.empty((batch, height, width // 2, WINDOW**2 * (triple // 3)), np.int16)
        self._kernels.window_attention(
            qkv.q,
            bias,
            logit_scale=f32(depth**-0.5) * power_of_two(-2 * qkv.exponent),
            value_scale=_scale(-qkv.exponent),
            out=q,
            out_scale=_scale(exponent),
        )
        return Act(q, exponent)

    def linear_attention(self, q: Act, k: Act, v: Act, heads: int, out: str) -> Act:
        exponent = self.exponents[out]
        r: Int16 = np.empty(q.q.shape, np.int16)
        self._kernels.linear_attention(
            q.q,
            k.q,
            v.q,
            heads=heads,
            query_scale=_scale(-q.exponent),
            key_scale=_scale(-k.exponent),
            value_exponent=v.exponent,
            out=r,
            out_scale=_scale(exponent),
        )
        return Act(r, exponent)

    def softmax_attention(
        self, q: Act, k: Act, v: Act, heads: int, out: str, *, exclude: bool = False
    ) -> Act:
        depth = q.q.shape[-1] // heads
        exponent = self.exponents[out]
        r: Int16 = np.empty(q.q.shape, np.int16)
        self._kernels.softmax_attention(
            q.q,
            k.q,
            v.q,
            heads=heads,
            exclude=exclude,
            logit_scale=f32(depth**-0.5) * power_of_two(-q.exponent - k.exponent),
            value_scale=_scale(-v.exponent),
            out=r,
            out_scale=_scale(exponent),
        )
        return Act(r, exponent)
