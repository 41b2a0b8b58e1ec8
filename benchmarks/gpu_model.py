"""How long a launch takes on an H200: a model, not a measurement.

Its constants were measured on one H200 (``benchmarks/first_run.json`` says which; the first run on
a GPU: docs/kernel-times.md): products by tile and steps of K, fitted to 464 timed launches of 58
shapes with a mean error of 7 %; other kernels by their times in traces of whole encodes and
decodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mlic_fast.kernels.product_times import CORES, GAP, TILES, TileTimes, totals

#: The same where the second launch begins before the first has ended: 0.83 in all instead of 1.1.
PROGRAMMATIC_GAP = 0.08
#: Bytes and bfloat16 operations a microsecond that large launches of the transforms reached.
BYTES, BYTES_NORMALISE, BFLOAT16, FLOAT32 = 2.4e6, 1.2e6, 700e6, 10e6
#: What the names of PyTorch's operators begin with.
OPERATOR = "torch."

#: Tiles that nothing is launched with any more.
OTHER_TILES = {
    (32, 32): TileTimes(0.809, 1.457, (0.0, 0.31), (0.084, 0.101), 1.532, 0.682),
    (128, 32): TileTimes(1.981, 0.943, (0.214, 0.312), (0.245, 0.277), 3.124, 1.067),
    (128, 64): TileTimes(2.879, 1.03, (0.27, 0.419), (0.038, 1.0), 12.0, 0.914),
}
PRODUCTS = TILES | OTHER_TILES


@dataclass(frozen=True)
class Launch:
    """One launch: its kernel, how many programs, what it moves and multiplies, its ``shape``, the
    numbers of which the kernel's time is a function, and whether it begins before the one before it
    has ended.
    """

    kernel: str
    programs: int
    bytes: int = 0
    products: int = 0
    shape: tuple[int, ...] = ()
    programmatic: bool = False


def gap(before: Launch | None, launch: Launch) -> float:
    """Microseconds from the end of the launch that is waited for to the begin of another."""
    if before is not None and before.programmatic and launch.programmatic:
        return PROGRAMMATIC_GAP
    return GAP


def microseconds(launch: Launch) -> float:
    """From the begin of a launch to its end, if nothing else runs."""
    if launch.kernel.startswith(OPERATOR):
        return 1.0 + launch.bytes / BYTES
    return _TIMES[launch.kernel](launch)


def load(launch: Launch) -> float:
    """The share of the GPU that a launch keeps busy, at most 1."""
    if launch.kernel in ("conv", "parts"):
        m, n, k, *_ = launch.shape
        shared, step = _times(m, n).step(k, launch.programs)
        return min(1.0, shared / step)
    if launch.kernel in ("convolution", "first", "activate", "normalise"):
        return 1.0
    return min(1.0, launch.programs / (8 * CORES))


def _conv(launch: Launch) -> float:
    m, n, k, inputs, steps = launch.shape
    return _times(m, n).product(k, launch.programs, inputs, steps)


def _times(m: int, n: int) -> TileTimes:
    """Those of a tile that was timed."""
    nearest = min(
        PRODUCTS, key=lambda each: abs(math.log(each[0] / m)) + abs(math.log(each[1] / n))
    )
    return PRODUCTS[nearest]


def _totals(launch: Launch) -> float:
    return totals(*(launch.shape or (4,)), launch.programs)


def _pass(launch: Launch) -> float:
    """Steps of the contexts, and blocks of layers 2, 4 and 6; a program fills a multiprocessor."""
    steps, blocks = launch.shape
    return 5.0 + math.ceil(launch.programs / CORES) * (1.7 + 0.21 * steps + 0.15 * blocks)


def _fusion(launch: Launch) -> float:
    """Of the first run: steps over tokens of 5x5, and the layers after them."""
    _, steps = launch.shape
    return math.ceil(launch.programs / CORES) * (4.5 + steps * 0.65)


def _mlp(launch: Launch) -> float:
    """Steps over chunks of channels: what the kernel of the first run had beside its tokens."""
    (steps,) = launch.shape
    return math.ceil(launch.programs / CORES) * (2.0 + 0.5 * steps)


def _convolution(launch: Launch) -> float:
    """cuDNN's: outputs, bits a number. Less than 96 outputs cost as much as 96, and none less than
    what it moves.
    """
    outputs, bits = launch.shape
    if bits == 32:
        return 2 * launch.products / FLOAT32
    products = 2 * launch.products / outputs * max(outputs, 96) / BFLOAT16
    return 15 + max(products, launch.bytes / BYTES)


def _depthwise(launch: Launch) -> float:
    """By the instructions of a program, which had 952 for the one row that was measured, and has
    240 more for maxima of keys.
    """
    rows, with_keys = launch.shape or (1, 0)
    instructions = launch.programs * (952 if rows == 1 else 344 + 568 * rows) + 240 * with_keys
    return 2.9 + 0.95 * instructions / 952 / CORES


def _linear(fixed: float, share: float) -> Callable[[Launch], float]:
    """So long, and so long for each program of a multiprocessor."""
    return lambda launch: fixed + share * launch.programs / CORES


def _moved(fixed: float, speed: float) -> Callable[[Launch], float]:
    return lambda launch: fixed + launch.bytes / speed


def _coder(launch: Launch) -> float:
    (nanoseconds,) = launch.shape
    return nanoseconds / 1e3


_TIMES: dict[str, Callable[[Launch], float]] = {
    "conv": _conv,
    "parts": _conv,
    "totals": _totals,
    "pass": _pass,
    "fusion": _fusion,
    "mlp": _mlp,
    "convolution": _convolution,
    "coder": _coder,
    "depthwise": _depthwise,
    "qkv": _linear(5.8, 0.6),
    "attention": _linear(3.2, 0.4),
    "maxima": _linear(1.4, 1.7),  # of the first run; the depthwise kernel gives them now
    "contexts": _linear(3.5, 2.0),
    "apply": _linear(3.2, 2.0),
    "decoded": _linear(1.4, 0.8),
    "hyper_latents": _linear(1.0, 0.8),
    "digest": _linear(1.6, 0.3),
    "to_blocks": _linear(1.4, 0.8),
    "first": _moved(1.5, BYTES),
    "scaled": _linear(1.4, 0.8),
    "activate": _moved(1.5, BYTES),
    "normalise": _moved(6.0, BYTES_NORMALISE),
    "to_pixels": _moved(1.5, BYTES),
}
