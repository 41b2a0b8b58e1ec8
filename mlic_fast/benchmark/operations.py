"""Counting multiplications (each with its addition) of every stage, without computing anything."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mlic_fast.engine.arithmetic import WINDOW, Act, Float, Int32, SpecOps
from mlic_fast.engine.packed import Layer, PackedModel, Segment
from mlic_fast.engine.path import code_latents
from mlic_fast.models.checkerboard import Parity
from mlic_fast.models.mlic import Transforms


def count_transforms(model: Transforms, width: int, height: int) -> dict[str, int]:
    """Of the image of a size, a multiple of 64: ``g_a + h_a`` and ``g_s``."""
    latents = (1, model.config.M, height // 16, width // 16)
    return {
        "g_a + h_a": _count(model.g_a, (1, 3, height, width)) + _count(model.h_a, latents),
        "g_s": _count(model.g_s, latents),
    }


def count_entropy_path(packed: PackedModel, width: int, height: int) -> int:
    """What the coding loop needs for an image of a size, a multiple of 64."""
    ops = _CountingOps(packed)
    z = np.broadcast_to(np.int32(0), (1, height // 64, width // 64, packed.config.N))
    code_latents(ops, z, _no_symbols)
    return ops.products


def _count(module: nn.Module, shape: tuple[int, ...]) -> int:
    module = copy.deepcopy(module).to("meta")
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2


def _no_symbols(
    index: int, parity: Parity, scale_indexes: Any, means: Float, symbols: None
) -> Int32:
    return np.zeros(means.shape, np.int32)


def count_products(
    layers: Mapping[str, Layer], name: str, arguments: Mapping[str, Any], shape: Sequence[int]
) -> int:
    """Products of one operation of :class:`SpecOps`: its arguments by name, its result's shape.

    Of an operation that is not of SpecOps, a fusion of several, those of all layers whose names
    begin with its ``layer``, at the positions of its result.
    """
    if name in _PRODUCTS:
        return _PRODUCTS[name](layers, arguments, shape)
    prefix = arguments.get("layer")
    if not isinstance(prefix, str) or name in vars(SpecOps):
        return 0
    weights = [
        s.weight.size for key in layers if key.startswith(prefix) for s in layers[key].segments
    ]
    return math.prod(shape[:-1]) * sum(weights)


def used_segments(layer: Layer, inputs: Sequence[Any], partial: Any) -> Sequence[Segment]:
    """Of a convolution: those of its inputs, which are the last ones beside a partial sum."""
    start = 0 if partial is None else len(layer.segments) - len(inputs)
    return layer.segments[start : start + len(inputs)]


def _conv(layers: Mapping[str, Layer], a: Mapping[str, Any], shape: Sequence[int]) -> int:
    used = used_segments(layers[a["layer"]], a["inputs"], a.get("partial"))
    return math.prod(shape[:-1]) * sum(segment.weight.size for segment in used)


def _depthwise(layers: Mapping[str, Layer], a: Mapping[str, Any], shape: Sequence[int]) -> int:
    return 9 * math.prod(shape)


def _window(layers: Mapping[str, Layer], a: Mapping[str, Any], shape: Sequence[int]) -> int:
    # Queries times keys, then weights times values: 25 tokens each.
    return 2 * WINDOW**2 * math.prod(shape)


def _linear(layers: Mapping[str, Layer], a: Mapping[str, Any], shape: Sequence[int]) -> int:
    depth = shape[-1] // a["heads"]
    return depth * math.prod(shape) + depth * math.prod(a["k"].q.shape)


def _softmax(layers: Mapping[str, Layer], a: Mapping[str, Any], shape: Sequence[int]) -> int:
    return 2 * math.prod(shape) * math.prod(a["k"].q.shape[1:3])


_PRODUCTS = {
    "conv": _conv,
    "depthwise": _depthwise,
    "window_attention": _window,
    "linear_attention": _linear,
    "softmax_attention": _softmax,
}


class _CountingOps(SpecOps):
    """The specification without its products, which are zero, and with their number."""

    def __init__(self, packed: PackedModel) -> None:
        super().__init__(packed)
        self.products = 0

    def _count(self, name: str, shape: Sequence[int], **arguments: Any) -> Act:
        self.products += count_products(self.layers, name, arguments, shape)
        return Act(np.zeros(shape, np.int16), 0)

    def conv(
        self,
        layer: str,
        inputs: Sequence[Act],
        *,
        partial: Float | None = None,
        at: Parity | None = None,
        activation: bool = False,
        residual: Float | Act | None = None,
        out: str | None = None,
    ) -> Any:
        if partial is not None:
            shape: tuple[int, ...] = partial.shape
        else:
            batch, height, width, _ = inputs[0].q.shape
            outputs = len(self.layers[layer].segments[0].weight)
            shape = (batch, height, width if at is None else width // 2, outputs)
        act = self._count("conv", shape, layer=layer, inputs=inputs, partial=partial)
        return np.zeros(shape, np.float32) if out is None else act

    def depthwise(self, layer: str, x: Act, *, activation: bool = False, out: str) -> Act:
        return self._count("depthwise", x.q.shape)

    def layer_norm(self, layer: str, x: Act, out: str) -> Act:
        return self._count("layer_norm", x.q.shape)

    def window_attention(self, layer: str, qkv: Act, out: str) -> Act:
        batch, height, width, triple = qkv.q.shape
        shape = (batch, height, width // 2, WINDOW**2 * triple // 3)
        return self._count("window_attention", shape)

    def linear_attention(self, q: Act, k: Act, v: Act, heads: int, out: str) -> Act:
        return self._count("linear_attention", q.q.shape, k=k, heads=heads)

    def softmax_attention(
        self, q: Act, k: Act, v: Act, heads: int, out: str, *, exclude: bool = False
    ) -> Act:
        return self._count("softmax_attention", q.q.shape, k=k)
