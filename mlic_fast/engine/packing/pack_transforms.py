"""The packer of transforms: float modules -> integers, the same on every machine.

The channels of the inputs of h_a and g_s are scaled, so that activations use their whole range.
With block transforms so are those of the picture itself, which is carried in float32. These scales,
and the exponents of all other activations, are found on a test card whose flats, edges and textures
are stronger than those of photographs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlic_fast.engine.arithmetic import (
    ACTIVATION_LIMIT,
    Act,
    Float,
    power_of_two,
)
from mlic_fast.engine.exact_transforms import ExactTransforms, hyper_analysis
from mlic_fast.engine.packing.calibration import CalibratingOps
from mlic_fast.engine.packing.integer_weights import Known, Weights, pack_weight, weights_of
from mlic_fast.engine.packing.packed import Layer, PackedTransforms
from mlic_fast.engine.residual_networks import ANALYSIS, BLOCKS, SYNTHESIS
from mlic_fast.models.config import MlicConfig

if TYPE_CHECKING:
    from mlic_fast.models.mlic import Transforms

#: How far a channel may exceed the largest value seen before it saturates.
HEADROOM = 1.5
#: Smaller largest values of a channel count as this.
SMALLEST = np.float32(2.0**-20)
#: The test card: its side, the side of its tiles, and the number of rectangles.
SIDE = 384
TILE = 64
LEAVES = 3400

Array = npt.NDArray[Any]
Scales = dict[str, Float]


def pack_transforms(model: Transforms) -> PackedTransforms:
    """Quantise g_a, h_a and g_s of a model.

    Raises CheckpointError for weights so large that activations overflow.
    """
    config, weights = model.config, weights_of(model)
    kind = config.transform_kind
    ones = {
        stage: np.ones(config.block_channels if "fine" in stage else config.M, np.float32)
        for stage in kind.stages
    }
    unscaled = transform_layers(config, weights, ones, {})
    ranges = _ChannelRanges(unscaled)
    transforms = ExactTransforms(unscaled, ranges)
    y = transforms.networks.analysis(ranges, calibration_card())
    inputs = _inputs(transforms, y)
    if kind.analysis_stage is None:  # nothing but the inputs of h_a and g_s is scaled
        for stage, x in zip(kind.stages, inputs, strict=True):
            ranges.see(stage, x)
    else:
        _after_analysis(transforms, inputs)
    scales = {
        stage: np.float32(ACTIVATION_LIMIT / HEADROOM) / np.maximum(ranges.largest[stage], SMALLEST)
        for stage in kind.stages
    }
    packed = transform_layers(config, weights, scales, {})
    transforms = ExactTransforms(packed, _TransformCalibration(packed))
    if kind.analysis_stage is None:  # g_a has not changed
        packed.exponents.update({**ranges.exponents, **packed.exponents})
    else:
        y = transforms.networks.analysis(transforms.ops, calibration_card())
    _after_analysis(transforms, _inputs(transforms, y))
    return packed


def _inputs(transforms: ExactTransforms, y: Float) -> tuple[Float, Float]:
    """The inputs of h_a and g_s at the lowest and the highest rate, from the result of g_a."""
    ops, config = transforms.ops, transforms.packed.config
    rates = (0.0, config.rates - 1.0) if config.rates else (None,)
    scales = [transforms.scales(rate) for rate in rates]
    latents = [ops.scale(y, analysis_scale) for analysis_scale, _ in scales]
    scaled = [ops.scale(np.rint(y), scale) for y, (_, scale) in zip(latents, scales, strict=True)]
    hyper = np.concatenate(latents) * transforms.packed.hyper_scale
    return hyper, np.concatenate(scaled)


def _after_analysis(transforms: ExactTransforms, inputs: tuple[Float, Float]) -> None:
    hyper_analysis(transforms.ops, inputs[0])
    transforms.networks.synthesis(transforms.ops, inputs[1])


def calibration_card() -> npt.NDArray[np.uint8]:
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
    return card[None]


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


def transform_layers(
    config: MlicConfig, weights: Weights, scales: Scales, known: Known
) -> PackedTransforms:
    """All layers, for channels that are scaled; no exponents but those of the scaled channels.

    ``known``: see :mod:`mlic_fast.engine.packing.integer_weights`.
    """
    make = _Layers(weights, known)
    _LAYERS[config.transforms](make, config, scales)
    for index in (0, 2, 4, 6, 8):
        make.layer(f"h_a.reduction.{index}", inputs=1 / scales["h_a"] if index == 0 else None)
    no_gain = np.zeros((0, config.M), np.float32)
    return PackedTransforms(
        config,
        make.layers,
        dict.fromkeys(config.transform_kind.stages, 0),
        log_gain=weights.get("gain.log_gain", no_gain),
        log_inverse_gain=weights.get("gain.log_inverse_gain", no_gain),
        stages=scales,
    )


def _make_block_layers(make: _Layers, config: MlicConfig, scales: Scales) -> None:
    fine_a, coarse_a = scales["g_a.fine"], scales["g_a.coarse"]
    coarse_s, fine_s = scales["g_s.coarse"], scales["g_s.fine"]
    make.layer("g_a.embed", inputs=np.full(192, 1 / 255, np.float32), outputs=fine_a)
    make.layer("g_a.down", inputs=1 / np.tile(fine_a, 4), outputs=coarse_a)
    make.layer("g_s.up", inputs=1 / coarse_s, outputs=np.tile(fine_s, 4), subpixel=True)
    make.layer("g_s.project", inputs=1 / fine_s, outputs=np.full(192, 255, "f4"))
    counts = dict(zip(("g_a.fine", "g_a.coarse"), config.analysis_blocks, strict=True))
    counts |= dict(zip(("g_s.fine", "g_s.coarse"), config.synthesis_blocks, strict=True))
    for stage, count in counts.items():
        for index in range(count):
            make.block(f"{stage}.{index}", scales[stage])


def _make_residual_layers(make: _Layers, config: MlicConfig, scales: Scales) -> None:
    weights, scale = make.weights, scales["g_s"]
    pixel = np.full(3, 1 / 255, np.float32)
    last = f"{SYNTHESIS}.{BLOCKS + 1}.0"
    skip = f"{SYNTHESIS}.0.skip"
    if f"{skip}.weight" not in weights:  # what is added is scaled back
        identity = np.eye(len(scale), dtype=np.float32)[:, :, None, None]
        unchanged = {f"{skip}.weight": identity, f"{skip}.bias": np.zeros_like(scale)}
        make.weights = weights = {**weights, **unchanged}
    for key in weights:
        name, _, kind = key.rpartition(".")
        if not name.startswith(("g_a.", "g_s.")) or kind not in ("weight", "gamma"):
            continue
        inputs = outputs = None
        if name.startswith(f"{ANALYSIS}.0.") and weights[key].shape[1] == 3:
            inputs = pixel
        elif name in (f"{SYNTHESIS}.0.conv1", skip):
            inputs = 1 / scale
        elif name == last:
            outputs = np.full(12, 255, np.float32)
        if kind == "gamma":
            make.gdn(name)
        else:
            subpixel = name == last or name.endswith(("subpel_conv.0", "upsample.0"))
            make.layer(name, inputs=inputs, outputs=outputs, subpixel=subpixel)


#: What makes the layers of g_a and g_s, by the kind of transforms.
_LAYERS = {"residual": _make_residual_layers, "blocks": _make_block_layers}


class _Layers:
    """Makes packed layers and keeps them in ``layers``, by the names of the float model."""

    def __init__(self, weights: Weights, known: Known) -> None:
        self.weights, self._known = weights, known
        self.layers: dict[str, Layer] = {}

    def block(self, name: str, scale: Float) -> None:
        """A :class:`mlic_fast.models.layers.MixingBlock` of a picture that is scaled."""
        self.layer(f"{name}.mix_in", inputs=1 / scale)
        self.layer(f"{name}.depthwise")
        self.layer(f"{name}.mix_out", outputs=scale)
        self.layer(f"{name}.expand", inputs=1 / scale)
        self.layer(f"{name}.contract", outputs=scale)

    def gdn(self, name: str) -> None:
        """A :class:`mlic_fast.models.layers.GDN`: a 1x1 layer of squares, which come in two
        parts.
        """
        beta, gamma = (_non_negative(self.weights, f"{name}.{kind}") for kind in ("beta", "gamma"))
        known = self._known.get(f"{name}.0")
        segment = pack_weight(np.ascontiguousarray(gamma[:, None, None, :]), known)
        self.layers[name] = Layer(beta, (segment, segment))

    def layer(
        self,
        name: str,
        *,
        inputs: Float | None = None,
        outputs: Float | None = None,
        subpixel: bool = False,
    ) -> None:
        """A convolution. Weights are multiplied by ``inputs`` for each input channel, weights and
        bias by ``outputs`` for each output channel.

        A 2x2 convolution of stride 2 becomes a 1x1 convolution of the result of space_to_depth.
        With ``subpixel``, a 1x1 convolution before a pixel shuffle: channel 4c + s becomes s C + c.
        """
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        weight = weight.transpose(0, 2, 3, 1)  # [O, k, k, C]
        if subpixel:
            order = np.arange(len(bias)).reshape(-1, 4).T.reshape(-1)
            weight, bias = weight[order], bias[order]
        if weight.shape[1] == 2:
            weight = weight.reshape(len(weight), 1, 1, -1)
        if inputs is not None:
            weight = weight * inputs
        if outputs is not None:
            weight, bias = weight * outputs[:, None, None, None], bias * outputs
        segment = pack_weight(np.ascontiguousarray(weight), self._known.get(f"{name}.0"))
        self.layers[name] = Layer(np.ascontiguousarray(bias), (segment,))


def _non_negative(weights: Weights, name: str) -> Float:
    """A parameter as :class:`mlic_fast.models.layers.NonNegativeParameter` gives it."""
    bound = weights[f"{name}_reparam.lower_bound.bound"]
    root: Float = np.maximum(weights[name], bound)
    return root * root - weights[f"{name}_reparam.pedestal"]


class _TransformCalibration(CalibratingOps):
    """The exponents of transforms.

    The exponents of squares and of depthwise layers are found from the inputs of these.
    """

    def squares(self, r: Float, out: str) -> list[Act]:
        if out not in self.exponents:
            largest = np.abs(r).max()
            self.choose(out, largest * largest)
        return super().squares(r, out)

    def depthwise(self, layer: str, x: Act, *, gelu_after: bool = False, out: str) -> Act:
        if out not in self.exponents:
            # First an exponent that fits any input with such a largest value.
            weights = self.layers[layer]
            real = np.abs(weights.segments[0].weight).sum((1, 2, 3)) * weights.segments[0].scale
            bound = real * np.abs(x.q).max() * power_of_two(-x.exponent) + np.abs(weights.bias)
            self.choose(out, bound.max())
            q = self._cpu.depthwise(layer, x, gelu_after=gelu_after, out=out).q
            largest = (np.abs(q).max() + np.float32(0.5)) * power_of_two(-self.exponents[out])
            self.choose(out, largest)
        return self._cpu.depthwise(layer, x, gelu_after=gelu_after, out=out)


class _ChannelRanges(_TransformCalibration):
    """Finds the largest magnitude of every channel that is to be scaled.

    These channels have one exponent in common here, a new one at every use.

    Attributes:
        largest: float32 [C] by stage.
    """

    def __init__(self, packed: PackedTransforms) -> None:
        super().__init__(packed)
        self.packed = packed
        self.largest: dict[str, Float] = {}

    def quantise(self, r: Float, out: str) -> Act:
        if out in self.packed.stages:
            del self.exponents[out]
            self.see(out, r)
        return super().quantise(r, out)

    def see(self, stage: str, r: Float) -> None:
        """Takes note of what a stage is given, float32 [B, H, W, C]."""
        largest = np.abs(r).max((0, 1, 2))
        self.largest[stage] = np.maximum(largest, self.largest.get(stage, np.float32(0)))
