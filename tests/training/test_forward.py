"""The forward pass of training is that of the model, and flat weights are its weights."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from lively import TINY
from small_runs import assert_equal
from torch import Tensor

from mlic_fast.models import MlicConfig, create_model
from mlic_fast.training.flat import FlatWeights
from mlic_fast.training.forward import TrainingForward, absorb_biases

VARIANTS = {
    "mlic_plus_plus": replace(TINY, lambdas=(0.0018, 0.0130, 0.0483)),
    "mlic_plus": replace(TINY, variant="mlic_plus"),
    "mlic": replace(TINY, variant="mlic"),
    "2023": replace(TINY, weight_family="2023"),
    "blocks": replace(TINY, transforms="blocks", block_channels=24, M=96, slices=3),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("shape", [(2, 3, 64, 128), (1, 3, 192, 64)])
def test_the_forward_pass_of_training_is_the_models(
    config: MlicConfig, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(3)
    model = create_model(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    x = torch.rand(shape)
    rate = torch.tensor([0.4, 2.0])[: len(x)] if config.rates else None
    before = model(x, rate=rate)["x_hat"]
    absorb_biases(model)
    expected = model(x, rate=rate)
    assert (expected["x_hat"] - before).abs().max() < 1e-5
    forward = TrainingForward(model, torch.float32)
    bits = {k: -v.log2().flatten(1).sum(1) for k, v in expected["likelihoods"].items()}
    ours = forward(x.to(memory_format=torch.channels_last), rate, torch.ones(()))
    assert (ours.x_hat - expected["x_hat"]).abs().max() < 1e-5
    assert ours.y_bits.tolist() == pytest.approx(bits["y"].tolist(), rel=1e-5)
    assert ours.z_bits.tolist() == pytest.approx(bits["z"].tolist(), rel=1e-5)

    def gradients(network: torch.nn.Module, x_hat: Tensor, bits: Tensor) -> dict[str, Tensor]:
        named = dict(network.named_parameters())
        del named["entropy_bottleneck.quantiles"]
        loss = x_hat.square().sum() + bits.sum() / 100
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return dict(zip(named, found, strict=True))

    theirs = gradients(model, expected["x_hat"], bits["y"] + bits["z"])
    found = gradients(forward.network, ours.x_hat, ours.y_bits + ours.z_bits)
    for name, gradient in theirs.items():
        if name.endswith("depthwise.bias") and name.startswith("g_"):
            assert found[name] is None  # it was absorbed
            continue
        # The biases of keys change no softmax: their gradients are noise.
        error = (found[name] - gradient).abs().max()
        assert error < 1e-4 * gradient.abs().max() + 1e-8, name


def test_bits_of_z_count_for_what_makes_it_by_their_weight() -> None:
    model = create_model(TINY)
    forward = TrainingForward(model, torch.float32)
    hyper = [p for n, p in forward.network.named_parameters() if n.startswith("h_a")]
    prior = forward.network.get_parameter("entropy_bottleneck.biases.0")
    x, moves = torch.rand(1, 3, 64, 64), []
    for weight in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        bits = forward(x, None, torch.tensor(weight)).z_bits.sum()
        moves.append(torch.autograd.grad(bits, [*hyper, prior]))
    assert not any(g.any() for g in moves[0][:-1])
    for half, whole in zip(moves[1][:-1], moves[2][:-1], strict=True):
        assert torch.allclose(2 * half, whole)
    assert torch.equal(moves[0][-1], moves[2][-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("muon", [True, False])
def test_flat_weights_are_the_models(dtype: torch.dtype, muon: bool) -> None:
    config = replace(TINY, lambdas=(0.01, 0.02))
    torch.manual_seed(4)
    model, fresh = create_model(config), None
    fresh = {name: p.detach().clone() for name, p in model.named_parameters()}
    network = TrainingForward(model, dtype).network
    weights = FlatWeights(model, network, dtype, muon)
    assert sorted(weights.layout) == sorted(fresh)
    assert_equal({n: p.detach().clone() for n, p in model.named_parameters()}, fresh)
    with torch.no_grad():
        weights.values.mul_(2)
    weights.refresh()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, (2 * fresh[name]).to(parameter.dtype)), name
        exact = name.startswith(("gain", "entropy_bottleneck")) or "gdn" in name.split(".")[-2]
        assert parameter.dtype == (torch.float32 if exact else dtype)
    # Gradients find their places, whatever their memory format.
    gradients = tuple(
        (i + torch.arange(leaf.numel()).reshape(leaf.shape) % 5).to(leaf.dtype)
        for i, leaf in enumerate(weights.leaves)
    )
    quantiles = torch.full((8, 1, 3), 9.0)
    weights.gradient.fill_(float("nan"))
    weights.set_gradient(gradients, quantiles)
    for i, name in enumerate(weights.layout[:-1]):
        assert torch.equal(weights.view(name, weights.gradient), gradients[i].float()), name
    assert torch.equal(weights.view(weights.layout[-1], weights.gradient), quantiles)
    stacked = sum(math.prod(stack.shape) for stack in weights.stacks)
    assert stacked == weights.muon and (stacked > 0) == muon
