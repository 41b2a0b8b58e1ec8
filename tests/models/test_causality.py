"""No pass may read what is decoded after it, and every pass must read what it may."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mlic_fast.models import MlicModel
from mlic_fast.models.checkerboard import Parity, keep, squeeze

Passes = list[tuple[Tensor, Tensor]]


def run(model: MlicModel, hyper: Tensor, y: Tensor) -> Passes:
    """Scales and means of every pass, at its positions, when the latents are y."""
    seen: Passes = []
    slices = y.chunk(model.config.slices, dim=1)

    def code(index: int, parity: Parity, scales: Tensor, means: Tensor) -> Tensor:
        seen.append((squeeze(scales, parity).clone(), squeeze(means, parity).clone()))
        return keep(torch.round(slices[index] - means) + means, parity)

    with torch.no_grad():
        model.code_latents(hyper, code)
    return seen


@pytest.mark.parametrize("changed_slice", [0, 1, 2])
@pytest.mark.parametrize("parity", list(Parity))
def test_a_pass_changes_all_later_passes_and_no_earlier(
    model: MlicModel, changed_slice: int, parity: Parity
) -> None:
    config = model.config
    hyper = torch.randn(1, 2 * config.M, 8, 12)
    y = torch.randn(1, config.M, 8, 12) * 4
    other = y.clone()
    c = config.slice_channels
    part = slice(changed_slice * c, (changed_slice + 1) * c)
    other[:, part] += keep(torch.full_like(y[:, part], 9.0), parity)

    before, after = run(model, hyper, y), run(model, hyper, other)
    own = 2 * changed_slice + (0 if parity is Parity.ANCHOR else 1)  # anchors go first
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        same = all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
        assert same == (number <= own), number


def test_decoded_latents_are_latents_within_one(model: MlicModel) -> None:
    y = torch.randn(1, model.config.M, 4, 4) * 4
    hyper = torch.randn(1, 2 * model.config.M, 4, 4)
    slices = y.chunk(model.config.slices, dim=1)

    def code(index: int, parity: Parity, scales: Tensor, means: Tensor) -> Tensor:
        return keep(torch.round(slices[index] - means) + means, parity)

    with torch.no_grad():
        y_hat = model.code_latents(hyper, code)
    error = (y_hat - y).abs()
    assert error.max() <= 1.0  # rounding 0.5, latent residual prediction 0.5
    assert (error > 0.5).any()
