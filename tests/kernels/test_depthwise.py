"""Depthwise convolutions, and what they give of keys: kernel == twin == specification."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planes_of import activation, floats, planes, result, segment, specification

from mlic_fast.engine import arithmetic as spec
from mlic_fast.engine.arithmetic import Act
from mlic_fast.engine.packing.packed import Layer
from mlic_fast.kernels import depthwise
from mlic_fast.kernels.functions import from_planes
from mlic_fast.kernels.layouts import Grid
from mlic_fast.kernels.planes import ALL, ANCHORS, NON_ANCHORS


@pytest.mark.parametrize("activated", [False, True])
def test_depthwise(device: torch.device, activated: bool) -> None:
    size, widths, exponents, outs = (2, 3, 5), (24, 9), (6, 3), (2, 1)
    layers = [Layer(floats((n,)), (segment(n, 3, 1),)) for n in widths]
    xs = [activation("random", (*size, n), n) for n in widths]
    x = planes(np.concatenate(xs, -1), device)
    weights = depthwise.DepthwiseWeights.pack(layers, exponents, device)
    scale = [np.full(n, spec.power_of_two(e)) for n, e in zip(widths, outs, strict=True)]
    out_scale = torch.from_numpy(np.concatenate(scale)).to(device)
    out = result(
        (*size, sum(widths)),
        device,
        lambda out: depthwise.depthwise(
            x, weights, Grid(*size), gelu_after=activated, out=out, out_scale=out_scale
        ),
    )
    expected = [
        specification({"layer": layer}, {"out": to})
        .depthwise("layer", Act(q, exponent), gelu_after=activated, out="out")
        .q
        for layer, q, exponent, to in zip(layers, xs, exponents, outs, strict=True)
    ]
    assert np.array_equal(out, np.concatenate(expected, -1))
    twin = depthwise.depthwise_twin(x, weights, out_scale, activated)
    assert np.array_equal(from_planes(twin).cpu().numpy(), out)


@pytest.mark.parametrize("colour", [ALL, NON_ANCHORS, ANCHORS])
def test_keys(device: torch.device, colour: int) -> None:
    """Among other channels, in several programs along positions and channels of each image."""
    grid, widths, heads = Grid(2, 5, 204), (24, 112, 9), 7
    channels, keys = sum(widths), slice(widths[0], widths[0] + widths[1])
    layer = Layer(floats((channels,)), (segment(channels, 3, 1),))
    weights = depthwise.DepthwiseWeights.pack([layer], [6], device)
    x = planes(activation("random", (2, 5, 204, channels)), device)
    out_scale = torch.full((channels,), 4.0, device=device)
    sums = depthwise.new_key_sums(grid, heads, widths[1] // heads, device)
    assert sums.maxima.shape[1] > 1
    for each in sums:
        each.fill_(5000)
    out = torch.empty_like(x)
    given = depthwise.Keys(keys.start, colour, sums)
    depthwise.depthwise(x, weights, grid, keys=given, out=out, out_scale=out_scale)
    assert torch.equal(out, depthwise.depthwise_twin(x, weights, out_scale))
    twin = depthwise.key_sums_twin(out[..., keys], colour, heads)
    assert torch.equal(sums.maxima.amax(1, keepdim=True), twin.maxima)
    assert torch.equal(sums.contexts, twin.contexts)
    assert torch.equal(sums.totals, twin.totals)
