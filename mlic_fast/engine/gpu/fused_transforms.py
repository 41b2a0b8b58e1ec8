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

from mlic_fast.kernels import epilogues
from mlic_fast.models.layers import (
    ResidualBlock,
    ResidualBlockUpsample,
    ResidualBlockWithStride,
)
from mlic_fast.models.mlic import Transforms
from mlic_fast.models.transforms import AnalysisTransform, SynthesisTransform


class FusedTransforms:
    """g_a, h_a and g_s in one dtype.

    Biases, sums and latents are float32. The last layer of g_s and its input are float16 where the
    dtype is bfloat16: pixels of 8 bits need more than its 8 bits. All weights are copies.
    """

    def __init__(self, model: Transforms, dtype: torch.dtype) -> None:
        assert isinstance(model.g_a, AnalysisTransform)
        assert isinstance(model.g_s, SynthesisTransform)
        self._gain = copy.deepcopy(model.gain) if model.config.rates else None
        self._dtype = dtype
        first, *g_a, y = model.g_a.analysis_transform
        *h_a, z = model.h_a.reduction
        *g_s, last, pixels = model.g_s.synthesis_transform
        self._g_a = nn.Sequential(_First(first, dtype), *_fused(g_a, dtype), _Biased(y, dtype))
        activated = (_Activated(each, dtype) for each in h_a if isinstance(each, nn.Conv2d))
        self._h_a = nn.Sequential(*activated, _Biased(z, dtype))
        finest = torch.float32 if dtype is torch.float32 else torch.float16
        self._g_s = nn.Sequential(*_fused(g_s, dtype), _Residual(last, dtype, finest))
        self._last = _Pixels(pixels, finest)

    def analyse(self, images: Tensor, rate: Tensor | None) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] -> float32 y [B, M, H/16, W/16] and z [B, N, H/64, W/64]."""
        y = self._g_a(images.contiguous()).permute(0, 3, 1, 2)
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


def convolve(
    x: Tensor, weight: Tensor, stride: tuple[int, ...] = (1, 1), padding: tuple[int, ...] = (0, 0)
) -> Tensor:
    """[B, H, W, I] -> [B, H, W, O], contiguous."""
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, stride=stride, padding=padding)
    y = y.permute(0, 2, 3, 1).contiguous()  # which it is already, if it kept the layout
    return y.flatten().view(y.shape)  # strides of sides of 1 as well


class _Conv(nn.Module):
    """A convolution without its bias: [B, H, W, I] -> [B, H, W, O], or [B, H, W, 2, 2, O].

    One of the three colours takes them with zeros beside them.
    """

    def __init__(self, conv: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.subpixel = isinstance(conv, nn.Sequential)
        if isinstance(conv, nn.Sequential):
            conv, _ = conv  # and the pixel shuffle
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        weight, bias = conv.weight.detach(), conv.bias.detach().to(torch.float32, copy=True)
        if conv.in_channels == 3:
            weight = F.pad(weight, (0, 0, 0, 0, 0, epilogues.PADDED - 3))
        if self.subpixel:  # from (channel, row, column) to (row, column, channel)
            weight = weight.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)
            bias = bias.unflatten(0, (-1, 2, 2)).permute(1, 2, 0).contiguous()
        self.weight = weight.to(dtype, copy=True, memory_format=torch.channels_last)
        self.bias = bias
        assert not isinstance(conv.padding, str)
        self.stride, self.padding = conv.stride, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(x, self.weight, self.stride, self.padding)
        return y.unflatten(3, (2, 2, -1)) if self.subpixel else y


class _Biased(_Conv):
    """With its bias, and float32."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        out = torch.empty_like(y, dtype=torch.float32)
        epilogues.activate(y, self.bias, gelu=False, out=out)
        return out


class _Activated(_Conv):
    """With its bias and GELU."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        epilogues.activate(y, self.bias, out=y)
        return y


class _Pixels(nn.Module):
    """A subpixel 3x3 convolution, with its bias, as an image: -> uint8 [B, 3, 2H, 2W].

    Its nine taps are the outputs of a 1x1 convolution.
    """

    def __init__(self, conv: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        last = _Conv(conv, dtype)
        taps = last.weight.permute(2, 3, 0, 1).flatten(0, 2)  # [9 * 12, I]
        taps = F.pad(taps, (0, 0, 0, epilogues.TAP_OUTPUTS - len(taps)))
        self.weight = taps[:, :, None, None].contiguous(memory_format=torch.channels_last)
        self.bias = last.bias

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(x, self.weight)
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


class _Strided(nn.Module):
    """ResidualBlockWithStride, its skip in the kernel of its GDN."""

    def __init__(self, block: ResidualBlockWithStride, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv1, self.conv2 = _Activated(block.conv1, dtype), _Conv(block.conv2, dtype)
        self.gdn = epilogues.GdnWeights.pack(block.gdn, dtype)
        skip = _Conv(block.skip, dtype)
        weight = skip.weight[:, :, 0, 0].T.contiguous()
        self.skip, self.skip_bias = weight.to(epilogues.multiplied(dtype)), skip.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv1(x), x)

    def second(self, activated: Tensor, x: Tensor) -> Tensor:
        """What follows the first convolution; x is the input, or its even rows and columns."""
        y = self.conv2(activated)
        out = torch.empty_like(y)
        epilogues.normalise(y, self.conv2.bias, self.gdn, x, self.skip_bias, self.skip, out=out)
        return out


class _First(_Strided):
    """The block that takes images: uint8 [B, 3, H, W] -> [B, H/2, W/2, C]."""

    def __init__(self, block: nn.Module, dtype: torch.dtype) -> None:
        assert isinstance(block, ResidualBlockWithStride)
        super().__init__(block, dtype)
        weight = block.conv1.weight.detach().flatten(1).T  # [27, C]
        weight = F.pad(weight, (0, 0, 0, epilogues.FIRST_DEPTH - len(weight)))
        self.weight = weight.to(epilogues.multiplied(dtype), copy=True).contiguous()
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        shape = batch, height // 2, width // 2
        out, centres = (
            torch.empty((*shape, channels), dtype=self.dtype, device=images.device)
            for channels in (self.weight.shape[1], epilogues.PADDED)
        )
        epilogues.first(images, self.weight, self.conv1.bias, out=out, centres=centres)
        return self.second(out, centres)


class _Upsampled(nn.Module):
    """ResidualBlockUpsample, both of its subpixel convolutions in one."""

    def __init__(self, block: ResidualBlockUpsample, dtype: torch.dtype) -> None:
        super().__init__()
        first, branch = _Conv(block.subpel_conv, dtype), _Conv(block.upsample, dtype)
        self.bias, self.branch_bias = first.bias, branch.bias
        self.weight = torch.cat([first.weight, branch.weight])
        self.padding = first.padding
        self.conv2 = _Conv(block.conv, dtype)
        self.gdn = epilogues.GdnWeights.pack(block.igdn, dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(x, self.weight, padding=self.padding)
        first, branch = y.unflatten(3, (2, 2, 2, -1)).unbind(3)
        activated = _shuffled_like(first)
        epilogues.activate(first, self.bias, out=activated)
        y = self.conv2(activated)
        out = torch.empty_like(y)
        epilogues.normalise(y, self.conv2.bias, self.gdn, branch, self.branch_bias, out=out)
        return out


def _fused(blocks: Iterable[nn.Module], dtype: torch.dtype) -> Iterable[nn.Module]:
    for block in blocks:
        if isinstance(block, ResidualBlock):
            yield _Residual(block, dtype, dtype)
        elif isinstance(block, ResidualBlockWithStride):
            yield _Strided(block, dtype)
        elif isinstance(block, ResidualBlockUpsample):
            yield _Upsampled(block, dtype)
        else:
            raise TypeError(f"no block of the transforms: {type(block).__name__}")


def _shuffled_like(x: Tensor) -> Tensor:
    """[B, H, W, 2, 2, C] -> an array [B, 2H, 2W, C]."""
    batch, height, width, _, _, channels = x.shape
    return x.new_empty((batch, 2 * height, 2 * width, channels))
