"""Gain units: one checkpoint, a range of rates (Cui et al., CVPR 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlic_fast.models.config import MlicConfig


class GainUnits(nn.Module):
    """A gain for every channel of y and rate, and its learned counterpart before g_s.

    Everything between the two works on scaled latents: the entropy model and the stream know
    nothing of rates. Fractional rates interpolate geometrically between neighbours.
    """

    def __init__(self, config: MlicConfig) -> None:
        super().__init__()
        # At high rate the optimal step size falls with 1 / sqrt(lambda).
        lambdas = torch.tensor(config.lambdas, device="cpu", dtype=torch.float32)
        log_steps = (lambdas / lambdas.log().mean().exp()).sqrt().log()[:, None]
        # Logarithms are learned: gains stay positive and interpolation is linear.
        shape = len(lambdas), config.M
        self.log_gain = nn.Parameter(torch.empty(shape).copy_(log_steps))
        self.log_inverse_gain = nn.Parameter(torch.empty(shape).copy_(-log_steps))

    def apply(self, y: Tensor, rate: Tensor | None) -> Tensor:  # type: ignore[override]
        """Latents [B, M, H, W] times the gains at ``rate`` [B]."""
        return y * self._at(self.log_gain, rate)

    def undo(self, y_hat: Tensor, rate: Tensor | None) -> Tensor:
        """Decoded latents [B, M, H, W] times the inverse gains at ``rate`` [B]."""
        return y_hat * self._at(self.log_inverse_gain, rate)

    @staticmethod
    def _at(table: Tensor, rate: Tensor | None) -> Tensor:
        if rate is None:
            raise ValueError("this model has a variable rate: give rate, a tensor [B]")
        last = len(table) - 1
        rate = rate.to(table.device, torch.float32).clamp(0, last)
        low = rate.floor().long().clamp(max=max(last - 1, 0))
        weight = (rate - low)[:, None]
        mixed = table[low] * (1 - weight) + table[(low + 1).clamp(max=last)] * weight
        return mixed.exp()[:, :, None, None]
