"""Counting multiplications (each with its addition) of every stage, without computing anything."""

from __future__ import annotations

import copy
import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mlic_fast.engine.arithmetic import WINDOW, Float, Int32, SpecOps
from mlic_fast.engine.cpu.cpu_kernels import Later
from mlic_fast.engine.cpu.cpu_operations import OneColour
from mlic_fast.engine.exact_transforms import ExactTransforms, hyper_analysis
from mlic_fast.engine.operations import Act, Latents, entropy_parameters_layer
from mlic_fast.engine.packing.packed import (
    Layer,
    PackedLayers,
    PackedModel,
    PackedTransforms,
    Segment,
)
from mlic_fast.engine.path import code_latents
from mlic_fast.models.checkerboard import Parity
from mlic_fast.models.mlic import Transforms
from mlic_fast.models.networks import METHODS


def count_transforms(model: Transforms, width: int, height: int) -> dict[str, int]:
    """Products of ``g_a + h_a`` and of ``g_s`` for an image of a size, a multiple of 64."""
    latents = (1, model.config.M, height // 16, width // 16)
    return {
        "g_a + h_a": _count(model.g_a, (1, 3, height, width)) + _count(model.h_a, latents),
        "g_s": _count(model.g_s, latents),
    }


def count_entropy_path(packed: PackedModel, width: int, height: int) -> int:
    """Products of the coding loop for an image of a size, a multiple of 64."""
    ops = _CountingOps(packed)
    z = np.broadcast_to(np.int32(0), (1, height // 64, width // 64, packed.config.N))
    code_latents(ops, z, _no_symbols)
    return ops.products


def count_exact_transforms(packed: PackedTransforms, width: int, height: int) -> dict[str, int]:
    """As :func:`count_transforms`, for transforms in exact arithmetic."""
    ops = _CountingOps(packed)
    networks = ExactTransforms(packed, ops).networks
    y = networks.analysis(ops, np.broadcast_to(np.uint8(0), (1, 3, height, width)))
    hyper_analysis(ops, y)
    encoding = ops.products
    networks.synthesis(ops, y)
    return {"g_a + h_a": encoding, "g_s": ops.products - encoding}


def _count(module: nn.Module, shape: tuple[int, ...]) -> int:
    module = copy.deepcopy(module).to("meta")
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2


def _no_symbols(
    index: int, parity: Parity, scale_indexes: Any, means: Float, symbols: None
) -> Int32:
    return np.zeros(means.shape, np.int32)


class Counter:
    """Counts the products of single operations and networks of a backend, from shapes alone.

    ``parts``: layers that the backend makes of those of the file, as it goes.
    """

    def __init__(self, packed: PackedLayers, parts: Mapping[str, Layer]) -> None:
        self._ops = _CountingOps(packed)
        self.layers = ChainMap(dict(packed.layers), parts)  # type: ignore[arg-type]

    def count(self, name: str, arguments: Mapping[str, Any], result: Any) -> int:
        """Products of a method of :class:`Operations`; 0 for one that multiplies nothing.

        ``arguments`` are by name. Arrays may be of any backend: only their shapes matter.
        """
        later = name == "sums" and any(isinstance(each, Later) for each in result)
        if name not in _MULTIPLYING or later:
            return 0
        if name == "conv":
            # By its result: what a backend squeezes stands for the full grid in a convolution.
            used = used_segments(self.layers[arguments["layer"]], arguments)
            out = _shape_only(result.q if isinstance(result, Act) else result)
            return math.prod(out.shape[:3]) * sum(segment.weight.size for segment in used)
        if name in ("carried", "pixels"):  # 1x1 convolutions
            (segment,) = self._ops.layers[arguments["layer"]].segments
            x = _shape_only(arguments["x"])
            return math.prod(x.q.shape[:3]) * segment.weight.size
        before = self._ops.products
        shapes = {key: _shape_only(value) for key, value in arguments.items()}
        if name == "entropy_parameters":
            self._ops.products -= self._made_ahead(**shapes)
        getattr(self._ops, name)(**shapes)
        return self._ops.products - before

    def _made_ahead(self, i: int, parity: Parity, contexts: Sequence[Any], **others: Any) -> int:
        """What entropy_parameters would multiply for contexts whose sums a backend has made."""
        segments = self.layers[entropy_parameters_layer(i, parity, 0)].segments
        own = segments[len(segments) - len(contexts) :]
        return sum(
            math.prod(context.shape[:3]) * segment.weight.size
            for segment, context in zip(own, contexts, strict=True)
            if not isinstance(context, Act)
        )


_MULTIPLYING = {
    *("conv", "strided_conv", "subpixel_conv", "depthwise", "gdn", "add_prediction"),
    *("window_attention", "linear_attention", "softmax_attention"),
    *("sums", "project", "mixing_blocks", "carried", "pixels"),
    *METHODS,
}


def _shape_only(value: Any) -> Any:
    if isinstance(value, Act):
        return Act(_shape_only(value.q), value.exponent)
    if isinstance(value, Latents):
        copied = Latents(len(value.q))
        copied.y, copied.q = _shape_only(value.y), _shape_only(value.q)
        return copied
    if isinstance(value, Later):
        return Later(_shape_only(value.inputs), value.at)
    if isinstance(value, OneColour):
        batch, height, width, channels = value.x.q.shape
        half = np.broadcast_to(np.int16(0), (batch, height, width // 2, channels))
        return Act(half, value.x.exponent)
    if isinstance(value, (list, tuple)):
        return [_shape_only(item) for item in value]
    if isinstance(value, np.ndarray):
        return np.broadcast_to(np.int16(0), value.shape)
    if isinstance(value, torch.Tensor):
        return np.broadcast_to(np.int16(0), value.shape)
    if hasattr(value, "planes"):
        return np.broadcast_to(np.int16(0), read_planes(value).shape[1:])
    return value


def read_planes(x: Any) -> torch.Tensor:
    """The part of an activation that a kernel of the GPU reads: planes int8 [2, B, H, W, C]."""
    from mlic_fast.kernels.layouts import ONE_COLOUR

    planes: torch.Tensor = x.planes
    return planes[:, :, :, ::2] if x.kind == ONE_COLOUR else planes  # as many as of one colour


def used_segments(layer: Layer, arguments: Mapping[str, Any]) -> Sequence[Segment]:
    """The segments of a layer that a call of conv multiplies."""
    inputs, partial, first = (arguments.get(key) for key in ("inputs", "partial", "first"))
    if isinstance(partial, Later):  # it is made now
        return layer.segments[: len(partial.inputs) + len(inputs or ())]
    return layer.segments[layer.used(inputs or (), partial, first)]


class _CountingOps(SpecOps):
    """The specification without its products, which are zero, and with their number."""

    def __init__(self, packed: PackedLayers) -> None:
        super().__init__(packed)
        self.products = 0

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
        if isinstance(partial, Later):  # it is made now
            at = partial.at if partial.inputs else at
            inputs, partial, first = [*partial.inputs, *inputs], None, 0
        weights = self.layers[layer]
        segments = weights.segments[weights.used(inputs, partial, first)]
        if partial is not None:
            shape: tuple[int, ...] = (*partial.shape[:3], len(weights.bias))
        else:
            batch, height, width, _ = inputs[0].q.shape
            outputs = len(segments[0].weight)
            shape = (batch, height, width if at is None else width // 2, outputs)
        self.products += math.prod(shape[:3]) * sum(segment.weight.size for segment in segments)
        return np.zeros(shape, np.float32) if out is None else _zeros(shape)

    def strided_conv(
        self, layer: str, x: Act, *, gelu_after: bool = False, out: str | None = None
    ) -> Any:
        every_second = Act(x.q[:, ::2, ::2], x.exponent)
        return self.conv(layer, [every_second], gelu_after=gelu_after, out=out)

    def squares(self, r: Float, out: str) -> list[Act]:
        return [_zeros(r.shape), _zeros(r.shape)]

    def normalise(
        self, r: Float, norm: Float, skip: Float, *, inverse: bool = False, out: str
    ) -> Act:
        return _zeros(r.shape)

    def depthwise(self, layer: str, x: Act, *, gelu_after: bool = False, out: str) -> Act:
        self.products += 9 * x.q.size
        return _zeros(x.q.shape)

    def layer_norm(self, layer: str, x: Act, out: str) -> Act:
        return _zeros(x.q.shape)

    def window_attention(self, layer: str, qkv: Act, out: str) -> Act:
        batch, height, width, triple = qkv.q.shape
        shape = (batch, height, width // 2, WINDOW**2 * triple // 3)
        # Queries times keys, then weights times values: 25 tokens each.
        self.products += 2 * WINDOW**2 * math.prod(shape)
        return _zeros(shape)

    def linear_attention(self, q: Act, k: Act, v: Act, heads: int, out: str) -> Act:
        depth = q.q.shape[-1] // heads
        self.products += depth * (k.q.size + q.q.size)
        return _zeros(q.q.shape)

    def softmax_attention(
        self, q: Act, k: Act, v: Act, heads: int, out: str, *, exclude: bool = False
    ) -> Act:
        self.products += 2 * q.q.size * k.q.shape[1] * k.q.shape[2]
        return _zeros(q.q.shape)


def _zeros(shape: tuple[int, ...]) -> Act:
    return Act(np.zeros(shape, np.int16), 0)
