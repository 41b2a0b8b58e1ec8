"""Weights of products as the kernels of :mod:`mlic_fast.kernels.products` take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mlic_fast.engine.packing.packed import Segment
from mlic_fast.kernels.configs import product_step
from mlic_fast.kernels.functions import to_planes


@dataclass(frozen=True)
class ProductWeights:
    """Weights of one or several layers (side by side in the outputs) for inputs of equal width.

    Attributes:
        planes: int8 [2, inputs * taps * blocks, O, BLOCK_K], zero beyond the channels.
        scale: float32 [inputs, O], the weights' scale times 2^-exponent of the input.
        bias: float32 [O].
        channels: of one input.
        kernel: 1, 3 or 5.
    """

    planes: Tensor
    scale: Tensor
    bias: Tensor
    channels: int
    kernel: int

    @cached_property
    def outputs(self) -> int:
        return self.planes.shape[2]

    @cached_property
    def block_k(self) -> int:
        return self.planes.shape[3]

    @cached_property
    def stride_plane(self) -> int:
        return self.planes.stride(0)

    @classmethod
    def pack(
        cls,
        segments: Sequence[Sequence[Segment]],
        exponents: Sequence[int],
        biases: Sequence[np.ndarray],
        device: torch.device,
    ) -> ProductWeights:
        """Weights of layers (outer) and inputs (inner) -> what :func:`conv` takes.

        ``exponents``: of the inputs. ``biases``: float32 [O] of each layer.
        """
        weight = np.stack(  # [inputs, O, k, k, C]
            [np.concatenate([s.weight for s in parts]) for parts in zip(*segments, strict=True)]
        )
        scale = np.stack(
            [
                np.concatenate([s.scale for s in parts]) * np.ldexp(np.float32(1), -exponent)
                for parts, exponent in zip(zip(*segments, strict=True), exponents, strict=True)
            ]
        )
        inputs, outputs, kernel, _, channels = weight.shape
        block_k = product_step(device, channels)
        blocks = -(-channels // block_k)
        padded = np.zeros((inputs, outputs, kernel * kernel, blocks * block_k), np.int16)
        padded[..., :channels] = weight.reshape(inputs, outputs, kernel * kernel, channels)
        ordered = padded.reshape(inputs, outputs, -1, block_k).swapaxes(1, 2)
        planes = to_planes(torch.from_numpy(ordered.astype(np.int32)))
        return cls(
            planes.reshape(2, -1, outputs, block_k).to(device),
            torch.from_numpy(scale).to(device),
            torch.from_numpy(np.concatenate(biases)).to(device),
            channels,
            kernel,
        )
