"""The blocks of residual transforms as an engine runs them on a CPU: element by element in place.

A fresh array of a photograph's size costs a CPU as much as what is done with it. Nothing here
changes a bit: the operations and their order are those of :mod:`mlic_fast.models.layers`. The GPU
has :mod:`mlic_fast.engine.fused` instead.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlic_fast.models.layers import (
    GDN,
    ResidualBlock,
    ResidualBlockUpsample,
    ResidualBlockWithStride,
)

_gelu = torch.ops.aten.gelu_


def run_in_place(module: nn.Module) -> nn.Module:
    """The module, whose blocks no longer keep what they compute on; for inference alone."""
    for each in module.modules():
        forward = _FORWARD.get(type(each))
        if forward is not None:
            each.forward = MethodType(forward, each)
    return module


def _activation(self: nn.GELU, x: Tensor) -> Tensor:
    return _gelu(x)


def _gdn(self: GDN, x: Tensor) -> Tensor:
    channels = x.shape[1]
    beta = self.beta_reparam(self.beta)
    gamma = self.gamma_reparam(self.gamma).reshape(channels, channels, 1, 1)
    norm = F.conv2d(x**2, gamma, beta)
    return (norm.sqrt_() if self.inverse else norm.rsqrt_()).mul_(x)


def _residual_block(self: ResidualBlock, x: Tensor) -> Tensor:
    out = _gelu(self.conv2(_gelu(self.conv1(x))))
    return out.add_(x if self.skip is None else self.skip(x))


def _with_stride(self: ResidualBlockWithStride, x: Tensor) -> Tensor:
    out = self.gdn(self.conv2(_gelu(self.conv1(x))))
    return out.add_(self.skip(x[..., ::2, ::2]))


def _upsample(self: ResidualBlockUpsample, x: Tensor) -> Tensor:
    return self.igdn(self.conv(_gelu(self.subpel_conv(x)))).add_(self.upsample(x))


#: An activation alone follows a convolution everywhere, whose output is nobody else's.
_FORWARD: dict[type[nn.Module], Callable[..., Any]] = {
    nn.GELU: _activation,
    GDN: _gdn,
    ResidualBlock: _residual_block,
    ResidualBlockWithStride: _with_stride,
    ResidualBlockUpsample: _upsample,
}
