"""Float weights -> layers in integers.

Weights are float32 arrays by the names of the float model, so that a file is read without PyTorch.
Wherever a scale is found here, one that is known already may be given instead: ``known``, by the
name of the layer and the number of its segment, saves the search and changes no bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlic_fast.coder import SCALES
from mlic_fast.engine.arithmetic import ACTIVATION_LIMIT, WEIGHT_LIMIT, WINDOW, Float
from mlic_fast.engine.packing.packed import Layer, Segment
from mlic_fast.models.config import MlicConfig
from mlic_fast.models.networks import TRANSFORMS, exact_inputs
from mlic_fast.models.parity import Parity

if TYPE_CHECKING:
    from mlic_fast.models.mlic import Transforms

Array = npt.NDArray[Any]
Weights = Mapping[str, Array]
Known = Mapping[str, Float]

#: Scales are packed smaller by half a step between tables. The table of a scale is the first that
#: is not below it, so each gets the nearest table: 0.2 to 0.4 % of the bits.
SCALE_FACTOR = np.float32((SCALES[0] / SCALES[-1]) ** (0.5 / (len(SCALES) - 1)))

#: A channel whose weights are all below this is packed as zero.
SMALLEST_WEIGHT = 2.0**-100

#: Largest sum of the magnitudes of an output channel's weights: any product then fits int32.
BUDGET = (2**31 - 1) // ACTIVATION_LIMIT


def weights_of(model: Transforms) -> dict[str, Array]:
    """The weights of a float model.

    They are copies, which nobody else can free or change: a packed model outlives the float one.
    """
    return {name: _copied(tensor) for name, tensor in model.state_dict().items()}


def _copied(tensor: Any) -> Array:
    tensor = tensor.detach().cpu()
    return np.array((tensor.float() if tensor.is_floating_point() else tensor).numpy(), order="C")


def pack_weight(weight: Array, scale: Float | None = None) -> Segment:
    """Float weight [O, k, k, C] -> integers whose product with any activation fits int32."""
    searched = scale is None
    if scale is None:
        scale = _scale(weight)
    # Scales are rounded, but by far too little to take the largest weight beyond the limit.
    real = weight / scale.astype(np.float64).reshape(-1, 1, 1, 1)
    q = np.rint(real, out=real).astype(np.int16)
    assert not searched or sums(q).max() <= BUDGET
    return Segment(q, scale)


def sums(weight: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Sum of magnitudes of each output channel: [O, k, k, C] -> [O]."""
    return np.abs(weight.astype(np.int32)).reshape(len(weight), -1).sum(1, dtype=np.int64)


def _scale(weight: Array) -> Float:
    w = weight.astype(np.float64)
    flat = np.abs(w).reshape(len(w), -1)
    largest = flat.max(axis=1)
    # Too small for a scale in float32 (training leaves such subnormal rests): nothing.
    largest[largest < SMALLEST_WEIGHT] = 0
    # The sum of magnitudes, in units of the largest and exactly: no order of adding matters.
    unit = np.where(largest > 0, largest, 1.0)
    total = np.rint(flat / unit[:, None] * 2.0**40).astype(np.int64).sum(axis=1) / 2.0**40 * unit
    # Rounding may add a half to every weight.
    scale = np.maximum(largest / WEIGHT_LIMIT, total / (BUDGET - flat.shape[1] / 2))
    return np.where(largest > 0, scale, 1.0).astype(np.float32)


def path_layers(config: MlicConfig, weights: Weights, known: Known) -> dict[str, Layer]:
    """The layers of the entropy path."""
    medians = weights["entropy_bottleneck.quantiles"][:, 0, 1]
    layers = {"medians": Layer(np.ascontiguousarray(medians))}
    for key in weights:
        name, _, kind = key.rpartition(".")
        if name.startswith(TRANSFORMS) or kind not in ("weight", "relative_position_table"):
            continue
        array = weights[key]
        if kind == "relative_position_table":
            bias = array[weights[f"{name}.relative_position_index"]]
            layers[f"{name}.attention"] = Layer(np.ascontiguousarray(bias.transpose(2, 0, 1)))
        elif array.ndim == 1:  # a norm
            layers[name] = Layer(weights[f"{name}.bias"], gain=array)
        else:
            layers[name] = _product(config, name, array, weights[f"{name}.bias"], known)
    return layers


def _product(config: MlicConfig, name: str, weight: Array, bias: Array, known: Known) -> Layer:
    """A convolution, or a linear layer [O, C]."""
    root = name.partition(".")[0]
    if weight.ndim == 2:
        weight = weight[:, :, None, None]
    if root.startswith("entropy_parameters") and name.endswith("fusion.6"):
        scales = np.arange(len(bias)) < config.slice_channels  # then come the means
        weight = np.where(scales[:, None, None, None], weight * SCALE_FACTOR, weight)
        bias = np.where(scales, bias * SCALE_FACTOR, bias)
    if root == "local_context" and config.variant == "mlic":
        rows, columns = np.mgrid[:WINDOW, :WINDOW]
        weight = weight * ((rows + columns) % 2 == Parity.ANCHOR).astype(np.float32)
    weight = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))  # [O, k, k, C]
    if root == "local_context" and config.variant != "mlic":
        # The windows come as vectors of 25 tokens times C: the fusion is a 1x1 convolution.
        weight = weight.reshape(len(weight), 1, 1, -1)
    parts = exact_inputs(config, name, weight.shape[-1])
    segments = (
        pack_weight(weight[..., part], known.get(f"{name}.{i}")) for i, part in enumerate(parts)
    )
    return Layer(bias, tuple(segments))
