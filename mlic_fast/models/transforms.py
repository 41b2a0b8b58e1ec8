"""Analysis, synthesis and hyper transforms.

Residual transforms are those of MLIC++ (figure 3 and section 3.1). Block transforms are this
project's own: cheap 1x1 and depthwise layers on 8x8 blocks of pixels; the rest of MLIC++ stays.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mlic_fast.models.config import MlicConfig
from mlic_fast.models.layers import (
    MixingBlock,
    ResidualBlock,
    ResidualBlockUpsample,
    ResidualBlockWithStride,
    conv1x1,
    conv3x3,
    subpel_conv3x3,
)


class AnalysisTransform(nn.Module):
    """g_a: image [B, 3, H, W] in 0..1 -> latents y [B, M, H/16, W/16]."""

    def __init__(self, config: MlicConfig) -> None:
        super().__init__()
        n1, n2, n3 = config.stage_channels
        self.analysis_transform = nn.Sequential(
            ResidualBlockWithStride(3, n1),
            ResidualBlock(n1, n1),
            ResidualBlockWithStride(n1, n2),
            ResidualBlock(n2, n2),
            ResidualBlockWithStride(n2, n3),
            ResidualBlock(n3, n3),
            conv3x3(n3, config.M, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.analysis_transform(x)


class SynthesisTransform(nn.Module):
    """g_s: decoded latents [B, M, H/16, W/16] -> image [B, 3, H, W]."""

    def __init__(self, config: MlicConfig) -> None:
        super().__init__()
        n1, n2, n3 = config.stage_channels
        first = n3 if config.weight_family == "2023" else config.M
        self.synthesis_transform = nn.Sequential(
            ResidualBlock(config.M, first),
            ResidualBlockUpsample(first, n3),
            ResidualBlock(n3, n3),
            ResidualBlockUpsample(n3, n2),
            ResidualBlock(n2, n2),
            ResidualBlockUpsample(n2, n1),
            ResidualBlock(n1, n1),
            subpel_conv3x3(n1, 3),
        )

    def forward(self, y_hat: Tensor) -> Tensor:
        return self.synthesis_transform(y_hat)


#: Side of the blocks of pixels that block transforms take as vectors.
BLOCK = 8


class BlockAnalysisTransform(nn.Module):
    """g_a on blocks: image [B, 3, H, W] in 0..1 -> latents y [B, M, H/16, W/16]."""

    def __init__(self, config: MlicConfig) -> None:
        super().__init__()
        fine, coarse = config.analysis_blocks
        width = config.block_channels
        self.embed = conv1x1(3 * BLOCK**2, width)
        self.fine = nn.Sequential(*(MixingBlock(width) for _ in range(fine)))
        self.down = nn.Conv2d(width, config.M, 2, stride=2)
        self.coarse = nn.Sequential(*(MixingBlock(config.M) for _ in range(coarse)))

    def forward(self, x: Tensor) -> Tensor:
        return self.coarse(self.down(self.fine(self.embed(F.pixel_unshuffle(x, BLOCK)))))


class BlockSynthesisTransform(nn.Module):
    """g_s on blocks: decoded latents [B, M, H/16, W/16] -> image [B, 3, H, W]."""

    def __init__(self, config: MlicConfig) -> None:
        super().__init__()
        fine, coarse = config.synthesis_blocks
        width = config.block_channels
        self.coarse = nn.Sequential(*(MixingBlock(config.M) for _ in range(coarse)))
        self.up = conv1x1(config.M, 4 * width)
        self.fine = nn.Sequential(*(MixingBlock(width) for _ in range(fine)))
        self.project = conv1x1(width, 3 * BLOCK**2)

    def forward(self, y_hat: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.up(self.coarse(y_hat)), 2)
        return F.pixel_shuffle(self.project(self.fine(x)), BLOCK)


#: g_a and g_s of every kind.
_TRANSFORMS: dict[str, tuple[type, type]] = {
    "residual": (AnalysisTransform, SynthesisTransform),
    "blocks": (BlockAnalysisTransform, BlockSynthesisTransform),
}


def make_transforms(config: MlicConfig) -> tuple[nn.Module, nn.Module]:
    """g_a and g_s with fresh weights."""
    analysis, synthesis = _TRANSFORMS[config.transforms]
    return analysis(config), synthesis(config)


class HyperAnalysis(nn.Module):
    """h_a: latents y [B, M, H, W] -> hyper-latents z [B, N, H/4, W/4]."""

    def __init__(self, config: MlicConfig) -> None:
        super().__init__()
        n = config.N
        self.reduction = nn.Sequential(
            conv3x3(config.M, n),
            nn.GELU(),
            conv3x3(n, n),
            nn.GELU(),
            conv3x3(n, n, stride=2),
            nn.GELU(),
            conv3x3(n, n),
            nn.GELU(),
            conv3x3(n, n, stride=2),
        )

    def forward(self, y: Tensor) -> Tensor:
        return self.reduction(y)


class HyperSynthesis(nn.Module):
    """h_s: hyper-latents z_hat [B, N, H/4, W/4] -> [B, 2M, H, W]: M scales, then M means (mu_h)."""

    def __init__(self, config: MlicConfig) -> None:
        super().__init__()
        m = config.M
        a, b = config.hyper_channels or (m, m * 3 // 2)
        self.increase = nn.Sequential(
            conv3x3(config.N, a),
            nn.GELU(),
            subpel_conv3x3(a, a),
            nn.GELU(),
            conv3x3(a, b),
            nn.GELU(),
            subpel_conv3x3(b, b),
            nn.GELU(),
            conv3x3(b, m * 2),
        )

    def forward(self, z_hat: Tensor) -> Tensor:
        return self.increase(z_hat)
