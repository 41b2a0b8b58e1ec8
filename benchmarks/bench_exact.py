"""The kernels of the CPU engine, each on the shapes of the full-size MLIC++ at 768x512.

Latents are 32x48. ``products`` in the results are of a weight and an activation; the yardstick is
the instruction that multiplies them, in a loop that touches registers alone, so that products over
time in units of it are the share of the peak.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from conftest import CPU_SUITE

from mlic_fast._C import exact

pytestmark = CPU_SUITE

ISA = exact.instruction_sets()[0]
KERNELS = exact.Kernels(ISA, 1)


@dataclass(frozen=True)
class Shape:
    name: str
    kernel: int
    inputs: tuple[int, ...]  # channels of each
    outputs: int
    height: int = 32
    width: int = 48
    half: bool = False

    @property
    def macs(self) -> int:
        positions = self.height * self.width // (2 if self.half else 1)
        return positions * self.kernel**2 * sum(self.inputs) * self.outputs


SLICE = (32,)
SHAPES = (
    Shape("h_s 3x3 192 -> 1280 at 16x24", 3, (192,), 1280, 16, 24),
    Shape("h_s 3x3 320 -> 640", 3, (320,), 640),
    Shape("channel context 3x3 288 -> 192", 3, 9 * SLICE, 192),
    Shape("channel context 3x3 192 -> 128", 3, (192,), 128),
    Shape("channel context 3x3 128 -> 128", 3, (128,), 128),
    Shape("entropy parameters 1x1 640 -> 320, half", 1, (640,), 320, half=True),
    Shape("entropy parameters 1x1 320 -> 320, half", 1, (64, 128, 64, 64), 320, half=True),
    Shape("entropy parameters 1x1 320 -> 256, half", 1, (320,), 256, 32, 24),
    Shape("entropy parameters 1x1 128 -> 64, half", 1, (128,), 64, 32, 24),
    Shape("LRP 3x3 640 -> 224", 3, (320, *(9 * SLICE), 32), 224),
    Shape("LRP 3x3 32 -> 224", 3, (32,), 224),
    Shape("LRP 3x3 224 -> 128", 3, (224,), 128),
    Shape("LRP 3x3 128 -> 32, half", 3, (128,), 32, half=True),
    Shape("window fusion 1x1 800 -> 64", 1, (800,), 64, 32, 24),
    Shape("reprojection 5x5 288 -> 96", 5, (288,), 96),
    Shape("reprojection 5x5 32 -> 64", 5, (32,), 64),
    Shape("qkv 1x1 32 -> 96", 1, (32,), 96),
)


def convolution(shape: Shape) -> Callable[[], None]:
    rng = np.random.default_rng(0)
    inputs, weights, scales = [], [], []
    for channels in shape.inputs:
        size = (1, shape.height, shape.width, channels)
        inputs.append(rng.integers(-4095, 4096, size).astype(np.int16))
        limit = min(16383, (2**31 - 1) // 4095 // (shape.kernel**2 * channels))
        size = (shape.outputs, shape.kernel, shape.kernel, channels)
        values = rng.integers(-limit, limit + 1, size).astype(np.int16)
        weights.append(exact.Weights(values, ISA))
        scales.append(np.full(shape.outputs, 2.0**-20, np.float32))
    width = shape.width // 2 if shape.half else shape.width
    out = np.empty((1, shape.height, width, shape.outputs), np.int16)
    bias = np.zeros(shape.outputs, np.float32)

    def run() -> None:
        KERNELS.conv(
            inputs,
            weights,
            scales,
            [2.0**-8] * len(inputs),
            at=1 if shape.half else -1,
            bias=bias,
            partial=None,
            gelu=True,
            residual=None,
            residual_scale=0.0,
            out=out,
            out_scale=64.0,
        )

    return run


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_conv(benchmark: Any, shape: Shape) -> None:
    benchmark.group = "convolution"
    benchmark.extra_info["products"] = shape.macs
    benchmark(convolution(shape))


def act(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return rng.integers(-2000, 2001, shape).astype(np.int16)


def real(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def test_quantise(benchmark: Any) -> None:
    benchmark.group = "elementwise"
    r, out = real(1, 32, 48, 32), np.empty((1, 32, 48, 32), np.int16)
    benchmark(KERNELS.quantise, r, out=out, out_scale=64.0)


def test_add_half_tanh(benchmark: Any) -> None:
    benchmark.group = "elementwise"
    r, y = real(1, 32, 24, 32), real(1, 32, 48, 32)
    benchmark(KERNELS.add_half_tanh, r, 1, y)


def test_depthwise(benchmark: Any) -> None:
    benchmark.group = "elementwise"
    x, out = act(1, 32, 48, 576), np.empty((1, 32, 48, 576), np.int16)
    taps, ones = act(3, 3, 576), np.ones(576, np.float32)
    arguments = (x, taps, ones * 2**-20, 2.0**-8, ones)
    benchmark(KERNELS.depthwise, *arguments, gelu=True, out=out, out_scale=64.0)


def test_layer_norm(benchmark: Any) -> None:
    benchmark.group = "elementwise"
    x, out = act(1, 32, 48, 32), np.empty((1, 32, 48, 32), np.int16)
    ones = np.ones(32, np.float32)
    benchmark(KERNELS.layer_norm, x, ones, ones, epsilon=1.0, out=out, out_scale=64.0)


def test_window_attention(benchmark: Any) -> None:
    benchmark.group = "attention"
    out = np.empty((1, 32, 24, 25 * 32), np.int16)
    scales = {"logit_scale": 2.0**-18, "value_scale": 2.0**-8}
    bias = real(2, 25, 25)
    benchmark(KERNELS.window_attention, act(1, 32, 48, 96), bias, **scales, out=out, out_scale=64.0)


def test_linear_attention(benchmark: Any) -> None:
    benchmark.group = "attention"
    q, k, v = (act(1, 32, 48, 288) + i for i in range(3))
    scales = {"query_scale": 2.0**-9, "key_scale": 2.0**-9, "value_exponent": 8}
    out = np.empty(q.shape, np.int16)
    benchmark(KERNELS.linear_attention, q, k, v, heads=9, **scales, out=out, out_scale=64.0)


@pytest.mark.parametrize("exclude", [False, True], ids=["all", "exclude"])
def test_softmax_attention(benchmark: Any, exclude: bool) -> None:
    benchmark.group = "attention"
    q, k, v = (act(1, 32, 24, 32) + i for i in range(3))
    scales = {"logit_scale": 2.0**-18, "value_scale": 2.0**-8}
    out = np.empty(q.shape, np.int16)
    arguments = {"heads": 2, "exclude": exclude, **scales, "out": out, "out_scale": 64.0}
    benchmark(KERNELS.softmax_attention, q, k, v, **arguments)
