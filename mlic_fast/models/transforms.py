"""Analysis, synthesis and hyper transforms (MLIC++, figure 3 and section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from mlic_fast.models.config import MlicConfig
from mlic_fast.models.layers import (
    ResidualBlock,
    ResidualBlockUpsample,
    ResidualBlockWithStride,
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
