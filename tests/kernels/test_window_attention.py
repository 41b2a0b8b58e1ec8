"""The local context of MLIC+ and MLIC++: kernels == twin == specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from planes_of import activation, planes, poisoned_slice, result, specification, values_of

from mlic_fast.engine.arithmetic import Act, Int16, SpecOps, f32
from mlic_fast.engine.packing.packed import Layer, Segment
from mlic_fast.kernels import configs
from mlic_fast.kernels.window_attention import local_context, local_context_twin
from mlic_fast.kernels.window_weights import WindowWeights
from mlic_fast.models.checkerboard import Parity

SLICE = 1
P = f"local_context.{SLICE}"
SOURCE = f"y_hat.{SLICE}"
EXPONENTS = {
    SOURCE: 8,
    "norm1": 9,
    "qkv_proj": 8,
    "attention": 9,
    "fusion": 10,
    "proj": 9,
    "norm2": 10,
    "mlp.fc1": 9,
    "mlp.fc2": 8,
}

pytestmark = pytest.mark.usefixtures("poisoned")


def make(channels: int, exponents: dict[str, int] = EXPONENTS, seed: int = 0) -> SpecOps:
    """The layers of one local context, with outputs that neither vanish nor all saturate."""
    random = np.random.default_rng(seed)

    def linear(outputs: int, inputs: int) -> Layer:
        weight = random.integers(-16383, 16384, (outputs, 1, 1, inputs))
        excess = np.abs(weight).sum(-1, keepdims=True) / ((2**31 - 1) // 4095)
        weight = (weight / np.maximum(excess, 1)).astype(np.int16)
        size = np.sqrt((weight.astype(np.float64) ** 2).sum((1, 2, 3)))
        return Layer(real(outputs), (Segment(weight, (1.5 / size).astype(f32)),))

    def norm(channels: int) -> Layer:
        return Layer(real(channels), gain=real(channels))

    def real(*shape: int) -> Any:
        return random.standard_normal(shape).astype(f32)

    c = channels
    layers = {
        "norm1": norm(c),
        "qkv_proj": linear(3 * c, c),
        "attention": Layer(real(2, 25, 25)),
        "fusion": linear(2 * c, 25 * c),
        "proj": linear(2 * c, 2 * c),
        "norm2": norm(2 * c),
        "mlp.fc1": linear(4 * c, 2 * c),
        "mlp.fc2": linear(2 * c, 4 * c),
    }
    named = {f"{P}.{name}": layer for name, layer in layers.items()}
    exponents = {name if name == SOURCE else f"{P}.{name}": e for name, e in exponents.items()}
    return specification(named, exponents)


def anchors_of(values: str, shape: tuple[int, ...]) -> Int16:
    return specification({}, {}).keep(Act(activation(values, shape), 0), Parity.ANCHOR).q


def weights_of(ops: SpecOps, device: torch.device) -> WindowWeights:
    return WindowWeights.pack(ops.layers, ops.exponents, P, SOURCE, device)


def check(ops: SpecOps, x: Int16, device: torch.device) -> Int16:
    batch, height, width, channels = x.shape
    weights = weights_of(ops, device)
    inputs = planes(x, device)
    shape = (batch, height, width // 2, 2 * channels)
    out = result(shape, device, lambda out: local_context(inputs, weights, out=out))
    with np.errstate(all="ignore"):
        expected = ops.local_context(SLICE, Act(x, ops.exponents[SOURCE])).q
    np.testing.assert_array_equal(values_of(local_context_twin(inputs, weights)), expected)
    np.testing.assert_array_equal(out, expected)
    return out


@pytest.mark.parametrize(
    ("channels", "shape", "values"),
    [
        (32, (2, 3, 2), "random"),
        (32, (1, 5, 6), "ends"),
        (32, (1, 1, 4), "equal"),
        (64, (1, 2, 2), "random"),
        (96, (1, 3, 2), "random"),
        (128, (1, 1, 2), "ends"),
    ],
)
def test_local_context(
    channels: int, shape: tuple[int, int, int], values: str, device: torch.device
) -> None:
    out = check(make(channels), anchors_of(values, (*shape, channels)), device)
    # The test must see values, not saturation alone.
    assert len(np.unique(out)) > 50


def test_blocks_of_large_images(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setattr(configs, "SMALL_POSITIONS", 0)
    check(make(32), anchors_of("random", (1, 3, 4, 32)), device)


@pytest.mark.parametrize("exponent", [-60, 60])
@pytest.mark.parametrize("names", [(SOURCE, "proj"), ("qkv_proj", "attention"), tuple(EXPONENTS)])
def test_extreme_exponents(exponent: int, names: tuple[str, ...], device: torch.device) -> None:
    """Overflow, infinities and NaN on the way have one result."""
    exponents = {**EXPONENTS, **dict.fromkeys(names, exponent)}
    check(make(32, exponents), anchors_of("random", (1, 2, 2, 32)), device)


def test_refuses_other_layouts(device: torch.device) -> None:
    weights = weights_of(make(32), device)
    x = torch.zeros((2, 1, 4, 4, 32), dtype=torch.int8, device=device)
    out = torch.zeros((2, 1, 4, 2, 64), dtype=torch.int8, device=device)
    with pytest.raises(ValueError, match="not a channel slice"):
        local_context(x.transpose(2, 3), weights, out=out)
    with pytest.raises(ValueError, match="not a channel slice"):
        local_context(x[..., ::2], weights, out=out)
    with pytest.raises(ValueError, match="out has shape"):
        local_context(x, weights, out=out[..., :32])


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(32, 48), (68, 120)])
def test_full_size_batches_and_repeats(size: tuple[int, int], device: torch.device) -> None:
    x = anchors_of("random", (3, *size, 32))
    ops = make(32)
    out = check(ops, x, device)
    weights, inputs = weights_of(ops, device), planes(x, device)
    for _ in range(10):
        again = poisoned_slice((2, *out.shape), device)
        local_context(inputs, weights, out=again)
        np.testing.assert_array_equal(values_of(again), out)
    for image in range(3):
        np.testing.assert_array_equal(check(ops, x[image : image + 1], device)[0], out[image])
