"""The elementwise functions of the exact arithmetic, in Triton and in PyTorch (docs/arithmetic.md).

An activation is stored as two planes of int8, ``[2, ...]``: plane 0 the low byte (signed), plane 1
the high one, q = 256 * high + low. Tensor cores take the planes as they are: a product of two such
numbers is 65536 hh + 256 (hl + lh) + ll, four products of int8 with sums in int32.

Kernels must be launched by :func:`launch`, which forbids fusion: a fused multiply-add
rounds once where the arithmetic rounds twice. ``/`` and ``tl.sqrt`` are approximate on a GPU; use
``tl.div_rn`` and ``tl.sqrt_rn``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.language.target_info import cuda_capability_geq

from mlic_fast.engine.arithmetic import (
    ACTIVATION_LIMIT,
    EXP2,
    GELU,
    GELU_CLAMP,
    MINUS_LOG2_E,
    SOFTMAX_ONE,
    TANH_CLAMP,
)
from mlic_fast.kernels.configs import config, programmatic

#: Options of every launch on the exact path, and of one off it.
EXACT = {"enable_fp_fusion": False}
FREE = {"enable_fp_fusion": True}

_COMPILES_ONLY: ContextVar[bool] = ContextVar("compiles_only", default=False)

_LIMIT = tl.constexpr(float(ACTIVATION_LIMIT))
_GELU_CLAMP = tl.constexpr(float(GELU_CLAMP))
_TANH_CLAMP = tl.constexpr(float(TANH_CLAMP))
_MINUS_LOG2_E = tl.constexpr(float(MINUS_LOG2_E))
_SOFTMAX_ONE = tl.constexpr(float(SOFTMAX_ONE))
_G0, _G1, _G2, _G3, _G4, _G5, _G6, _G7 = (tl.constexpr(float(c)) for c in GELU)
_E0, _E1, _E2, _E3, _E4 = (tl.constexpr(float(c)) for c in EXP2)
# 1.5 * 2^23: adding it rounds to an integer, which the low bits of the sum then hold.
_ROUNDER = tl.constexpr(12582912.0)
_ROUNDER_BITS = tl.constexpr(0x4B400000)


# -- launches ---------------------------------------------------------------------------------


def launch(kernel: Any, programs: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Launch a kernel on the current stream; exact, unless the options are those of FREE.

    Where the GPU can, the launch begins before the one before it has ended. So every kernel begins
    with :func:`await_launch_before`.
    """
    options = EXACT | options
    if programmatic(_device_of(args)):
        options["launch_pdl"] = True
    if _COMPILES_ONLY.get():
        kernel.warmup(*args, grid=programs, **options)
    else:
        kernel[programs](*args, **options)


def launch_tiles(
    kernel: Any,
    name: str,
    positions: int,
    channels: int,
    *args: Any,
    images: int = 1,
    **options: Any,
) -> None:
    """Launch a program for every tile of positions and channels, and every one of ``images``.

    ``name``: whose configuration has the sides of a tile, which the kernel gets as BLOCK_M and
    BLOCK_N.
    """
    block = config(name, _device_of(args), positions)
    launch(
        kernel,
        (triton.cdiv(positions, block.block), triton.cdiv(channels, block.outputs), images),
        *args,
        BLOCK_M=block.block,
        BLOCK_N=block.outputs,
        num_warps=block.warps,
        **options,
    )


def _device_of(args: Iterable[Any]) -> torch.device:
    """That of the first tensor, alone or in a tuple."""
    for each in args:
        if isinstance(each, Tensor):
            return each.device
        if isinstance(each, tuple):
            return _device_of(each)
    raise ValueError("no tensor among the arguments of a launch")


@contextmanager
def compiling_only() -> Iterator[None]:
    """While entered, this thread's launches compile and run nothing."""
    token = _COMPILES_ONLY.set(True)
    try:
        yield
    finally:
        _COMPILES_ONLY.reset(token)


def compile_only(work: Callable[[], object], workers: int) -> None:
    """Do ``work``, whose launches only compile, ``workers`` kernels at a time.

    Afterwards everything is compiled and loaded. What is compiled already, or in Triton's cache on
    disk, costs little. Raises Triton's OutOfResources for a kernel that the device cannot hold.
    """

    def load(device: int, kernel: Any) -> None:
        triton.runtime.driver.active.set_current_device(device)  # of this thread
        kernel.result()._init_handles()  # compiles a launcher in C, too

    def compiling() -> None:
        with ThreadPoolExecutor(workers) as executor:
            mode = triton.AsyncCompileMode(executor)
            with compiling_only(), mode:
                work()
            kernels = list(mode.future_kernels.values())
            if kernels:
                device = triton.runtime.driver.active.get_current_device()
                list(executor.map(partial(load, device), kernels))

    # In a context of its own: Triton's mode stays active in it after a compile that fails.
    copy_context().run(compiling)


# -- Triton -----------------------------------------------------------------------------------


@triton.jit
def await_launch_before():
    """Until all that was launched before has ended; then the next launch may begin."""
    if cuda_capability_geq(9, 0):
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def rint(x):
    """The nearest integer, ties to even, as int32; |x| <= 2^22."""
    return (x + _ROUNDER).to(tl.int32, bitcast=True) - _ROUNDER_BITS


@triton.jit
def clamp(x, limit):
    """min(max(x, -limit), limit), where NaN counts as -limit.

    In comparisons, since ``tl.maximum`` propagates NaN in the interpreter.
    """
    x = tl.where(x > -limit, x, -limit)
    return tl.where(x < limit, x, limit)


@triton.jit
def quantise(r, scale):
    """Real -> int32 in +-ACTIVATION_LIMIT; ``scale`` is 2^exponent."""
    return rint(clamp(r * scale, _LIMIT))


@triton.jit
def low_byte(q):
    """Plane 0 of an activation."""
    return q.to(tl.int8)


@triton.jit
def high_byte(q):
    """Plane 1 of an activation."""
    return ((q + 128) >> 8).to(tl.int8)


@triton.jit
def join_bytes(low, high):
    """Planes -> int32."""
    return (high.to(tl.int32) << 8) + low.to(tl.int32)


@triton.jit
def join_products(hh, mid, ll):
    """The sum of products from those of the bytes; int32, modulo 2^32."""
    return (hh << 16) + (mid << 8) + ll


@triton.jit
def gelu(r):
    """GELU of float32: docs/arithmetic.md, section 3."""
    t = clamp(r, _GELU_CLAMP)
    s = t * t
    p = _G7 * s + _G6
    p = p * s + _G5
    p = p * s + _G4
    p = p * s + _G3
    p = p * s + _G2
    p = p * s + _G1
    p = p * s + _G0
    return r * (0.5 + t * p)


@triton.jit
def half_tanh(r):
    """tanh(r) / 2 of float32: docs/arithmetic.md, section 3."""
    t = clamp(r, _TANH_CLAMP)
    s = t * t
    numerator = ((s + 378.0) * s + 17325.0) * s + 135135.0
    denominator = ((28.0 * s + 3150.0) * s + 62370.0) * s + 135135.0
    return 0.5 * tl.div_rn(t * numerator, denominator)


@triton.jit
def power_of_two(exponent):
    """2^exponent as float32, -126 <= exponent <= 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exp_int(x):
    """exp(x) for x <= 0 as an integer in 0 .. SOFTMAX_ONE; 0 for NaN."""
    u = x * _MINUS_LOG2_E
    u = tl.where(u < 24.0, u, 24.0)
    n = u.to(tl.int32)
    g = u - n.to(tl.float32)
    p = _E4 * g + _E3
    p = p * g + _E2
    p = p * g + _E1
    p = p * g + _E0
    return rint(p * power_of_two(-n) * _SOFTMAX_ONE)


# -- PyTorch: what the twins are written in ----------------------------------------------------


def to_planes(q: Tensor) -> Tensor:
    """Integers in +-ACTIVATION_LIMIT [...] -> planes int8 [2, ...]."""
    q = q.to(torch.int32)
    high = (q + 128) >> 8
    return torch.stack([q - (high << 8), high]).to(torch.int8)


def from_planes(planes: Tensor) -> Tensor:
    """Inverse of :func:`to_planes`: int8 [2, ...] -> int32 [...]."""
    low, high = planes.to(torch.int32)
    return (high << 8) + low


def clamp_twin(r: Tensor, limit: float) -> Tensor:
    """Twin of :func:`clamp`: within +-``limit``; NaN becomes -``limit``."""
    bound = torch.tensor(limit, dtype=torch.float32, device=r.device)
    return torch.fmin(torch.fmax(r, -bound), bound)


def quantise_twin(r: Tensor, scale: Tensor | float) -> Tensor:
    """Real -> int32; ``scale`` is 2^exponent."""
    return torch.round(clamp_twin(r * scale, float(ACTIVATION_LIMIT))).to(torch.int32)


def gelu_twin(r: Tensor) -> Tensor:
    """Twin of :func:`gelu`."""
    t = clamp_twin(r, float(GELU_CLAMP))
    s = t * t
    p = torch.full_like(s, float(GELU[-1]))
    for c in GELU[-2::-1]:
        p = p * s + float(c)
    return r * (0.5 + t * p)


def half_tanh_twin(r: Tensor) -> Tensor:
    """Twin of :func:`half_tanh`."""
    t = clamp_twin(r, float(TANH_CLAMP))
    s = t * t
    numerator = ((s + 378.0) * s + 17325.0) * s + 135135.0
    denominator = ((28.0 * s + 3150.0) * s + 62370.0) * s + 135135.0
    return 0.5 * ((t * numerator) / denominator)


def exp_int_twin(x: Tensor) -> Tensor:
    """Twin of :func:`exp_int`: float32 at most 0 -> int32."""
    bound = torch.tensor(24.0, dtype=torch.float32, device=x.device)
    u = torch.fmin(x * float(MINUS_LOG2_E), bound)
    n = u.to(torch.int32)
    g = u - n.to(torch.float32)
    p = torch.full_like(g, float(EXP2[-1]))
    for c in EXP2[-2::-1]:
        p = p * g + float(c)
    power = ((127 - n) << 23).view(torch.float32)  # 2^-n; a GPU's ldexp need not be exact
    return torch.round(p * power * float(SOFTMAX_ONE)).to(torch.int32)
