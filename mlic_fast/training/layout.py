"""Channels-last memory: what GPUs, and CPUs in bfloat16, convolve fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mlic_fast.models import MlicModel


def channels_last(model: MlicModel) -> MlicModel:
    """Puts the weights in channels-last order.

    Strided 1x1 convolutions subsample their input first and then run at stride 1, which is the same
    function. oneDNN's gradient for the strided form writes past its buffer when there are few input
    channels (the first skip of g_a; the process dies in ``free()``): uxlfoundation/oneDNN#6035,
    found with torch 2.13.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) != module.stride:
            module.register_forward_pre_hook(_Subsample(module.stride))
            module.stride = (1, 1)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class _Subsample:
    """Forward pre-hook that keeps every row and column of a stride."""

    def __init__(self, stride: tuple[int, ...]) -> None:
        self._stride = stride

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
        rows, columns = self._stride
        return inputs[0][:, :, ::rows, ::columns]
