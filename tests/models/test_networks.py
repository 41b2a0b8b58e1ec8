"""The table of networks against the float models."""

from __future__ import annotations

import pytest
import torch
from lively import BLOCKS, SMALL
from torch import nn

from mlic_fast.engine.operations import Operations
from mlic_fast.models import create_model
from mlic_fast.models.config import MlicConfig
from mlic_fast.models.networks import METHODS, NETWORKS, exact_inputs, inputs, split_name
from mlic_fast.models.networks import Source as S

NO_NETWORKS = {"entropy_bottleneck", "gaussian_conditional", "gain"}


@pytest.mark.parametrize("config", [*SMALL.values(), BLOCKS], ids=str)
def test_every_module_is_in_the_table(config: MlicConfig) -> None:
    with torch.device("meta"):
        model = create_model(config)
    for name, module in model.named_children():
        assert name in NETWORKS or name in NO_NETWORKS
        if name in NETWORKS:
            assert isinstance(module, nn.ModuleList) == (NETWORKS[name].parity is not None)
    for name, layer in model.named_modules():
        network, i, rest = split_name(name)
        if network is not None and rest in network.joining:
            assert isinstance(layer, nn.Conv2d)
            parts = exact_inputs(config, name, layer.in_channels)
            assert sum(part.stop - part.start for part in parts) == layer.in_channels
            assert sorted(channels for _, channels in inputs(config, network.module, i)) == sorted(
                part.stop - part.start for part in parts
            )


def test_the_order_of_sums() -> None:
    config = SMALL["mlic_plus_plus"]
    c, m = config.slice_channels, config.M
    name = "entropy_parameters_nonanchor"
    assert [source for source, _ in inputs(config, name, 0)] == [S.LOCAL, S.HYPER]
    assert inputs(config, "lrp_anchor", 2) == [(S.MEANS, m), *2 * [(S.BEFORE, c)], (S.CURRENT, c)]
    # Float: local, intra, inter, channel, hyper.
    ends = [0, 2 * c, 4 * c, 6 * c, 10 * c, 10 * c + 2 * m]
    *contexts, hyper = map(slice, ends, ends[1:])
    expected = [hyper, *contexts[2:], *contexts[:2]]
    assert exact_inputs(config, f"{name}.1.fusion.0", ends[-1]) == expected


def test_every_method_is_one_of_the_backends() -> None:
    assert all(callable(getattr(Operations, method)) for method in METHODS)
