"""The pass kernel == its twin == the specification's chain of layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planes_of import activation, floats, planes, segment, unwritten

from mlic_fast.coder import SCALES, scale_indexes
from mlic_fast.engine import arithmetic as spec
from mlic_fast.engine.arithmetic import Float, Int16
from mlic_fast.engine.packing.packed import Layer, Segment
from mlic_fast.kernels import entropy_parameters as kernel
from mlic_fast.kernels.layouts import ONE_COLOUR, SQUEEZED, Grid, Input
from mlic_fast.models.checkerboard import Parity

EXPONENTS = (6, 7, 5)


def chain(
    layers: list[Layer], start: Float, contexts: list[Int16], exponents: list[int]
) -> tuple[Float, Float]:
    """Scales and means."""
    r = start
    for q, s, e in zip(contexts, layers[0].segments[1:], exponents, strict=True):
        r = r + spec.product(q, s.weight).astype(np.float32) * (s.scale * spec.power_of_two(-e))
    for layer, e in zip(layers[1:], EXPONENTS, strict=True):
        q = spec.quantise(spec.gelu(r), e)
        (s,) = layer.segments
        total = spec.product(q, s.weight).astype(np.float32)
        r = layer.bias + total * (s.scale * spec.power_of_two(-e))
    channels = r.shape[-1] // 2
    return r[..., :channels], r[..., channels:]


@pytest.mark.parametrize(
    ("size", "channels", "hidden", "widths", "squeezed", "ahead", "parity"),
    [
        ((2, 3, 6), 32, (40, 48, 33), (64, 128, 64, 64), 2, 1, Parity.NON_ANCHOR),
        ((1, 5, 2), 4, (320, 64, 16), (8,), 0, None, Parity.NON_ANCHOR),
        ((1, 3, 4), 32, (64, 32, 32), (), None, None, Parity.ANCHOR),
        ((1, 2, 2), 16, (65, 100, 40), (48, 80), None, 1, Parity.ANCHOR),
    ],
)
def test_pass(
    device: torch.device,
    size: tuple[int, int, int],
    channels: int,
    hidden: tuple[int, int, int],
    widths: tuple[int, ...],
    squeezed: int | None,
    ahead: int | None,
    parity: Parity,
) -> None:
    a, b, c = hidden
    first = (segment(a, 1, 20), *(segment(a, 1, w, w + i) for i, w in enumerate(widths)))
    layers = [
        Layer(floats((a,)), first),
        Layer(floats((b,)), (segment(b, 1, a),)),
        Layer(floats((c,)), (segment(c, 1, b),)),
        Layer(floats((2 * channels,), 30), (segment(2 * channels, 1, c),)),
    ]
    exponents = [3 + i for i in range(len(widths))]
    known = [None if i == ahead else exponent for i, exponent in enumerate(exponents)]
    weights = kernel.PassWeights.pack(layers, known, EXPONENTS, device)
    half = (*size[:2], size[2] // 2)
    # The hyper part is a slice of that of all slices.
    wide = floats((*half, a + 16), 10)
    start = torch.from_numpy(wide).to(device)[..., 8:-8]
    contexts: list[Input | torch.Tensor] = []
    at_colour = []
    for i, width in enumerate(widths):
        x = activation("random", (*size, width), i)
        at_colour.append(spec.squeeze(x, parity))
        if i == ahead:
            total = spec.product(at_colour[-1], first[i + 1].weight).astype(np.float32)
            added = total * (first[i + 1].scale * spec.power_of_two(-exponents[i]))
            contexts.append(torch.from_numpy(added).to(device))
        elif i == squeezed:
            contexts.append(Input(planes(at_colour[-1], device), SQUEEZED, int(parity)))
        else:
            contexts.append(Input(planes(x, device), ONE_COLOUR, int(parity)))
    y = floats((*size, channels), 30)
    y.flat[:8] = [np.nan, np.inf, -np.inf, 1e9, -1e9, 0.5, 1.5, -0.5]

    def run(encode: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shape = (*half, channels)
        indexes = unwritten(shape, torch.uint8, device)
        means = unwritten(shape, torch.float32, device)
        symbols = unwritten(shape, torch.int32, device)
        kernel.entropy_parameters(
            start,
            contexts,
            weights,
            int(parity),
            Grid(*size),
            indexes=indexes,
            means=means,
            y=torch.from_numpy(y).to(device) if encode else None,
            symbols=symbols if encode else None,
        )
        return indexes, means, symbols

    indexes, means, symbols = run(encode=True)
    scales, expected = chain(layers, wide[..., 8:-8], at_colour, exponents)
    assert np.array_equal(means.cpu().numpy(), expected)
    assert np.array_equal(indexes.cpu().numpy(), scale_indexes(scales))
    assert len(np.unique(indexes.cpu().numpy())) > 3
    right = spec.to_symbols(spec.squeeze(y, parity) - expected)
    assert np.array_equal(symbols.cpu().numpy(), right)
    decoded = run(encode=False)
    assert torch.equal(decoded[0], indexes) and torch.equal(decoded[1], means)
    assert (decoded[2] == 0x55).all()

    def flat(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.reshape(-1, array.shape[-1])).to(device)

    twin = kernel.entropy_parameters_twin(
        start.flatten(0, 2),
        [
            x.flatten(0, 2) if isinstance(x, torch.Tensor) else flat(q.astype(np.int32))
            for x, q in zip(contexts, at_colour, strict=True)
        ],
        weights,
        flat(spec.squeeze(y, parity)),
    )
    for mine, theirs in zip((indexes, means, symbols), twin, strict=True):
        assert theirs is not None and torch.equal(mine.flatten(0, 2), theirs)


def test_scale_index_at_and_beside_every_threshold(device: torch.device) -> None:
    """Scales that are exactly a threshold, its neighbours, infinite and NaN."""
    edges = np.asarray(SCALES, np.float32)
    below, above = (np.nextafter(edges, np.float32(end)) for end in (0, np.inf))
    others = np.array([0, -1, np.inf, -np.inf, np.nan], np.float32)
    values = np.concatenate([edges, below, above, others])

    def zeros(outputs: int) -> tuple[Segment]:
        weight = np.zeros((outputs, 1, 1, 32), np.int16)
        return (Segment(weight, np.ones(outputs, np.float32)),)

    layers = [Layer(np.zeros(32, np.float32), zeros(32)) for _ in range(3)]
    last = Layer(np.concatenate([values, np.zeros_like(values)]), zeros(2 * len(values)))
    shape = (1, 1, 1, len(values))
    indexes = unwritten(shape, torch.uint8, device)
    kernel.entropy_parameters(
        torch.zeros(1, 1, 1, 32, device=device),
        [],
        kernel.PassWeights.pack([*layers, last], [], EXPONENTS, device),
        1,
        Grid(1, 1, 2),
        indexes=indexes,
        means=unwritten(shape, torch.float32, device),
    )
    assert np.array_equal(indexes.cpu().numpy().reshape(-1), scale_indexes(values))
