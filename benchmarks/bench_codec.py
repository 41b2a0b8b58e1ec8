"""The photograph model, 768x512: whole encoding and decoding, and every stage, of both engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import CPU_SUITE

from mlic_fast.codec import Codec
from mlic_fast.engine.path import code_latents
from mlic_fast.models.checkerboard import keep
from mlic_fast.profiling.pictures import synthetic_photograph

pytestmark = CPU_SUITE

IMAGE = synthetic_photograph(768, 512)
X = IMAGE[None]
RATE = torch.tensor([3.0])
#: Long ones, so a few of them are enough.
ROUNDS = {"rounds": 3, "warmup_rounds": 1}


@pytest.fixture(params=["cpu", "reference"])
def codec(request: pytest.FixtureRequest, photo: Codec, reference: Codec) -> Codec:
    return photo if request.param == "cpu" else reference


def run(benchmark: Any, work: Callable[[], object]) -> None:
    with torch.inference_mode():
        benchmark.pedantic(work, **ROUNDS)


def test_encode(benchmark: Any, codec: Codec) -> None:
    benchmark.group = "encode"
    benchmark.extra_info["bytes"] = len(codec.compress(IMAGE))
    run(benchmark, lambda: codec.compress(IMAGE))


def test_decode(benchmark: Any, codec: Codec) -> None:
    benchmark.group = "decode"
    stream = codec.compress(IMAGE)
    run(benchmark, lambda: codec.decompress(stream))


def test_analysis(benchmark: Any, codec: Codec) -> None:
    benchmark.group = "g_a + h_a"

    def float_model() -> None:
        codec.model.h_a(codec.model.analyse(X.float() / 255, RATE))

    exact = codec.engine != "reference"
    run(benchmark, lambda: codec._engine._transforms.analyse(X, RATE) if exact else float_model())


def test_synthesis(benchmark: Any, codec: Codec) -> None:
    benchmark.group = "g_s"
    latents = codec.decode_latents(codec.compress(IMAGE))[None]
    run(benchmark, lambda: codec._engine.synthesise(latents, RATE))


def test_entropy_path(benchmark: Any, codec: Codec) -> None:
    """Without the range coder: the symbols of every pass are zero, which takes as long."""
    benchmark.group = "entropy path"
    run(benchmark, _float_path(codec) if codec.engine == "reference" else _exact_path(codec))


def _exact_path(codec: Codec) -> Callable[[], object]:
    symbols = torch.zeros(1, 8, 12, codec.packed.config.N, dtype=torch.int32).numpy()

    def no_symbols(index: int, parity: Any, indexes: Any, means: Any, found: Any) -> Any:
        return torch.zeros(means.shape, dtype=torch.int32).numpy()

    return lambda: code_latents(codec._engine._ops, symbols, no_symbols)


def _float_path(codec: Codec) -> Callable[[], object]:
    z_hat = torch.zeros(1, codec.model.config.N, 8, 12)

    def means_alone(index: int, parity: Any, scales: Any, means: Any) -> Any:
        return keep(means, parity)

    return lambda: codec.model.code_latents(codec.model.h_s(z_hat), means_alone)
