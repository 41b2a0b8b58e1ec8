"""Muon and Adam."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from lively import TINY
from torch import Tensor

from mlic_fast.models import create_model
from mlic_fast.training.flat import PARTS, FlatWeights, part_of
from mlic_fast.training.optim import Optimizer, orthogonalise


def orthogonal(stacks: list[Tensor]) -> list[Tensor]:
    results = [torch.full_like(stack, torch.nan) for stack in stacks]
    orthogonalise(stacks, results, [1.0] * len(stacks))
    return results


def test_orthogonalised_matrices_keep_their_singular_vectors() -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 8, 40), (1, 40, 8), (1, 131, 140), (1, 256, 300), (3, 33, 32), (2, 400, 320)]
    shapes += [(1, 400, 320)]
    stacks = [torch.randn(shape, generator=generator) for shape in shapes]
    zero = torch.zeros(1, 9, 20)
    *results, nothing = orthogonal([*stacks, zero])
    assert torch.equal(nothing, zero)
    for x, out in zip(stacks, results, strict=True):
        assert out.shape == x.shape
        if x.shape[1] > x.shape[2]:
            x, out = x.transpose(1, 2), out.transpose(1, 2)
        rows = {131: 131, 256: 128, 320: 80}.get(
            x.shape[1], x.shape[1]
        )  # cut in blocks of equal size
        for block, result in zip(x.split(rows, 1), out.split(rows, 1), strict=True):
            left, values, right = torch.linalg.svd(block, full_matrices=False)
            changed = left.transpose(1, 2) @ result @ right.transpose(1, 2)
            ratios = torch.diagonal(changed, dim1=1, dim2=2)
            assert (ratios[values > 0.1 * values.max()] > 0.6).all() and ratios.max() < 1.3
            assert (changed - torch.diag_embed(ratios)).abs().max() < 1e-4


def weights_of(model: torch.nn.Module, muon: bool) -> FlatWeights:
    return FlatWeights(model, copy.deepcopy(model), torch.float32, muon)


class Contexts(torch.nn.Module):
    """Two layers whose names are of no part but the contexts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(20, 12, 3)
        self.second = torch.nn.Conv2d(20, 12, 3)


def test_muon_steps_of_one_size_downhill() -> None:
    torch.manual_seed(2)
    model = Contexts()
    weights = weights_of(model, muon=True)
    before = weights.values.clone()
    assert [stack.shape for stack in weights.stacks] == [(2, 12, 180)]
    gradient = torch.randn_like(weights.values)
    weights.gradient.copy_(gradient)
    Optimizer(weights).step(torch.full((len(PARTS),), 0.01), torch.ones(()))
    move = (weights.values - before)[: weights.muon] + 0.01 * 0.05 * before[: weights.muon]
    assert 0.7 * 0.002 < move.square().mean().sqrt() < 1.2 * 0.002
    assert (move * gradient[: weights.muon]).sum() < 0
    for i, name in enumerate(("first.weight", "second.weight")):
        matrix = weights.view(name, gradient).permute(0, 2, 3, 1).flatten(1)
        alone = orthogonal([0.0975 * matrix[None]])[0][0]
        moved = weights.stacks[0].view(move)[i]
        assert torch.allclose(moved, -0.01 * 0.2 * 180**0.5 * alone, atol=1e-6)


def test_adam_is_pytorchs() -> None:
    torch.manual_seed(2)
    model = Contexts()
    twin = copy.deepcopy(model)
    weights = weights_of(model, muon=False)
    ours, theirs = Optimizer(weights), torch.optim.Adam(twin.parameters(), lr=0.01)
    for step in range(3):
        weights.gradient.normal_()
        for name, parameter in twin.named_parameters():
            parameter.grad = weights.view(name, weights.gradient).clone()
        live = torch.tensor(float(step != 1))
        before = weights.values.clone()
        ours.step(torch.full((len(PARTS),), 0.01), live)
        if live:
            theirs.step()
        else:
            assert torch.equal(weights.values, before)
    for name, parameter in twin.named_parameters():
        assert torch.allclose(weights.view(name, weights.values), parameter, atol=1e-6)


def test_muon_takes_what_mixes_channels_of_transforms_and_contexts() -> None:
    model = create_model(replace(TINY, lambdas=(0.01, 0.02)))
    weights = weights_of(model, muon=True)
    count = sum(stack.shape[0] for stack in weights.stacks)
    muon = set(weights.layout[:count])
    assert {"g_a.analysis_transform.1.conv1.weight", "local_context.0.qkv_proj.weight"} <= muon
    for ending in ("bias", "gamma", "beta", "table", "log_gain", ".keys.1.weight"):
        assert not any(name.endswith(ending) for name in muon)
    assert {PARTS[part_of(name)] for name in muon} == {"transforms", "contexts"}
