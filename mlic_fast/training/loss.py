"""The rate-distortion loss of the MLIC papers, for one rate or several."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mlic_fast.evaluation.metrics import multi_scale


def bits_per_pixel(likelihoods: dict[str, Tensor], pixels: int) -> Tensor:
    """Estimated rate of each sample: ``sum(-log2 p) / pixels``, float32 [batch]."""
    totals = [p.float().log().flatten(1).sum(1) for p in likelihoods.values()]
    return torch.stack(totals).sum(0) / (-math.log(2) * pixels)


def interpolation(rate: Tensor, rates: int) -> Tensor:
    """Weights [B, rates] of the trained rates at fractional indexes [B]: linear between neighbours.

    Gradients of a product with them need no sorting, those of an index do.
    """
    return (1 - (rate[:, None] - torch.arange(rates, device=rate.device)).abs()).clamp(min=0)


class RateDistortionLoss(nn.Module):
    """``lambda * 255^2 * MSE + bpp``, or ``lambda * (1 - MS-SSIM) + bpp``.

    With several lambdas each sample has a rate r in [0, number of lambdas - 1]. Its lambda is
    interpolated geometrically, and its loss is multiplied by ``(lambda_mid / lambda) ** 0.5`` with
    lambda_mid the geometric mean. The optimal loss J(lambda) grows nearly as lambda^0.5: 5.5-fold
    from lambda 0.0018 to 0.0483 for the published points of MLIC++, while lambda itself grows
    27-fold. Without the factor the highest rates would own the gradient and the lowest ones would
    hardly train; with it every rate's *relative* excess over its optimum counts alike, which is
    also what a BD-rate averages.
    """

    log_lambdas: Tensor

    def __init__(self, lambdas: Sequence[float], metric: str) -> None:
        super().__init__()
        logs = torch.tensor([math.log(value) for value in lambdas], dtype=torch.float32)
        self.register_buffer("log_lambdas", logs)
        self.metric = metric

    def lambdas(self, rate: Tensor) -> Tensor:
        """Lambda at fractional rate indexes, float32 [batch]."""
        return (interpolation(rate, len(self.log_lambdas)) @ self.log_lambdas).exp()

    def weights(self, lambdas: Tensor) -> Tensor:
        """Factor of each sample's loss, float32 [batch]; 1 at the geometric mean of the lambdas."""
        return (0.5 * (self.log_lambdas.mean() - lambdas.log())).exp()

    def forward(
        self, x_hat: Tensor, y_bits: Tensor, z_bits: Tensor, x: Tensor, rate: Tensor | None
    ) -> dict[str, Tensor]:
        """By sample: ``loss`` (weighted), ``rd`` (not), ``bpp``, ``z_bpp``, ``mse`` (of 0..1), [B].

        Args:
            x_hat: reconstruction [B, 3, H, W], float32.
            y_bits, z_bits: of latents and hyper-latents [B].
            x: image in 0..1, [B, 3, H, W].
            rate: fractional rate index of each sample [B]; None for a single lambda.
        """
        pixels = x.shape[2] * x.shape[3]
        bpp = (y_bits + z_bits) / pixels
        mse = (x_hat - x).square().flatten(1).mean(1)
        squared = self.metric == "mse"
        distortion = 255**2 * mse if squared else 1 - multi_scale(x_hat, x, 1.0)
        lambdas = self.lambdas(torch.zeros_like(bpp) if rate is None else rate)
        rd = lambdas * distortion + bpp
        loss = self.weights(lambdas) * rd
        return {"loss": loss, "rd": rd, "bpp": bpp, "z_bpp": z_bits / pixels, "mse": mse}


def draw_rates(batch_size: int, rates: int, device: torch.device) -> Tensor:
    """Random rate indexes of a batch, float32 [batch], stratified: every batch spans all rates.

    Half of them are integers (the operating points, where the gains live), half lie between (so
    that interpolated gains are trained as well).
    """
    order, within, kind = torch.rand(3, batch_size, device=device)
    position = (order.argsort() + within) / batch_size * rates
    between = (position - 0.5).clamp(0, rates - 1)
    integer = position.floor().clamp(max=rates - 1)
    return torch.where(kind < 0.5, integer, between)
