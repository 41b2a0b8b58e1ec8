"""Convolutions: kernel == twin == specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from planes_of import activation, floats, planes, result, segment, specification, unwritten

from mlic_fast.engine import arithmetic as spec
from mlic_fast.engine.arithmetic import Act, Float, Int16
from mlic_fast.engine.packing.packed import Segment
from mlic_fast.kernels import products
from mlic_fast.kernels.configs import Config
from mlic_fast.kernels.functions import from_planes
from mlic_fast.kernels.layouts import KEPT, SQUEEZED, Grid, Input
from mlic_fast.kernels.product_weights import ProductWeights
from mlic_fast.models.checkerboard import Parity


@pytest.fixture(params=[1, 3], autouse=True)
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product as it is; and in parts, more than some have steps, of several tiles."""
    if request.param > 1:
        tile = Config(16, outputs=32, parts=request.param)
        monkeypatch.setattr(products, "product_config", lambda *_: tile)


def expected_sum(
    inputs: list[Int16], segments: list[Segment], exponents: list[int], start: Float
) -> Float:
    r = start
    for q, s, exponent in zip(inputs, segments, exponents, strict=True):
        factor = s.scale * spec.power_of_two(-exponent)
        r = r + spec.product(q, s.weight).astype(np.float32) * factor
    return r


@pytest.mark.parametrize(
    ("kernel", "channels", "outputs", "inputs", "size", "values"),
    [
        (1, 64, 40, 3, (2, 3, 6), "random"),
        (1, 256, 70, 1, (1, 3, 6), "ends"),
        (3, 32, 33, 2, (2, 3, 6), "random"),
        (3, 48, 7, 1, (1, 5, 2), "ends"),
        (5, 20, 130, 1, (1, 1, 2), "ends"),
    ],
)
def test_sums(
    device: torch.device,
    kernel: int,
    channels: int,
    outputs: int,
    inputs: int,
    size: tuple[int, int, int],
    values: str,
) -> None:
    """Several inputs side by side; from the bias, and from a sum that is a slice of another."""
    segments = [segment(outputs, kernel, channels, i) for i in range(inputs)]
    exponents = [4 - i for i in range(inputs)]
    bias = floats((outputs,))
    xs = [activation(values, (*size, channels), i) for i in range(inputs)]
    weights = ProductWeights.pack([segments], exponents, [bias], device)
    first = Input(planes(np.concatenate(xs, -1), device)[..., :channels])
    spread: dict[str, Any] = {"inputs": inputs, "input_stride": channels}

    out = unwritten((*size, outputs), torch.float32, device)
    products.conv(first, weights, Grid(*size), **spread, gelu_after=True, out=out)
    expected = spec.gelu(expected_sum(xs, segments, exponents, bias))
    assert np.array_equal(out.cpu().numpy(), expected)
    twin = products.conv_twin(
        [torch.from_numpy(x.astype(np.int32)).to(device) for x in xs],
        weights,
        weights.bias,
        gelu_after=True,
    )
    assert torch.equal(twin, out)

    half = (*size[:2], size[2] // 2)
    for parity in Parity:
        start = floats((*half, outputs + 8))
        out = unwritten((*half, outputs), torch.float32, device)
        sliced = torch.from_numpy(start).to(device)[..., 4:-4]
        products.conv(
            first, weights, Grid(*size), **spread, start=sliced, colour=int(parity), out=out
        )
        full = spec.place(start[..., 4:-4], parity, np.zeros((*size, outputs), np.float32))
        expected = spec.squeeze(expected_sum(xs, segments, exponents, full), parity)
        assert np.array_equal(out.cpu().numpy(), expected)


def test_layers_side_by_side_quantised_each_its_own_way(device: torch.device) -> None:
    size, widths, exponents = (1, 3, 4), (20, 33), (7, -2)
    layers = [[segment(n, 3, 32)] for n in widths]
    biases = [floats((n,)) for n in widths]
    x = activation("random", (*size, 32))
    weights = ProductWeights.pack(layers, [5], biases, device)
    scale = [np.full(n, spec.power_of_two(e)) for n, e in zip(widths, exponents, strict=True)]
    out_scale = torch.from_numpy(np.concatenate(scale)).to(device)
    out = result(
        (*size, sum(widths)),
        device,
        lambda out: products.conv(
            Input(planes(x, device)), weights, Grid(*size), out=out, out_scale=out_scale
        ),
    )
    for part, layer, bias, exponent in zip(
        np.split(out, [widths[0]], -1), layers, biases, exponents, strict=True
    ):
        assert np.array_equal(part, spec.quantise(expected_sum([x], layer, [5], bias), exponent))


@pytest.mark.parametrize("kind", [KEPT, SQUEEZED])
@pytest.mark.parametrize("parity", list(Parity))
def test_input_of_one_colour(device: torch.device, kind: int, parity: Parity) -> None:
    size, outputs = (2, 3, 4), 5
    s, bias = segment(outputs, 5, 32), floats((outputs,))
    x = activation("random", (*size, 32))
    read = spec.place(spec.squeeze(x, parity), parity, np.zeros_like(x))
    stored = spec.squeeze(x, parity) if kind == SQUEEZED else x
    out = unwritten((*size, outputs), torch.float32, device)
    products.conv(
        Input(planes(stored, device), kind, int(parity)),
        ProductWeights.pack([[s]], [3], [bias], device),
        Grid(*size),
        out=out,
    )
    assert np.array_equal(out.cpu().numpy(), expected_sum([read], [s], [3], bias))


def test_residuals(device: torch.device) -> None:
    size, outputs = (1, 2, 6), 24
    s, bias = segment(outputs, 1, 64), floats((outputs,))
    x, q = activation("random", (*size, 64)), activation("random", (*size, outputs), 1)
    real = floats((*size, outputs), 30)
    weights = ProductWeights.pack([[s]], [3], [bias], device)
    scale = torch.full((outputs,), 4.0, device=device)
    r = expected_sum([x], [s], [3], bias)
    for residual, exponent, expected in (
        (torch.from_numpy(real).to(device), 0, r + real),
        (planes(q, device), 2, r + q.astype(np.float32) * np.float32(0.25)),
    ):
        options: dict[str, Any] = {"residual": residual, "residual_exponent": exponent}
        out = result(
            (*size, outputs),
            device,
            lambda out, options=options: products.conv(
                Input(planes(x, device)),
                weights,
                Grid(*size),
                out=out,
                out_scale=scale,
                **options,
            ),
        )
        assert np.array_equal(out, spec.quantise(expected, 2))


def test_pixel_shuffle(device: torch.device) -> None:
    size, outputs = (2, 3, 1), 24
    s, bias = segment(outputs, 3, 32), floats((outputs,))
    x = activation("random", (*size, 32))
    weights = ProductWeights.pack([[s]], [3], [bias], device)
    scale = torch.full((outputs,), 2.0, device=device)
    out = result(
        (2, 6, 2, outputs // 4),
        device,
        lambda out: products.conv(
            Input(planes(x, device)),
            weights,
            Grid(*size),
            gelu_after=True,
            out=out,
            out_scale=scale,
            shuffle=True,
        ),
    )
    q = spec.quantise(spec.gelu(expected_sum([x], [s], [3], bias)), 1)
    shuffled = specification({}, {}).pixel_shuffle(Act(q, 1)).q
    assert np.array_equal(out, shuffled)


@pytest.mark.parametrize("parity", list(Parity))
def test_latents_in_place(device: torch.device, parity: Parity) -> None:
    """Only the positions of the colour change, in a slice of the channels."""
    size, outputs = (2, 3, 4), 16
    s, bias = segment(outputs, 3, 32), floats((outputs,))
    x, q = activation("random", (*size, 32)), activation("random", (*size, outputs), 1)
    y = floats((*size, 3 * outputs), 20)
    latents, out = torch.from_numpy(y.copy()).to(device), planes(q, device)
    own = slice(outputs, 2 * outputs)
    products.conv(
        Input(planes(x, device)),
        ProductWeights.pack([[s]], [9], [bias], device),
        Grid(*size),
        colour=int(parity),
        latents=latents[..., own],
        out=out,
        out_scale=torch.full((outputs,), 64.0, device=device),
    )
    r = spec.squeeze(expected_sum([x], [s], [9], bias), parity)
    updated = spec.squeeze(y[..., own], parity) + spec.half_tanh(r)
    expected = y.copy()
    expected[..., own] = spec.place(updated, parity, y[..., own])
    assert np.array_equal(latents.cpu().numpy(), expected)
    quantised = spec.place(spec.quantise(updated, 6), parity, q)
    assert np.array_equal(from_planes(out).cpu().numpy(), quantised)
    twin = products.latents_twin(
        torch.from_numpy(r).to(device),
        torch.from_numpy(spec.squeeze(y[..., own], parity)).to(device),
    )
    assert np.array_equal(twin.cpu().numpy(), updated)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(1, 32, 48), (2, 68, 120), (1, 135, 240)])
@pytest.mark.parametrize(
    ("kernel", "channels", "outputs", "inputs"),
    [(3, 32, 224, 9), (5, 288, 96, 1), (1, 640, 320, 1), (1, 32, 32, 1)],
)
def test_full_size_repeated(
    device: torch.device,
    size: tuple[int, int, int],
    kernel: int,
    channels: int,
    outputs: int,
    inputs: int,
) -> None:
    """The widest layers of the full-size models: against the twin, twice, and each image alone."""
    segments = [segment(outputs, kernel, channels, i) for i in range(inputs)]
    weights = ProductWeights.pack([segments], [4] * inputs, [floats((outputs,))], device)
    x = planes(activation("random", (*size, inputs * channels)), device)

    def run(x: torch.Tensor) -> torch.Tensor:
        grid = Grid(*x.shape[1:4])
        out = unwritten((*x.shape[1:4], outputs), torch.float32, device)
        products.conv(
            Input(x[..., :channels]), weights, grid, inputs=inputs, input_stride=channels, out=out
        )
        return out

    out = run(x)
    assert torch.equal(out, run(x))
    assert all(torch.equal(out[i : i + 1], run(x[:, i : i + 1])) for i in range(size[0]))
    parts = [from_planes(part) for part in x.split(channels, dim=-1)]
    assert torch.equal(out, products.conv_twin(parts, weights, weights.bias))
