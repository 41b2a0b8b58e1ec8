"""What the tests of kernels share: activations as slices of poisoned buffers, and their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lively import SMALL
from torch import Tensor

from mlic_fast.coder import gaussian_tables
from mlic_fast.engine.arithmetic import ACTIVATION_LIMIT, Float, Int16, SpecOps
from mlic_fast.engine.packing.integer_weights import pack_weight
from mlic_fast.engine.packing.packed import Layer, PackedModel, Segment
from mlic_fast.kernels.functions import from_planes, to_planes
from mlic_fast.kernels.layouts import FULL, ONE_COLOUR, Input
from mlic_fast.kernels.planes import ALL

POISON = 0x55
#: Channels of the buffer before and after the slice.
BEFORE, AFTER = 16, 5


def specification(layers: dict[str, Layer], exponents: dict[str, int]) -> SpecOps:
    """The judge, with these layers and exponents alone."""
    return SpecOps(PackedModel(SMALL["mlic_plus_plus"], layers, exponents, gaussian_tables()))


def activation(values: str, shape: tuple[int, ...], seed: int = 0) -> Int16:
    """``random`` over the whole range, only its two ``ends``, or all ``equal``."""
    random = np.random.default_rng(seed)
    if values == "equal":
        return np.full(shape, 1000 + seed, np.int16)
    if values == "ends":
        return (ACTIVATION_LIMIT * random.choice([-1, 1], shape)).astype(np.int16)
    return random.integers(-ACTIVATION_LIMIT, ACTIVATION_LIMIT + 1, shape).astype(np.int16)


def poisoned_slice(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Planes [2, B, H, W, C] in the middle of the channels of a poisoned buffer."""
    buffer = torch.full((*shape[:-1], BEFORE + shape[-1] + AFTER), POISON, dtype=torch.int8)
    return buffer.to(device)[..., BEFORE:-AFTER]


def planes(q: Int16, device: torch.device) -> Tensor:
    """As such a slice."""
    x = poisoned_slice((2, *q.shape), device)
    x.copy_(to_planes(torch.from_numpy(q)))
    return x


def read_at(q: Int16, colour: int, device: torch.device) -> Input:
    """An input on the full grid, of which all or one colour is read."""
    return Input(planes(q, device), FULL if colour == ALL else ONE_COLOUR, max(colour, 0))


def result(shape: tuple[int, ...], device: torch.device, launch: Callable[[Tensor], Any]) -> Int16:
    """What ``launch`` writes to planes of ``shape``; nothing beside them may change."""
    out = poisoned_slice((2, *shape), device)
    with np.errstate(all="ignore"):
        launch(out)
    buffer = out.as_strided((*out.shape[:-1], out.stride(3)), out.stride(), 0)
    assert (buffer[..., :BEFORE] == POISON).all() and (buffer[..., -AFTER:] == POISON).all()
    return values_of(out)


def values_of(x: Tensor) -> Int16:
    return from_planes(x).cpu().numpy().astype(np.int16)


def segment(outputs: int, kernel: int, channels: int, seed: int = 0) -> Segment:
    """Weights of which one channel is zero, and another has the largest sum there may be."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal((outputs, kernel, kernel, channels)).astype(np.float32)
    weight[0] = 0
    weight[-1] = np.sign(weight[-1])
    return pack_weight(weight)


def floats(shape: tuple[int, ...], scale: float = 1.0, seed: int = 0) -> Float:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def unwritten(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    poison = float("nan") if dtype.is_floating_point else POISON
    return torch.full(shape, poison, dtype=dtype, device=device)


def inputs_of(
    qkv: list[Int16], colours: tuple[int, int], device: torch.device
) -> tuple[Input, Input, Input]:
    q, k, v = (
        read_at(x, colour, device) for x, colour in zip(qkv, (*colours, colours[1]), strict=True)
    )
    return q, k, v


def qkv_of(values: str, shape: tuple[int, ...]) -> list[Int16]:
    return [activation(values, shape, seed) for seed in range(3)]
