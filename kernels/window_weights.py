"""Weights as the kernels of :mod:`mlic_fast.kernels.window_attention` take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlic_fast.engine.arithmetic import WINDOW, power_of_two
from mlic_fast.engine.packing.packed import Layer
from mlic_fast.kernels.functions import to_planes
from mlic_fast.kernels.product_weights import ProductWeights

TOKENS = WINDOW**2
#: Tokens of a tile: the next power of two.
TILE = 32


class Linear(NamedTuple):
    """A linear layer: weight planes [2, O, K], scale (times 2^-e of its input) and bias [O].

    ``out_scale``: 2^e of its output.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    out_scale: float

    @classmethod
    def pack(
        cls,
        layer: Layer,
        exponent: int,
        out_exponent: int,
        device: torch.device,
        order: Tensor | None = None,
    ) -> Linear:
        """``exponent`` of the input; ``order`` of the outputs, if it changes."""
        (segment,) = layer.segments
        weight = torch.from_numpy(segment.weight).flatten(1)
        scale = torch.from_numpy(segment.scale * power_of_two(-exponent))
        bias = torch.from_numpy(layer.bias)
        if order is not None:
            weight, scale, bias = weight[order], scale[order], bias[order]
        planes = to_planes(weight).to(device)
        return cls(planes, scale.to(device), bias.to(device), float(power_of_two(out_exponent)))


class Norm(NamedTuple):
    """A layer norm over C channels: gain and bias [C], epsilon times C^2 and 4^e of its input.

    ``out_scale``: 2^e of its output.
    """

    gain: Tensor
    bias: Tensor
    epsilon: float
    out_scale: float

    @classmethod
    def pack(cls, layer: Layer, exponent: int, out_exponent: int, device: torch.device) -> Norm:
        gain, bias = _array(layer.gain), _array(layer.bias)
        epsilon = np.float32(1e-5 * len(gain) ** 2) * power_of_two(2 * exponent)
        out_scale = float(power_of_two(out_exponent))
        return cls(gain.to(device), bias.to(device), float(epsilon), out_scale)


@dataclass(frozen=True)
class WindowWeights:
    """All that one local context needs on its device. Scales are 2^e, their inverses 2^-e.

    The outputs of ``qkv`` are in the order (q k v, head, d), so that a head is contiguous.
    """

    norm1: Norm
    qkv: Linear
    logit_scale: float
    #: Relative position bias [heads, TILE, TILE], padded with zeros.
    relative: Tensor
    tokens_scale: float
    fusion: ProductWeights
    fusion_scale: Tensor
    proj: Linear
    norm2: Norm
    fc1: Linear
    fc2: Linear

    @classmethod
    def pack(
        cls,
        layers: Mapping[str, Layer],
        exponents: Mapping[str, int],
        prefix: str,
        source: str,
        device: torch.device,
    ) -> WindowWeights:
        """Of the local context ``prefix`` ("local_context.3") that reads ``source`` ("y_hat.3")."""

        def exponent(name: str) -> int:
            return exponents[f"{prefix}.{name}"]

        def scale(name: str) -> float:
            return float(power_of_two(exponent(name)))

        def linear(name: str, source: str, order: Tensor | None = None) -> Linear:
            layer = layers[f"{prefix}.{name}"]
            return Linear.pack(layer, exponent(source), exponent(name), device, order)

        def norm(name: str, source_exponent: int) -> Norm:
            layer = layers[f"{prefix}.{name}"]
            return Norm.pack(layer, source_exponent, exponent(name), device)

        relative = _array(layers[f"{prefix}.attention"].bias)
        heads = len(relative)
        channels = len(layers[f"{prefix}.norm1"].bias)
        depth = channels // heads
        order = torch.arange(3 * channels).reshape(3, depth, heads).transpose(1, 2).flatten()
        pad = TILE - TOKENS
        return cls(
            norm1=norm("norm1", exponents[source]),
            qkv=linear("qkv_proj", "norm1", order),
            logit_scale=float(np.float32(depth**-0.5) * power_of_two(-2 * exponent("qkv_proj"))),
            relative=torch.nn.functional.pad(relative, (0, pad, 0, pad)).to(device),
            tokens_scale=scale("attention"),
            fusion=ProductWeights.pack(
                [layers[f"{prefix}.fusion"].segments],
                [exponent("attention")],
                [layers[f"{prefix}.fusion"].bias],
                device,
            ),
            fusion_scale=torch.full((2 * channels,), scale("fusion"), device=device),
            proj=linear("proj", "fusion"),
            norm2=norm("norm2", exponent("proj")),
            fc1=linear("mlp.fc1", "norm2"),
            fc2=linear("mlp.fc2", "mlp.fc1"),
        )


def _array(x: npt.NDArray[np.float32] | None) -> Tensor:
    assert x is not None
    return torch.from_numpy(x)
