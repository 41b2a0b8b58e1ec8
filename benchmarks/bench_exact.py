"""Speed of the convolution kernels of the CPU engine, beside the peak of the machine.

Layers are those of the full-size MLIC++ at 768x512 (latents 32x48). The best of several runs, in
processor time of the thread unless there are several threads; a GMAC is 10^9 products of a weight
and an activation. The peak is that of the instruction which multiplies, in a loop that touches
registers alone.

    python benchmarks/bench_exact.py [--isa avx512 avx2 scalar] [--repeat 7] [--threads 1]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlic_fast._C import exact


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
    Shape("reprojection 5x5 288 -> 432", 5, (288,), 432),
    Shape("reprojection 5x5 32 -> 64", 5, (32,), 64),
    Shape("qkv 1x1 32 -> 96", 1, (32,), 96),
)


def best_time(
    f: Callable[[], object], repeat: int, clock: Callable[[], float] = time.thread_time
) -> float:
    times = []
    for _ in range(repeat):
        start = clock()
        f()
        times.append(clock() - start)
    return min(times)


def measured_peak(isa: str, repeat: int) -> float:
    """Products a second."""
    kernels = exact.Kernels(isa, 1)
    iterations = 200_000
    seconds = best_time(lambda: kernels.peak(iterations), repeat)
    return float(kernels.peak(iterations)) / seconds


def convolution(shape: Shape, isa: str, threads: int) -> Callable[[], None]:
    rng = np.random.default_rng(0)
    kernels = exact.Kernels(isa, threads)
    inputs, weights, scales = [], [], []
    for channels in shape.inputs:
        size = (1, shape.height, shape.width, channels)
        inputs.append(rng.integers(-4095, 4096, size).astype(np.int16))
        limit = min(16383, (2**31 - 1) // 4095 // (shape.kernel**2 * channels))
        size = (shape.outputs, shape.kernel, shape.kernel, channels)
        weights.append(exact.Weights(rng.integers(-limit, limit + 1, size).astype(np.int16)))
        scales.append(np.full(shape.outputs, 2.0**-20, np.float32))
    width = shape.width // 2 if shape.half else shape.width
    out = np.empty((1, shape.height, width, shape.outputs), np.int16)
    bias = np.zeros(shape.outputs, np.float32)

    def run() -> None:
        kernels.conv(
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--isa", nargs="+", default=exact.instruction_sets())
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    for isa in args.isa:
        peak = measured_peak(isa, args.repeat) * args.threads
        print(f"{isa}, {args.threads} threads: peak {peak / 1e9:.1f} GMAC/s")
        for shape in SHAPES:
            seconds = best_time(convolution(shape, isa, args.threads), args.repeat, clock)
            speed = shape.macs / seconds
            print(
                f"  {shape.name:42} {shape.macs / 1e9:7.3f} GMAC {1e3 * seconds:8.2f} ms "
                f"{speed / 1e9:7.1f} GMAC/s {100 * speed / peak:5.1f} %"
            )


if __name__ == "__main__":
    main()
