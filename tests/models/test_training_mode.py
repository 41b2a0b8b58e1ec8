"""Gradients, straight-through rounding, noise, variable rate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lively import SMALL, lively_model, photograph
from torch import Tensor

from mlic_fast.models import MlicConfig, MlicModel
from mlic_fast.models.entropy import round_ste
from mlic_fast.models.gain import GainUnits

RATES = replace(SMALL["mlic_plus_plus"], lambdas=(0.01, 0.02, 0.08))


@pytest.fixture(scope="module")
def variable() -> MlicModel:
    return lively_model(RATES).eval()


def loss(out: dict[str, Tensor], x: Tensor) -> Tensor:
    bits = sum(-v.log2().sum() for v in out["likelihoods"].values())
    return bits + 100 * (out["x_hat"] - x).square().sum()


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    model = lively_model(SMALL[name])
    x = photograph(64, 128)
    loss(model(x), x).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # The quantiles belong to the auxiliary loss. (Biases of keys cancel in a softmax but for
    # rounding, so theirs is noise; nothing else is known to be idle.)
    assert without == {"entropy_bottleneck.quantiles"}
    model.aux_loss().backward()
    quantiles = model.entropy_bottleneck.quantiles.grad
    assert quantiles is not None and quantiles.abs().gt(0).all()


def test_rounding_is_straight_through() -> None:
    x = torch.tensor([0.4, 0.6, -1.5, 2.5], requires_grad=True)
    rounded = round_ste(x)
    assert rounded.tolist() == [0.0, 1.0, -2.0, 2.0]
    (rounded * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_training_rounds_for_the_image_and_adds_noise_for_the_rate(
    small_models: dict[str, MlicModel],
) -> None:
    model = small_models["mlic_plus_plus"]
    x = photograph(64, 64)
    with torch.no_grad():
        evaluated = model(x)
        model.train()
        first, second = model(x), model(x)
        model.eval()
    torch.testing.assert_close(first["x_hat"], evaluated["x_hat"], atol=1e-5, rtol=1e-5)
    for key in ("y", "z"):
        assert not torch.equal(first["likelihoods"][key], second["likelihoods"][key])


def test_inference_before_training_leaves_training_alone() -> None:
    """Masks cached under inference mode must not poison a later backward pass."""
    model = lively_model(SMALL["mlic_plus"])
    x = photograph(64, 64)
    with torch.inference_mode():
        model(x)
    loss(model(x), x).backward()


def test_a_batch_is_its_images(model: MlicModel) -> None:
    x = photograph(64, 128, batch=3)
    with torch.no_grad():
        together = model(x)
        for i in range(3):
            alone = model(x[i : i + 1])
            torch.testing.assert_close(
                together["x_hat"][i : i + 1], alone["x_hat"], atol=1e-4, rtol=1e-4
            )


def test_gains_interpolate_geometrically() -> None:
    gain = GainUnits(RATES)
    with torch.no_grad():
        gain.log_gain.copy_(torch.randn_like(gain.log_gain))
    y = torch.ones(1, RATES.M, 2, 2)

    def at(rate: float) -> Tensor:
        return gain.apply(y, torch.tensor([rate])).detach()[0, :, 0, 0]

    for rate in range(3):
        assert torch.equal(at(rate), gain.log_gain[rate].exp())
    torch.testing.assert_close(at(0.25), at(0.0) ** 0.75 * at(1.0) ** 0.25)
    torch.testing.assert_close(at(0.75), at(0.0) ** 0.25 * at(1.0) ** 0.75)
    torch.testing.assert_close(at(1.5), (at(1.0) * at(2.0)).sqrt())
    assert torch.equal(at(-1.0), at(0.0))
    assert torch.equal(at(7.0), at(2.0))


def test_rate_rises_with_lambda_and_mixes_in_a_batch(variable: MlicModel) -> None:
    x = photograph(64, 128).expand(3, -1, -1, -1)
    rates = torch.tensor([0.0, 1.3, 2.0])
    with torch.no_grad():
        out = variable(x, rates)
        bits = -out["likelihoods"]["y"].log2().sum((1, 2, 3))
        single = variable(x[:1], rates[1:2])
    assert bits[0] < bits[1] < bits[2]
    torch.testing.assert_close(out["x_hat"][1:2], single["x_hat"], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="variable rate"):
        variable(x)


def test_gains_receive_gradients() -> None:
    model = lively_model(RATES)
    x = photograph(64, 64)
    loss(model(x, torch.tensor([0.5])), x).backward()
    for parameter in (model.gain.log_gain, model.gain.log_inverse_gain):
        assert parameter.grad is not None
        reached = parameter.grad.abs().gt(0).any(1).tolist()
        assert reached == [True, True, False]


@pytest.mark.parametrize("size", [(63, 64), (64, 100), (32, 32)])
def test_sizes_must_be_multiples_of_64(model: MlicModel, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 64"):
        model(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    "changes",
    [
        {"M": 95},
        {"slices": 5},
        {"N": 0},
        {"lambdas": (0.2, 0.1)},
        {"variant": "mlic_3"},
        {"M": 48},
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        MlicConfig(**{"variant": "mlic_plus", "M": 96, "slices": 3, **changes})
