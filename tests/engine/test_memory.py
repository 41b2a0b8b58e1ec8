"""Softmax attention is quadratic in work, never in memory; the rest is linear in both."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from lively import SMALL
from torch.utils._python_dispatch import TorchDispatchMode

from mlic_fast.engine.arithmetic import QUERY_BLOCK, Act, SpecOps
from mlic_fast.engine.packing.packer import pack
from mlic_fast.engine.path import code_latents
from mlic_fast.models import MlicModel
from mlic_fast.models.contexts import GlobalInterContext, GlobalIntraContext


class Largest(TorchDispatchMode):
    """The most elements of any tensor made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("kind", ["intra", "inter"])
def test_float_attention_maps_come_in_blocks(small_models: dict[str, MlicModel], kind: str) -> None:
    model = small_models["mlic_plus"]
    height, width = 48, 48
    previous = torch.randn(1, 32, height, width)
    with torch.no_grad(), Largest() as largest:
        if kind == "intra":
            context: Any = model.global_intra_context[1]
            assert isinstance(context, GlobalIntraContext)
            context(previous, previous)
        else:
            context = model.global_inter_context[1]
            assert isinstance(context, GlobalInterContext)
            context(previous)
    positions = height * width // (2 if kind == "intra" else 1)
    # 2 heads, or the (row, column) distances of a block.
    assert largest.elements <= 2 * QUERY_BLOCK * positions
    assert largest.elements < positions**2


def peak(work: Any) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_exact_softmax_attention_is_linear_in_memory() -> None:
    ops = SpecOps(type("Model", (), {"config": None, "layers": {}, "exponents": {"out": 5}})())  # type: ignore[arg-type]

    def attend(height: int) -> int:
        shape = (1, height, 24, 4)
        q, k, v = (Act(np.full(shape, i, np.int16), 8) for i in range(3))
        return peak(lambda: ops.softmax_attention(q, k, v, 2, "out", exclude=True))

    small, large = attend(32), attend(96)
    assert large < 4.5 * small  # for 3 times the positions; quadratic would be 9


def test_exact_path_is_linear_in_memory(small_models: dict[str, MlicModel]) -> None:
    packed = pack(small_models["mlic_plus_plus"])

    def decode(height: int) -> int:
        z = np.zeros((1, height, 3, SMALL["mlic_plus_plus"].N), np.int32)
        return peak(
            lambda: code_latents(
                SpecOps(packed),
                z,
                lambda index, parity, indexes, means, symbols: np.zeros(means.shape, np.int32),
            )
        )

    small, large = decode(2), decode(6)
    assert large < 3.5 * small
