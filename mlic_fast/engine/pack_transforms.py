"""The packer of block transforms: float modules -> integers, the same on every machine.

The picture itself is carried in float32; each of its channels is scaled by a power of two, so that
the activations that layers take of it use their whole range. These powers, and the exponents of all
other activations, are found on a test card whose flats, edges and textures are stronger than those
of photographs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mlic_fast.engine.arithmetic import ACTIVATION_LIMIT, Act, Float, exponents_of, power_of_two
from mlic_fast.engine.cpu import CpuOps
from mlic_fast.engine.exact_transforms import (
    ExactTransforms,
    analysis,
    hyper_analysis,
    synthesis,
)
from mlic_fast.engine.operations import Operations
from mlic_fast.engine.pack import float_array, pack_weight
from mlic_fast.engine.packed import Layer, PackedTransforms
from mlic_fast.errors import CheckpointError
from mlic_fast.models.layers import MixingBlock
from mlic_fast.models.mlic import Transforms
from mlic_fast.models.transforms import BlockAnalysisTransform, BlockSynthesisTransform

#: Where channels are scaled: the picture at 1/8 and 1/16 in g_a, latents, the picture in g_s.
STAGES = ("g_a.fine", "g_a.coarse", "h_a", "g_s.coarse", "g_s.fine")
#: How far a channel may exceed the largest value seen before it saturates.
HEADROOM = 1.5
#: Largest values below this count as this.
SMALLEST = np.float32(2.0**-20)
#: Of the test card: its side, that of its tiles, and how many rectangles there are.
SIDE = 384
TILE = 64
LEAVES = 3400

Array = npt.NDArray[Any]
Scales = dict[str, Float]


def pack_transforms(model: Transforms) -> PackedTransforms:
    """Quantise g_a, h_a and g_s of a model with block transforms.

    Raises CheckpointError for weights so large that activations overflow.
    """
    config = model.config
    widths = config.block_channels, config.M, config.M, config.M, config.block_channels
    ones = {stage: np.ones(width, np.float32) for stage, width in zip(STAGES, widths, strict=True)}
    ranges = _Ranges(_packed(model, ones))
    _run(model, ranges.packed, ranges)
    scales = {
        stage: np.float32(ACTIVATION_LIMIT / HEADROOM) / np.maximum(ranges.largest[stage], SMALLEST)
        for stage in STAGES
    }
    packed = _packed(model, scales)
    _run(model, packed, _Calibration(packed))
    return packed


def _run(model: Transforms, packed: PackedTransforms, ops: Operations) -> None:
    """All transforms on the test card, at the lowest and the highest rate."""
    transforms = ExactTransforms(model, packed, ops)
    y = analysis(ops, calibration_card())
    rates = (0.0, model.config.rates - 1.0) if model.config.rates else (None,)
    scales = [
        transforms.scales(None if rate is None else torch.tensor([rate], dtype=torch.float32))
        for rate in rates
    ]
    latents = [ops.scale(y, analysis_scale) for analysis_scale, _ in scales]
    hyper_analysis(ops, np.concatenate(latents) * packed.hyper_scale)
    scaled = [ops.scale(np.rint(y), scale) for y, (_, scale) in zip(latents, scales, strict=True)]
    synthesis(ops, np.concatenate(scaled))


def calibration_card() -> torch.Tensor:
    """uint8 [1, 3, SIDE, SIDE]: coloured rectangles, stripes and noise of full contrast."""
    # Raw bits: numpy keeps these the same in all versions.
    bits = (np.random.PCG64(0).random_raw(SIDE**2) >> np.uint64(40)).astype(np.int64)
    card = _leaves(bits[: 8 * LEAVES].reshape(LEAVES, 8))
    bits = bits.reshape(SIDE, SIDE)
    rows, columns = np.mgrid[:TILE, :TILE]
    tiles = [(y, x) for y in range(SIDE // TILE) for x in range(SIDE // TILE) if (y + x) % 2 == 0]
    for number, (y, x) in enumerate(tiles):
        if number % 2:
            grain = 1 << (number // 2 % 4)
            white = bits[rows // grain, columns // grain] >> (number % 16)
        else:
            down, across, period = bits[number, 0] % 8, bits[number, 1] % 8, bits[number, 2] % 4
            white = ((down + (across == 0)) * rows + across * columns) >> (1 + period)
        card[:, y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE] = 255 * (white & 1)
    return torch.from_numpy(card)[None]


def _leaves(bits: Array) -> Array:
    """uint8 [3, SIDE, SIDE]: rectangles of all sizes, one over another, the last ones small.

    Half are black, white or of a pure colour, half of any colour.
    """
    card = np.full((3, SIDE, SIDE), 128, np.uint8)
    for number, leaf in enumerate(bits):
        octave, pure, grey = leaf[0] % 8, leaf[0] >> 8 & 1, leaf[0] >> 9 & 1
        side = 2 << octave if number < len(bits) // 2 else min(2 << octave, 16)
        height, width = 1 + leaf[1] % side, 1 + leaf[2] % side
        bottom, right = leaf[3] % (SIDE + TILE), leaf[4] % (SIDE + TILE)
        colour = leaf[5:8] & 255
        if pure:
            on = leaf[5:8] >> 8 & 1
            colour = 255 * (on[[0, 0, 0]] if grey else on)
        rows = slice(max(bottom - height, 0), bottom)
        columns = slice(max(right - width, 0), right)
        card[:, rows, columns] = colour[:, None, None]
    return card


def _packed(model: Transforms, scales: Scales) -> PackedTransforms:
    """All layers, for channels that are scaled; no exponents but those of the scaled channels."""
    g_a, g_s = model.g_a, model.g_s
    assert isinstance(g_a, BlockAnalysisTransform) and isinstance(g_s, BlockSynthesisTransform)
    fine_a, coarse_a, hyper, coarse_s, fine_s = (scales[stage] for stage in STAGES)
    pixels = np.full(192, 1 / 255, np.float32)
    layers = {
        "g_a.embed": _layer(g_a.embed, inputs=pixels, outputs=fine_a),
        "g_a.down": _layer(g_a.down, inputs=1 / np.tile(fine_a, 4), outputs=coarse_a),
        "g_s.up": _subpixel_layer(g_s.up, inputs=1 / coarse_s, outputs=np.tile(fine_s, 4)),
        "g_s.project": _layer(g_s.project, inputs=1 / fine_s, outputs=np.full(192, 255, "f4")),
    }
    chains = {
        "g_a.fine": g_a.fine,
        "g_a.coarse": g_a.coarse,
        "g_s.coarse": g_s.coarse,
        "g_s.fine": g_s.fine,
    }
    for stage, blocks in chains.items():
        layers |= _block_layers(stage, blocks, scales[stage])
    for index, layer in enumerate(model.h_a.reduction):
        if isinstance(layer, nn.Conv2d):
            inputs = 1 / hyper if index == 0 else None
            layers[f"h_a.reduction.{index}"] = _layer(layer, inputs=inputs)
    return PackedTransforms(
        model.config, layers, dict.fromkeys(STAGES, 0), 1 / coarse_a, hyper, coarse_s
    )


def _block_layers(stage: str, blocks: Iterable[nn.Module], scale: Float) -> dict[str, Layer]:
    layers: dict[str, Layer] = {}
    for index, block in enumerate(blocks):
        assert isinstance(block, MixingBlock)
        parts = {
            "mix_in": _layer(block.mix_in, inputs=1 / scale),
            "depthwise": _layer(block.depthwise),
            "mix_out": _layer(block.mix_out, outputs=scale),
            "expand": _layer(block.expand, inputs=1 / scale),
            "contract": _layer(block.contract, outputs=scale),
        }
        layers |= {f"{stage}.{index}.{name}": layer for name, layer in parts.items()}
    return layers


def _layer(conv: nn.Conv2d, inputs: Float | None = None, outputs: Float | None = None) -> Layer:
    """A convolution of inputs that are to be multiplied by ``inputs``, its result by ``outputs``.

    One of stride 2 and as wide a kernel becomes a 1x1 convolution of what space_to_depth gives.
    """
    weight = float_array(conv.weight).transpose(0, 2, 3, 1)  # [O, k, k, C]
    if conv.kernel_size == (2, 2):
        weight = weight.reshape(len(weight), 1, 1, -1)
    return _scaled(weight, float_array(conv.bias), inputs, outputs)


def _subpixel_layer(conv: nn.Conv2d, inputs: Float, outputs: Float) -> Layer:
    """A 1x1 convolution before a pixel shuffle: channel 4c + s becomes s C + c."""
    weight, bias = float_array(conv.weight), float_array(conv.bias)
    order = np.arange(len(bias)).reshape(-1, 4).T.reshape(-1)
    return _scaled(weight[order].transpose(0, 2, 3, 1), bias[order], inputs, outputs)


def _scaled(weight: Array, bias: Array, inputs: Float | None, outputs: Float | None) -> Layer:
    if inputs is not None:
        weight = weight * inputs
    if outputs is not None:
        weight, bias = weight * outputs[:, None, None, None], bias * outputs
    return Layer(np.ascontiguousarray(bias), (pack_weight(np.ascontiguousarray(weight)),))


class _Calibration(CpuOps):
    """Chooses the exponent of every activation at its first use."""

    exponents: dict[str, int]

    def conv(
        self, layer: str, inputs: Sequence[Act], *, out: str | None = None, **options: Any
    ) -> Any:
        r = super().conv(layer, inputs, **options)
        return r if out is None else self.quantise(r, out)

    def depthwise(self, layer: str, x: Act, *, activation: bool = False, out: str) -> Act:
        if out not in self.exponents:
            # First with an exponent that fits whatever the input.
            weights = self.layers[layer]
            real = np.abs(weights.segments[0].weight).sum((1, 2, 3)) * weights.segments[0].scale
            bound = real * np.abs(x.q).max() * power_of_two(-x.exponent) + np.abs(weights.bias)
            self.exponents[out] = int(exponents_of(_finite(bound.max(), out)))
            q = super().depthwise(layer, x, activation=activation, out=out).q
            largest = (np.abs(q).max() + np.float32(0.5)) * power_of_two(-self.exponents[out])
            self.exponents[out] = int(exponents_of(largest))
        return super().depthwise(layer, x, activation=activation, out=out)

    def quantise(self, r: Float, out: str) -> Act:
        if out not in self.exponents:
            self.exponents[out] = int(exponents_of(_finite(np.abs(r).max(), out)))
        return super().quantise(r, out)

    def mixing_blocks(self, prefix: str, count: int, r: Float) -> Float:
        return Operations.mixing_blocks(self, prefix, count, r)


class _Ranges(_Calibration):
    """Finds the largest magnitude of every channel that is to be scaled.

    Until they are, they get an exponent in common, a new one at every use.
    """

    def __init__(self, packed: PackedTransforms) -> None:
        super().__init__(packed)
        self.packed = packed
        self.largest: dict[str, Float] = {}

    def quantise(self, r: Float, out: str) -> Act:
        if out in STAGES:
            del self.exponents[out]
            largest = np.abs(r).max((0, 1, 2))
            self.largest[out] = np.maximum(largest, self.largest.get(out, np.float32(0)))
        return super().quantise(r, out)


def _finite(largest: np.float32, name: str) -> np.float32:
    if not np.isfinite(largest):
        raise CheckpointError(f"the model cannot be packed: {name} overflows float32")
    return largest
