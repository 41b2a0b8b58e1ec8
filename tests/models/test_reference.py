"""The reference engine: compressai's coder behind every variant."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lively import SMALL, lively_model, photograph

from mlic_fast.models import create_model
from mlic_fast.models.mlic import TrainingQuantiser

pytestmark = pytest.mark.usefixtures("compressai_installed")


@pytest.mark.parametrize("name", sorted(SMALL))
def test_round_trip_of_a_batch(name: str, poisoned: None) -> None:
    model = lively_model(SMALL[name]).eval()
    model.update()
    x = photograph(64, 128, batch=2)
    encoded = model.compress(x)
    decoded = model.decompress(encoded["strings"], encoded["shape"])["x_hat"]
    with torch.no_grad():
        out = model(x)
    assert torch.equal(decoded, out["x_hat"])
    # The bytes say what the likelihoods promise: within 2 % and a flush, or less where the
    # likelihood of a far symbol is cut off at 1e-9 and an escape is cheaper.
    promised = sum(-v.log2().sum().item() for v in out["likelihoods"].values()) / 8
    size = sum(len(s) for strings in encoded["strings"] for s in strings)
    assert size <= promised * 1.02 + 32


def test_variable_rate_round_trip() -> None:
    model = lively_model(replace(SMALL["mlic_plus_plus"], lambdas=(0.01, 0.04))).eval()
    model.update()
    x, rate = photograph(64, 64), torch.tensor([0.6])
    encoded = model.compress(x, rate)
    with torch.no_grad():
        x_hat = model(x, rate)["x_hat"]
    assert torch.equal(model.decompress(encoded["strings"], encoded["shape"], rate)["x_hat"], x_hat)


def test_tables_come_first() -> None:
    model = create_model(SMALL["mlic"]).eval()
    with pytest.raises(RuntimeError, match="update"):
        model.compress(photograph(64, 64))


def test_indexes_are_those_of_the_exact_coder() -> None:
    from mlic_fast.coder import scale_indexes

    model = lively_model(SMALL["mlic"]).eval()
    model.update()
    scales = torch.cat([model.gaussian_conditional.scale_table, torch.rand(4000) * 300 - 1])
    own = torch.from_numpy(scale_indexes(scales.numpy()).astype("int32"))
    theirs = model.gaussian_conditional.indexes(scales)
    # The published table is in float32 of exp(): its entries themselves may be off by an ulp.
    assert (own != theirs)[64:].sum() <= 1
    assert (own - theirs).abs().max() <= 1


def test_training_quantiser_collects_every_position() -> None:
    model = lively_model(SMALL["mlic_plus"]).eval()
    y = torch.randn(1, 96, 4, 4)
    quantiser = TrainingQuantiser(y, 3)
    with torch.no_grad():
        model.code_latents(torch.randn(1, 192, 4, 4), quantiser)
    assert all((scales != 0).all() for scales in quantiser.scales)
