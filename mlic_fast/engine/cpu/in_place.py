"""The blocks of residual transforms as an engine runs them on a CPU: GELU in the convolution before
it, the rest element by element in place.

A fresh array of a photograph's size costs a CPU as much as what is done with it. The operations and
their order are those of :mod:`mlic_fast.models.layers`; in bfloat16 GELU sees what is not rounded
yet. Nothing here depends on the number of threads: PyTorch cuts arrays into as many parts, and
computes the last few elements of a part in another way, which GELU and the inverse root show; and
oneDNN cuts the sums of a few outputs of a layer of stride 2. The GPU has
:mod:`mlic_fast.engine.gpu.fused_transforms` instead.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
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

#: Inputs of up to so many positions go through layers of stride 2 at a stride of 1.
FEW = 1024


def run_in_place(module: nn.Module) -> nn.Module:
    """The module, whose blocks no longer keep what they compute on; for inference alone."""
    for each in module.modules():
        forward = _FORWARD.get(type(each))
        if forward is not None:
            each.forward = MethodType(forward, each)
    return module


def _convolve(conv: nn.Module, x: Tensor, activation: bool = False) -> Tensor:
    """A convolution, and GELU of it in the same pass where oneDNN can."""
    assert isinstance(conv, nn.Conv2d) and isinstance(conv.padding, tuple)
    step = conv.stride[0]
    few = step > 1 and x.shape[2] * x.shape[3] <= FEW
    stride = [1, 1] if few else list(conv.stride)
    padding, dilation = list(conv.padding), list(conv.dilation)
    fuses = activation and _fuses(x)

    def compute() -> Tensor:
        arguments = (x, conv.weight, conv.bias)
        if not fuses:
            return F.conv2d(*arguments, stride, padding, dilation, conv.groups)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            *arguments, padding, stride, dilation, conv.groups, "gelu", [], "none"
        )
        return out

    try:
        out = compute()
    except RuntimeError as error:
        if "could not create a primitive" not in str(error):
            raise
        try:
            out = _in_another_thread(compute)
        except RuntimeError as again:  # of this thread, or of the other one
            raise MemoryError(f"{again}, after: {error}") from error
    if activation and not fuses:
        out = torch.ops.aten.gelu_(out)
    return out[..., ::step, ::step].contiguous(memory_format=torch.channels_last) if few else out


def _in_another_thread(compute: Callable[[], Tensor]) -> Tensor:
    """The result, or the error, of a call in a thread of its own.

    A thread in which oneDNN once had no memory for a kernel's code makes no new kernel again, for
    its assembler keeps the error. The other thread works alone, as OpenMP ends the process where
    it has no memory for more.
    """
    threads = torch.get_num_threads()

    def work() -> Tensor:
        torch.set_num_threads(1)
        try:
            with torch.no_grad():
                return compute()
        finally:
            torch.set_num_threads(threads)

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()


def _fuses(x: Tensor) -> bool:
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if x.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return x.dtype == torch.float32


def _sequential(self: nn.Sequential, x: Tensor) -> Tensor:
    for layer, following in pairwise([*self, None]):
        if isinstance(layer, nn.Conv2d):
            x = _convolve(layer, x, isinstance(following, nn.GELU))
        elif not isinstance(layer, nn.GELU):
            x = layer(x)
    return x


def _gdn(self: GDN, x: Tensor) -> Tensor:
    channels = x.shape[1]
    beta = self.beta_reparam(self.beta)
    gamma = self.gamma_reparam(self.gamma).reshape(channels, channels, 1, 1)
    norm = F.conv2d(x**2, gamma, beta).sqrt_()
    return norm.mul_(x) if self.inverse else torch.div(x, norm, out=norm)


def _residual_block(self: ResidualBlock, x: Tensor) -> Tensor:
    out = _convolve(self.conv2, _convolve(self.conv1, x, True), True)
    return out.add_(x if self.skip is None else self.skip(x))


def _with_stride(self: ResidualBlockWithStride, x: Tensor) -> Tensor:
    out = self.gdn(self.conv2(_convolve(self.conv1, x, True)))
    return out.add_(self.skip(x[..., ::2, ::2]))


def _upsample(self: ResidualBlockUpsample, x: Tensor) -> Tensor:
    conv, shuffle = self.subpel_conv
    return self.igdn(self.conv(shuffle(_convolve(conv, x, True)))).add_(self.upsample(x))


_FORWARD: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Sequential: _sequential,
    GDN: _gdn,
    ResidualBlock: _residual_block,
    ResidualBlockWithStride: _with_stride,
    ResidualBlockUpsample: _upsample,
}
