"""Block transforms' own kernels, and ends of products: kernel == twin == specification."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planes_of import (
    activation,
    floats,
    planes,
    result,
    segment,
    specification,
    unwritten,
    values_of,
)

from mlic_fast.engine import arithmetic as spec
from mlic_fast.engine.arithmetic import Act
from mlic_fast.engine.exact_transforms import exact_gain
from mlic_fast.kernels import blocks, products
from mlic_fast.kernels.functions import from_planes
from mlic_fast.kernels.layouts import Grid, Input
from mlic_fast.kernels.product_weights import ProductWeights

OPS = specification({}, {})


def test_to_blocks(device: torch.device) -> None:
    images = torch.randint(0, 256, (2, 3, 24, 8), dtype=torch.uint8)
    out = unwritten((2, 2, 3, 1, blocks.VALUES), torch.int8, device)
    blocks.to_blocks(images.to(device), out=out)
    assert np.array_equal(values_of(out), OPS.to_blocks(images.numpy()).q)
    assert torch.equal(blocks.to_blocks_twin(images), out.cpu())


@pytest.mark.parametrize("twice", [False, True])
def test_scaled(device: torch.device, twice: bool) -> None:
    size, channels = (2, 3, 1), 20
    x, factors, second = floats((*size, channels), 900), floats((channels,)), floats((channels,))
    x[0, 0, 0, :3] = np.nan, np.inf, 0
    given = [torch.from_numpy(each).to(device) for each in (x, factors, second)]
    given[2:] = given[2:] if twice else [None]  # type: ignore[list-item]
    real = unwritten(x.shape, torch.float32, device)
    out = unwritten((2, *x.shape), torch.int8, device)
    with np.errstate(all="ignore"):
        blocks.scaled(*given, real=real, out=out, out_scale=2.0)
        r = x * factors
        expected = spec.quantise(r * second if twice else r, 1)
    assert np.array_equal(real.cpu().numpy(), r, equal_nan=True)
    assert np.array_equal(values_of(out), expected)
    twin = blocks.scaled_twin(*given, None, None, 2.0)
    assert torch.equal(twin[1], out)


@pytest.mark.parametrize("rate", [-1.0, 0.0, 0.3, 1.0, 1.9999, 2.0, 50.0])
def test_scaled_by_gains(device: torch.device, rate: float) -> None:
    logs, factors = floats((3, 70), 3).astype(np.float64), floats((70,))
    x, gain = floats((1, 2, 3, 70), 9), exact_gain(logs, rate)
    given = [torch.from_numpy(each).to(device) for each in (x, factors, logs)]
    real = unwritten(x.shape, torch.float32, device)
    out = unwritten((2, *x.shape), torch.int8, device)
    at = torch.tensor([rate], device=device)
    blocks.scaled(*given[:2], None, given[2], at, real=real, out=out, out_scale=2.0)
    assert np.array_equal(real.cpu().numpy(), x * (gain * factors))
    twin = blocks.scaled_twin(*given[:2], None, given[2], at, 2.0)
    assert torch.equal(twin[0], real) and torch.equal(twin[1], out)


@pytest.mark.parametrize("spread", [False, True])
def test_carried(device: torch.device, spread: bool) -> None:
    """The sum beside its activation; the sum may be the residual."""
    size, outputs = (2, 3, 1), 24
    s, bias = segment(outputs, 1, 40), floats((outputs,))
    x, r = activation("random", (*size, 40)), floats((*size, outputs), 30)
    factor = s.scale * spec.power_of_two(-3)
    expected = bias + spec.product(x, s.weight).astype(np.float32) * factor
    if spread:
        expected = OPS.depth_to_space(expected)
        carried = unwritten(expected.shape, torch.float32, device)
    else:
        expected = expected + r
        carried = torch.from_numpy(r).to(device)
    out = result(
        expected.shape,
        device,
        lambda out: products.conv(
            Input(planes(x, device)),
            ProductWeights.pack([[s]], [3], [bias], device),
            Grid(*size),
            residual=None if spread else carried,
            carried=carried,
            out=out,
            out_scale=torch.full((outputs,), 4.0, device=device),
            shuffle=spread,
        ),
    )
    assert np.array_equal(carried.cpu().numpy(), expected)
    assert np.array_equal(out, spec.quantise(expected, 2))


def test_gathered(device: torch.device) -> None:
    """The activation of a sum and its residual, as space_to_depth makes it."""
    size, outputs = (2, 4, 6), 40
    s, bias = segment(outputs, 1, 128), floats((outputs,))
    x, r = activation("ends", (*size, 128)), floats((*size, outputs), 30)
    factor = s.scale * spec.power_of_two(-3)
    total = bias + spec.product(x, s.weight).astype(np.float32) * factor + r
    out = result(
        (2, 2, 3, 4 * outputs),
        device,
        lambda out: products.conv(
            Input(planes(x, device)),
            ProductWeights.pack([[s]], [3], [bias], device),
            Grid(*size),
            residual=torch.from_numpy(r).to(device),
            out=out,
            out_scale=torch.full((outputs,), 4.0, device=device),
            gather=True,
        ),
    )
    assert np.array_equal(out, OPS.space_to_depth(Act(spec.quantise(total, 2), 2)).q)


def test_pixels(device: torch.device) -> None:
    """Clamped, and rounded to even."""
    size = (2, 3, 1)
    s = segment(blocks.VALUES, 1, 32)
    bias = floats((blocks.VALUES,), 100)
    bias[::3], s.scale[::3] = np.arange(64) - 20.5, 0
    bias[1], s.scale[1] = np.nan, 0
    x = activation("random", (*size, 32))
    out = unwritten((2, 3, 24, 8), torch.uint8, device)
    with np.errstate(invalid="ignore"):
        products.conv(
            Input(planes(x, device)),
            ProductWeights.pack([[s]], [9], [bias], device),
            Grid(*size),
            out=out,
        )
        factor = s.scale * spec.power_of_two(-9)
        r = bias + spec.product(x, s.weight).astype(np.float32) * factor
    assert np.array_equal(out.cpu().numpy(), OPS.to_pixels(r))
    assert len(out.unique()) > 100


def test_layouts(device: torch.device) -> None:
    from mlic_fast.engine.gpu.gpu_operations import GpuOps

    q = activation("random", (2, 4, 6, 12))
    x = Act(Input(planes(q, device)), 0)
    found = GpuOps.every_second(None, x).q.planes
    assert np.array_equal(from_planes(found).cpu().numpy(), OPS.every_second(Act(q, 0)).q)
