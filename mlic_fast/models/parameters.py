"""Entropy parameters and latent residual prediction."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from mlic_fast.models.config import MlicConfig
from mlic_fast.models.layers import conv3x3
from mlic_fast.models.networks import inputs


class EntropyParameters(nn.Module):
    """1x1 convolutions: contexts [B, in, H, W] -> C scales, then C means, [B, 2C, H, W]."""

    def __init__(self, in_dim: int, out_dim: int, hidden: tuple[int, int, int]) -> None:
        super().__init__()
        a, b, c = hidden
        self.fusion = nn.Sequential(
            nn.Conv2d(in_dim, a, 1),
            nn.GELU(),
            nn.Conv2d(a, b, 1),
            nn.GELU(),
            nn.Conv2d(b, c, 1),
            nn.GELU(),
            nn.Conv2d(c, out_dim, 1),
        )

    def forward(self, contexts: Tensor) -> Tensor:
        return self.fusion(contexts)


class LatentResidualPrediction(nn.Module):
    """Prediction of the rounding error, in -0.5 .. 0.5 (Minnen and Singh, ICIP 2020).

    cat(mu_h, yhat^0 .. yhat^i) [B, M + (i+1)C, H, W] -> [B, C, H, W].
    """

    def __init__(self, in_dim: int, out_dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        widths = (in_dim, *hidden, out_dim)
        layers: list[nn.Module] = [conv3x3(widths[0], widths[1])]
        for a, b in pairwise(widths[1:]):
            layers += [nn.GELU(), conv3x3(a, b)]
        self.lrp_transform = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * torch.tanh(self.lrp_transform(x))


def lrp_hidden(config: MlicConfig, in_dim: int) -> tuple[int, ...]:
    """Hidden widths of the latent residual prediction for a weight family."""
    if config.weight_family == "current":
        return config.lrp_channels
    difference = abs(config.slice_channels - in_dim)
    return tuple(in_dim - difference * k // 4 for k in (1, 2, 3))


def make_parameters(config: MlicConfig) -> dict[str, nn.ModuleList]:
    """The per-slice networks of both passes, by attribute name."""
    c = config.slice_channels

    def parameters(in_dim: int) -> nn.Module:
        return EntropyParameters(in_dim, 2 * c, config.entropy_parameters_channels)

    def prediction(in_dim: int) -> nn.Module:
        return LatentResidualPrediction(in_dim, c, lrp_hidden(config, in_dim))

    make = {
        "entropy_parameters_anchor": parameters,
        "lrp_anchor": prediction,
        "entropy_parameters_nonanchor": parameters,
        "lrp_nonanchor": prediction,
    }
    return {
        name: nn.ModuleList(
            network(sum(channels for _, channels in inputs(config, name, i)))
            for i in range(config.slices)
        )
        for name, network in make.items()
    }
