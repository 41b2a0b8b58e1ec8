"""The transforms of the GPU engine: PyTorch's convolutions, and one kernel after each.

The output of a convolution is read and written once; GDN, activations, biases, residuals and pixel
shuffles are kernels of :mod:`mlic_fast.kernels.epilogues`. Tensors between are [B, H, W, C].
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlic_fast.engine.per_image import to_unit
from mlic_fast.kernels import epilogues
from mlic_fast.models.layers import (
    GDN,
    ResidualBlock,
    ResidualBlockUpsample,
    ResidualBlockWithStride,
)
from mlic_fast.models.mlic import Transforms
from mlic_fast.models.transforms import AnalysisTransform, SynthesisTransform


class FusedTransforms:
    """g_a, h_a and g_s in one dtype, like :class:`mlic_fast.engine.transforms.EngineTransforms`.

    Biases, sums and latents are float32, and so is the last layer of g_s with its input. All
    weights are copies.
    """

    def __init__(self, model: Transforms, dtype: torch.dtype) -> None:
        assert isinstance(model.g_a, AnalysisTransform)
        assert isinstance(model.g_s, SynthesisTransform)
        self._gain = copy.deepcopy(model.gain) if model.config.rates else None
        self._dtype = dtype
        *g_a, y = model.g_a.analysis_transform
        *h_a, z = model.h_a.reduction
        *g_s, last, pixels = model.g_s.synthesis_transform
        self._g_a = nn.Sequential(*_fused(g_a, dtype), _Biased(y, dtype))
        activated = (_Activated(each, dtype) for each in h_a if isinstance(each, nn.Conv2d))
        self._h_a = nn.Sequential(*activated, _Biased(z, dtype))
        self._g_s = nn.Sequential(*_fused(g_s, dtype), _Residual(last, dtype, torch.float32))
        self._last = _Pixels(pixels, torch.float32)

    def analyse(self, images: Tensor, rate: Tensor | None) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] -> float32 y [B, M, H/16, W/16] and z [B, N, H/64, W/64]."""
        x = to_unit(images).to(self._dtype, memory_format=torch.channels_last)
        y = self._g_a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self._gain is not None:
            y = self._gain.apply(y, rate)
        z = self._h_a(y.to(self._dtype).permute(0, 2, 3, 1))
        return y, z.permute(0, 3, 1, 2)

    def synthesise(self, y_hat: Tensor, rate: Tensor | None) -> Tensor:
        """Decoded latents [B, M, H/16, W/16] -> uint8 [B, 3, H, W]."""
        if self._gain is not None:
            y_hat = self._gain.undo(y_hat, rate)
        x = y_hat.to(self._dtype, memory_format=torch.channels_last)
        return self._last(self._g_s(x.permute(0, 2, 3, 1)))


class _Conv(nn.Module):
    """A convolution without its bias: [B, H, W, I] -> [B, H, W, O], or [B, H, W, 2, 2, O]."""

    def __init__(self, conv: nn.Module, dtype: torch.dtype, stride: int | None = None) -> None:
        super().__init__()
        self.subpixel = isinstance(conv, nn.Sequential)
        if isinstance(conv, nn.Sequential):
            conv, _ = conv  # and the pixel shuffle
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        weight, bias = conv.weight.detach(), conv.bias.detach().to(torch.float32, copy=True)
        if self.subpixel:  # from (channel, row, column) to (row, column, channel)
            weight = weight.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)
            bias = bias.unflatten(0, (-1, 2, 2)).permute(1, 2, 0).contiguous()
        self.weight = weight.to(dtype, copy=True, memory_format=torch.channels_last)
        self.bias = bias
        self.stride, self.padding = stride or conv.stride, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(
            x.permute(0, 3, 1, 2), self.weight, stride=self.stride, padding=self.padding
        ).permute(0, 2, 3, 1)
        y = y.contiguous()  # which it is already, if the convolution kept the layout
        return y.unflatten(3, (2, 2, -1)) if self.subpixel else y


class _Biased(_Conv):
    """With its bias, and float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float() + self.bias


class _Activated(_Conv):
    """With its bias, GELU and pixel shuffle."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        out = _shuffled_like(y) if self.subpixel else y
        epilogues.activate(y, self.bias, out=out)
        return out


class _Pixels(_Conv):
    """A subpixel convolution, with its bias, as an image: -> uint8 [B, 3, 2H, 2W]."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        batch, height, width = y.shape[:3]
        out = y.new_empty((batch, 3, 2 * height, 2 * width), dtype=torch.uint8)
        epilogues.to_pixels(y, self.bias, out=out)
        return out


class _Residual(nn.Module):
    """ResidualBlock, with a result of any dtype."""

    def __init__(self, block: nn.Module, dtype: torch.dtype, result: torch.dtype) -> None:
        super().__init__()
        assert isinstance(block, ResidualBlock)
        self.conv1, self.conv2 = _Activated(block.conv1, dtype), _Conv(block.conv2, dtype)
        self.skip = nn.Identity() if block.skip is None else _Biased(block.skip, dtype)
        self.result = result

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        out = y if y.dtype == self.result else torch.empty_like(y, dtype=self.result)
        epilogues.activate(y, self.conv2.bias, self.skip(x), out=out)
        return out


class _Normalised(nn.Module):
    """ResidualBlockWithStride or ResidualBlockUpsample, by their convolutions."""

    def __init__(self, conv1: _Activated, conv2: _Conv, gdn: GDN, branch: _Conv) -> None:
        super().__init__()
        self.conv1, self.conv2, self.branch = conv1, conv2, branch
        self.gdn = epilogues.GdnWeights.of(gdn, conv2.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y, branch = self.conv2(self.conv1(x)), self.branch(x)
        out = torch.empty_like(y) if self.branch.subpixel else branch
        epilogues.normalise(y, self.conv2.bias, self.gdn, branch, self.branch.bias, out=out)
        return out


def _fused(blocks: Iterable[nn.Module], dtype: torch.dtype) -> Iterable[nn.Module]:
    for block in blocks:
        if isinstance(block, ResidualBlock):
            yield _Residual(block, dtype, dtype)
        elif isinstance(block, ResidualBlockWithStride):
            skip = _Conv(block.skip, dtype, stride=2)  # only its backward pass is broken
            conv1, conv2 = _Activated(block.conv1, dtype), _Conv(block.conv2, dtype)
            yield _Normalised(conv1, conv2, block.gdn, skip)
        elif isinstance(block, ResidualBlockUpsample):
            conv1, conv2 = _Activated(block.subpel_conv, dtype), _Conv(block.conv, dtype)
            yield _Normalised(conv1, conv2, block.igdn, _Conv(block.upsample, dtype))
        else:
            raise TypeError(f"no block of the transforms: {type(block).__name__}")


def _shuffled_like(x: Tensor) -> Tensor:
    """[B, H, W, 2, 2, C] -> an array [B, 2H, 2W, C]."""
    batch, height, width, _, _, channels = x.shape
    return x.new_empty((batch, 2 * height, 2 * width, channels))
