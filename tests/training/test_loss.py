"""The loss of one rate and of several, and learning rates."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from small_runs import CPU, smooth

from mlic_fast.training import TrainConfig
from mlic_fast.training.flat import PARTS
from mlic_fast.training.loss import RateDistortionLoss, draw_rates
from mlic_fast.training.optim import learning_rate_factor, learning_rates


def test_loss_of_one_rate_is_the_papers() -> None:
    x, bits = torch.zeros(1, 3, 2, 2), torch.tensor([4.0])
    terms = RateDistortionLoss([0.0130], "mse")(x + 0.1, bits, bits / 2, x, None)
    assert (terms["bpp"].item(), terms["z_bpp"].item()) == (6 / 4, 2 / 4)
    assert terms["mse"].item() == pytest.approx(0.01)
    expected = 0.0130 * 255**2 * 0.01 + 6 / 4
    assert terms["loss"].item() == terms["rd"].item() == pytest.approx(expected, rel=1e-6)


def test_loss_of_ms_ssim() -> None:
    from pytorch_msssim import ms_ssim

    x = smooth(0, 192, 192)[None].float() / 255
    x_hat = (x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    none = torch.zeros(1)
    terms = RateDistortionLoss([16.64], "ms-ssim")(x_hat, none, none, x, None)
    expected = 16.64 * (1 - ms_ssim(x_hat, x, data_range=1.0).item())
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_rates_interpolate_lambda_geometrically_and_share_the_gradient() -> None:
    loss = RateDistortionLoss([0.001, 0.004, 0.016], "mse")
    lambdas = loss.lambdas(torch.tensor([0.0, 0.5, 1.0, 2.0]))
    assert lambdas.tolist() == pytest.approx([0.001, 0.002, 0.004, 0.016], rel=1e-5)
    assert loss.weights(lambdas).tolist() == pytest.approx([2, math.sqrt(2), 1, 0.5], rel=1e-5)
    x, none = torch.zeros(2, 3, 1, 1), torch.zeros(2)
    terms = loss(x + 1, none, none, x, torch.tensor([0.0, 2.0]))
    expected = [255**2 * 2 * 0.001, 255**2 * 0.5 * 0.016]
    assert terms["loss"].tolist() == pytest.approx(expected, rel=1e-5)


def test_rates_span_the_range_in_every_batch() -> None:
    torch.manual_seed(0)
    drawn = torch.stack([draw_rates(6, 6, CPU) for _ in range(200)])
    assert drawn.min() == 0 and drawn.max() == 5
    # One sample a sixth of the range: sorted, each lies within one of its own rate.
    ordered = drawn.sort(dim=1).values
    assert ((ordered - torch.arange(6)).abs() <= 0.5).all()
    assert 0.4 < (drawn == drawn.round()).float().mean() < 0.7


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainConfig(data="", output="", warmup=99)

    def factors(config: TrainConfig, *steps: int) -> list[float]:
        return [learning_rate_factor(step, step / 1000, config) for step in steps]

    falling = factors(config, 0, 49, 99, 699, 700, 850, 999)
    assert falling == pytest.approx([0.01, 0.5, 1, 1, 0.3, 0.1, 0.1])
    linear = factors(replace(config, schedule="linear"), 99, 650, 825, 1000)
    assert linear == pytest.approx([1, 1, 0.5, 0.01])


def test_parts_have_learning_rates_of_their_own() -> None:
    config = TrainConfig(
        data="", output="", lr=1.0, transforms_lr=0.5, hyper_lr=0.25, residual_lr=0.125,
        aux_lr=0.001, warmup=9, start="klt",
    )  # fmt: skip
    assert PARTS == ("transforms", "hyper", "residual", "contexts", "quantiles")
    assert learning_rates(0, 0, config) == pytest.approx([0, 0.025, 0.0125, 0.1, 0.001])
    assert learning_rates(18, 0, config) == pytest.approx([0.25, 0.25, 0.125, 1, 0.001])
    assert learning_rates(36, 0, config) == pytest.approx([0.5, 0.25, 0.125, 1, 0.001])
    assert learning_rates(0, 0, replace(config, start="random"))[0] == pytest.approx(0.05)
