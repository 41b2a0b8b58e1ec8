"""Operations of the exact arithmetic on C++ kernels: arrays in, arrays out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mlic_fast._C import exact
from mlic_fast.coder import SCALES
from mlic_fast.engine.arithmetic import (
    WINDOW,
    Act,
    Float,
    Int16,
    Int32,
    SpecOps,
    f32,
    power_of_two,
)
from mlic_fast.engine.cpu.instruction_sets import instruction_set
from mlic_fast.engine.cpu.recording import room, step
from mlic_fast.engine.operations import SUBPIXEL_LAYERS, Latents
from mlic_fast.engine.packing.packed import Layer, Segment
from mlic_fast.engine.surroundings import thread_count
from mlic_fast.models.parity import Parity

if TYPE_CHECKING:
    from mlic_fast.engine.packing.packed import PackedLayers

#: Where a convolution is computed, if not at one colour (its number): everywhere, or at even rows
#: and columns.
_ALL_POSITIONS = -1
_EVEN_POSITIONS = 2


def _scale(exponent: int) -> float:
    """2^exponent, in a tenth of the time that numpy takes."""
    return math.ldexp(1.0, exponent)


class Later(NamedTuple):
    """A partial sum that is not computed yet: the inputs that it is over.

    When another input is added, all products are summed at once if they are at the same positions.
    Until then the sum takes no memory.
    """

    inputs: list[Act]
    at: Parity | None


class KernelOps(SpecOps):
    """The operations on C++ kernels; for arguments and errors see :class:`CpuOps`."""

    def __init__(
        self, packed: PackedLayers, *, isa: str | None = None, threads: int | None = None
    ) -> None:
        super().__init__(packed)
        self.threads = threads or thread_count()
        self.isa = instruction_set(isa)
        self._kernels = exact.Kernels(self.isa, self.threads)
        #: Layers that give some of the output channels of a layer of the model, or all in another
        #: order.
        self._parts: dict[str, Layer] = {}
        self._weights: dict[str, list[Any]] = {}
        #: [3, 3, C] of the layers that can be depthwise.
        self._taps: dict[str, Int16] = {}
        for name, layer in packed.layers.items():
            if name not in SUBPIXEL_LAYERS:  # which are used in another order, if not alone
                self._prepare(name, layer)
        self._blocks: dict[str, Any] = {}

    def _prepare(self, name: str, layer: Layer) -> None:
        weights = [exact.Weights(s.weight, self.isa, self.threads) for s in layer.segments]
        self._weights.setdefault(name, weights)
        if layer.segments and layer.segments[0].weight.shape[1:] == (3, 3, 1):
            weight = layer.segments[0].weight
            taps = np.ascontiguousarray(weight[..., 0].transpose(1, 2, 0))
            self._taps.setdefault(name, taps)

    def _packed(self, name: str) -> list[Any]:
        """The weights of a layer for each of its inputs, as kernels take them."""
        if name not in self._weights:
            self._prepare(name, self._layer(name))
        return self._weights[name]

    def _room(self, shape: tuple[int, ...], out: str) -> tuple[Act, dict[str, Any]]:
        """An activation to be written, and the arguments that tell kernels so."""
        exponent = self.exponents[out]
        q = room(shape, np.int16)
        return Act(q, exponent), {"out": q, "out_scale": _scale(exponent)}

    def room(self, shape: Sequence[int], dtype: Any) -> npt.NDArray[Any]:
        return room(shape, dtype)

    def step(self, do: Callable[[], None]) -> None:
        step(do)

    # -- quantities ---------------------------------------------------------------------------

    def quantise(self, r: Float, out: str) -> Act:
        result, into = self._room(r.shape, out)
        self._kernels.quantise(r, **into)
        return result

    def hyper_latents(self, symbols: Int32) -> Act:
        bias = self.layers["medians"].bias
        r = room(symbols.shape, f32)

        def add() -> None:
            np.add(symbols.astype(f32), bias, out=r)

        step(add)
        return self.quantise(r, "z_hat")

    def scale_indexes(self, scales: Float) -> npt.NDArray[np.uint8]:
        indexes = room(scales.shape, np.uint8)
        self._kernels.scale_indexes(scales, SCALES[:-1], out=indexes)
        return indexes

    def digest(self, y: Float, first: int = 0) -> int:
        return int(self._kernels.digest(y, first))

    def symbols(self, y: Float, means: Float, parity: Parity) -> Int32:
        symbols = room(means.shape, np.int32)
        self._kernels.symbols(y, means, int(parity), out=symbols)
        return symbols

    def decoded(
        self, latents: Latents, index: int, symbols: Int32, means: Float, parity: Parity
    ) -> None:
        first = parity is Parity.ANCHOR
        batch, height, half, channels = means.shape
        y = room((batch, height, 2 * half, channels), f32) if first else latents.y[index]
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
        q = room((batch, height, width, channels), np.int16)
        self._kernels.colour(x.q, int(parity), out=q)
        return Act(q, x.exponent)

    def subpixel_conv(self, layer: str, x: Act, out: str) -> Act:
        fours = f"{layer}[fours]"  # channel 4c + s of it is s C + c, as depth_to_space takes them
        if fours not in self._parts:
            order = np.arange(len(self.layers[layer].bias)).reshape(-1, 4).T.ravel()
            self._make_part(fours, layer, order)
        deep = self.conv(fours, [x], gelu_after=True, out=out)
        return Act(self.depth_to_space(deep.q), deep.exponent)

    # -- residual transforms ------------------------------------------------------------------

    def to_positions(self, images: npt.NDArray[np.uint8]) -> Act:
        batch, colours, height, width = images.shape
        q = room((batch, height, width, colours), np.int16)
        self._kernels.to_blocks(images, q)
        return Act(q, 0)

    def from_positions(self, r: Float) -> npt.NDArray[np.uint8]:
        batch, height, width, colours = r.shape
        images = room((batch, colours, height, width), np.uint8)
        self._kernels.to_pixels(r, images)
        return images

    def gdn(
        self,
        layer: str,
        r: Float,
        skip: Float,
        *,
        inverse: bool = False,
        out: str,
        into: Int16 | None = None,
    ) -> Act:
        weights = self.layers[layer]
        q = room(r.shape, np.int16) if into is None else into
        exponent = self.exponents[out]
        self._kernels.gdn(
            r,
            self._weights[layer][0],
            weights.segments[0].scale,
            weights.bias,
            skip,
            square_scale=_scale(self._square_exponent(layer)),
            inverse=inverse,
            out=q,
            out_scale=_scale(exponent),
        )
        return Act(q, exponent)

    # -- block transforms ---------------------------------------------------------------------

    def scale(self, r: Float, factors: Float) -> Float:
        scaled = room(r.shape, f32)
        self._kernels.scale(r, factors, scaled)
        return scaled

    def to_blocks(self, images: npt.NDArray[np.uint8]) -> Act:
        batch, _, height, width = images.shape
        q = room((batch, height // 8, width // 8, 192), np.int16)
        self._kernels.to_blocks(images, q)
        return Act(q, 0)

    def to_pixels(self, r: Float) -> npt.NDArray[np.uint8]:
        batch, height, width, _ = r.shape
        images = room((batch, 3, 8 * height, 8 * width), np.uint8)
        self._kernels.to_pixels(r, images)
        return images

    def space_to_depth(self, x: Act) -> Act:
        batch, height, width, channels = x.q.shape
        q = room((batch, height // 2, width // 2, 4 * channels), x.q.dtype)
        self._kernels.rearrange_fours(x.q, spread=False, out=q)
        return Act(q, x.exponent)

    def depth_to_space(self, r: Float) -> Float:
        batch, height, width, channels = r.shape
        spread = room((batch, 2 * height, 2 * width, channels // 4), r.dtype)
        self._kernels.rearrange_fours(r, spread=True, out=spread)
        return spread

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
            block = exact.MixingBlock(
                mix_in=pointwise("mix_in", picture, inner["mix_in"]),
                taps=self._taps[f"{name}.depthwise"],
                bias=depthwise.bias,
                scales=depthwise.segments[0].scale,
                unit=_scale(-inner["mix_in"]),
                out_scale=_scale(inner["depthwise"]),
                mix_out=pointwise("mix_out", inner["depthwise"], picture),
                expand=pointwise("expand", picture, inner["expand"]),
                contract=pointwise("contract", inner["expand"], 0),
                in_scale=_scale(picture),
            )
            self._blocks.setdefault(name, block)  # recordings know the address of the first
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
        gelu_after: bool = False,
        residual: Float | Act | None = None,
        out: str | None = None,
    ) -> Any:
        if isinstance(partial, Later):
            if partial.at is at:
                inputs, partial, first = [*partial.inputs, *inputs], None, 0
            else:
                # A profiler that wraps self.conv is to see one operation, not two.
                partial = KernelOps.conv(self, layer, partial.inputs, at=partial.at)
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
            gelu_after=gelu_after,
            residual=residual,
            out=out,
        )

    def strided_conv(
        self, layer: str, x: Act, *, gelu_after: bool = False, out: str | None = None
    ) -> Any:
        batch, height, width, _ = x.q.shape
        shape = (batch, height // 2, width // 2)
        return self._conv_at(_EVEN_POSITIONS, shape, layer, [x], gelu_after=gelu_after, out=out)

    def _conv_at(
        self,
        positions: int,
        shape: tuple[int, ...],
        layer: str,
        inputs: Sequence[Act],
        *,
        used: slice = slice(None),
        partial: Float | None = None,
        gelu_after: bool = False,
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
        r = room((*shape, len(weights.bias)), np.float32 if out is None else np.int16)
        added = residual.q if isinstance(residual, Act) else residual
        self._kernels.conv(
            [x.q for x in inputs],
            self._packed(layer)[used],
            [segment.scale for segment in weights.segments[used]],
            [_scale(-x.exponent) for x in inputs],
            at=positions,
            bias=weights.bias if partial is None else None,
            partial=partial,
            gelu=gelu_after,
            residual=added,
            residual_scale=_scale(-residual.exponent) if isinstance(residual, Act) else 0.0,
            out=r,
            out_scale=_scale(exponent),
        )
        return r if out is None else Act(r, exponent)

    def _layer(self, name: str) -> Layer:
        """A layer of the model, or one that :meth:`_part` has made."""
        return self._parts.get(name) or self.layers[name]

    def _part(self, whole: str, part: slice) -> str:
        """The layer that gives a part of the channels of another one."""
        name = f"{whole}[{part.start}:{part.stop}]"
        if name not in self._parts:
            self._make_part(name, whole, part)
        return name

    def _make_part(self, name: str, whole: str, channels: slice | npt.NDArray[Any]) -> None:
        """Makes the layer that gives some of the channels of another one, unless another thread has
        made it meanwhile: recordings know the addresses of what was first.
        """
        layer = self.layers[whole]
        segments = tuple(
            Segment(np.ascontiguousarray(s.weight[channels]), s.scale[channels].copy())
            for s in layer.segments
        )
        bias = layer.bias[channels].copy()
        self._prepare(name, Layer(bias, segments))
        # Of the weights, which are packed now, shapes are left.
        shapes = (np.broadcast_to(np.int16(0), s.weight.shape) for s in segments)
        left = tuple(Segment(w, s.scale) for w, s in zip(shapes, segments, strict=True))
        self._parts.setdefault(name, Layer(bias, left))  # last: other threads look for it

    def depthwise(self, layer: str, x: Act, *, gelu_after: bool = False, out: str) -> Act:
        weights = self._layer(layer)
        result, into = self._room(x.q.shape, out)
        self._kernels.depthwise(
            x.q,
            self._taps[layer],
            weights.segments[0].scale,
            _scale(-x.exponent),
            weights.bias,
            gelu=gelu_after,
            **into,
        )
        return result

    # -- attention ----------------------------------------------------------------------------

    def layer_norm(self, layer: str, x: Act, out: str) -> Act:
        weights = self.layers[layer]
        result, into = self._room(x.q.shape, out)
        epsilon = f32(1e-5 * x.q.shape[-1] ** 2) * power_of_two(2 * x.exponent)
        self._kernels.layer_norm(
            x.q,
            weights.gain,
            weights.bias,
            epsilon=epsilon,
            **into,
        )
        return result

    def window_attention(self, layer: str, qkv: Act, out: str) -> Act:
        bias = self.layers[layer].bias
        batch, height, width, triple = qkv.q.shape
        depth = triple // 3 // len(bias)
        result, into = self._room((batch, height, width // 2, WINDOW**2 * (triple // 3)), out)
        self._kernels.window_attention(
            qkv.q,
            bias,
            logit_scale=f32(depth**-0.5) * power_of_two(-2 * qkv.exponent),
            value_scale=_scale(-qkv.exponent),
            **into,
        )
        return result

    def linear_attention(self, q: Act, k: Act, v: Act, heads: int, out: str) -> Act:
        result, into = self._room(q.q.shape, out)
        self._kernels.linear_attention(
            q.q,
            k.q,
            v.q,
            heads=heads,
            query_scale=_scale(-q.exponent),
            key_scale=_scale(-k.exponent),
            value_exponent=v.exponent,
            **into,
        )
        return result

    def softmax_attention(
        self, q: Act, k: Act, v: Act, heads: int, out: str, *, exclude: bool = False
    ) -> Act:
        depth = q.q.shape[-1] // heads
        result, into = self._room(q.q.shape, out)
        self._kernels.softmax_attention(
            q.q,
            k.q,
            v.q,
            heads=heads,
            exclude=exclude,
            logit_scale=f32(depth**-0.5) * power_of_two(-q.exponent - k.exponent),
            value_scale=_scale(-v.exponent),
            **into,
        )
        return result
