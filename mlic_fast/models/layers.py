"""Building blocks of the transforms (MLIC++, section 3.1; names follow the published weights)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
    """[B, in_channels, H, W] -> [B, out_channels, H, W]."""
    return nn.Conv2d(in_channels, out_channels, 1)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride], zero padded."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)


def subpel_conv3x3(in_channels: int, out_channels: int, factor: int = 2) -> nn.Sequential:
    """3x3 convolution and pixel shuffle: [B, C, H, W] -> [B, D, H * factor, W * factor]."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels * factor**2, 3, padding=1), nn.PixelShuffle(factor)
    )


class MixingBlock(nn.Module):
    """x + 1x1(depthwise 3x3(gelu(1x1 x))), then x + 1x1(gelu(1x1 x)) of twice the width.

    A fresh block is the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix_in = conv1x1(channels, channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.mix_out = conv1x1(channels, channels)
        self.expand = conv1x1(channels, 2 * channels)
        self.contract = conv1x1(2 * channels, channels)
        for last in (self.mix_out, self.contract):
            nn.init.zeros_(last.weight)
            assert last.bias is not None
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix_out(self.depthwise(F.gelu(self.mix_in(x))))
        return x + self.contract(F.gelu(self.expand(x)))


class _LowerBound(torch.autograd.Function):
    """max(x, bound), with a gradient that lets x come back from below the bound."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: Tensor) -> Tensor:
        ctx.save_for_backward(x, bound)
        return torch.maximum(x, bound)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, bound = ctx.saved_tensors
        return gradient * ((x >= bound) | (gradient < 0)), None


class LowerBound(nn.Module):
    """max(x, bound) elementwise."""

    bound: Tensor

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.register_buffer("bound", torch.tensor([float(bound)], dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return _LowerBound.apply(x, self.bound)


class NonNegativeParameter(nn.Module):
    """Reparametrisation that keeps a parameter at or above ``minimum``: max(p, b)^2 - 2^-36."""

    pedestal: Tensor

    def __init__(self, minimum: float = 0.0) -> None:
        super().__init__()
        pedestal = 2.0**-36
        self.register_buffer("pedestal", torch.tensor([pedestal], dtype=torch.float32))
        self.lower_bound = LowerBound((minimum + pedestal) ** 0.5)

    @staticmethod
    def initial(value: float) -> float:
        """What the parameter is where the reparametrised one is to be ``value``, at least 0."""
        return math.sqrt(value + 2.0**-36)

    def forward(self, parameter: Tensor) -> Tensor:
        return self.lower_bound(parameter) ** 2 - self.pedestal


class GDN(nn.Module):
    """Generalised divisive normalisation (Balle et al., ICLR 2016).

    y_c = x_c / sqrt(beta_c + sum_k gamma_ck x_k^2), times the root for the inverse. [B, C, H, W].
    """

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta_reparam = NonNegativeParameter(minimum=1e-6)
        self.gamma_reparam = NonNegativeParameter()
        initial = NonNegativeParameter.initial
        self.beta = nn.Parameter(torch.full((channels,), initial(1.0)))
        gamma = torch.full((channels, channels), initial(0.0)).fill_diagonal_(initial(0.1))
        self.gamma = nn.Parameter(gamma)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        beta = self.beta_reparam(self.beta)
        gamma = self.gamma_reparam(self.gamma).reshape(channels, channels, 1, 1)
        norm = F.conv2d(x**2, gamma, beta)
        return x * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))


class ResidualBlock(nn.Module):
    """conv3x3, GELU, conv3x3, GELU, plus the input (through 1x1 where channels differ)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.skip = conv1x1(in_channels, out_channels) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return out + (x if self.skip is None else self.skip(x))


class ResidualBlockWithStride(nn.Module):
    """conv3x3 of stride 2, GELU, conv3x3, GDN, plus 1x1 of stride 2. Halves height and width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride=2)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.gdn = GDN(out_channels)
        self.skip = conv1x1(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        # Not a 1x1 convolution of stride 2, whose channels-last backward pass writes outside its
        # buffers in PyTorch 2.13 (uxlfoundation/oneDNN#6035).
        return self.gdn(self.conv2(F.gelu(self.conv1(x)))) + self.skip(x[..., ::2, ::2])


class ResidualBlockUpsample(nn.Module):
    """Subpixel conv3x3, GELU, conv3x3, inverse GDN, plus subpixel conv3x3. Doubles the sides."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.subpel_conv = subpel_conv3x3(in_channels, out_channels)
        self.conv = conv3x3(out_channels, out_channels)
        self.igdn = GDN(out_channels, inverse=True)
        self.upsample = subpel_conv3x3(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.igdn(self.conv(F.gelu(self.subpel_conv(x)))) + self.upsample(x)
