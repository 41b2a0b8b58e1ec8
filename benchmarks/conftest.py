"""What all suites share. ``benchmarks/suite.py`` runs them; see ``docs/benchmarks.md``.

On the CPU one thread is timed, by its processor time: what other programs do on the machine then
matters little. A yardstick, a loop of multiplications in registers, is timed beside each of these
benchmarks, so that results can be compared in units of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mlic_fast._C import exact
from mlic_fast.codec import Codec, load

#: Marks a suite that runs on the CPU.
CPU_SUITE = pytest.mark.benchmark(timer=time.process_time)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def yardstick(benchmark: Any, request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker(CPU_SUITE.name) is None:
        yield
        return
    before = _yardstick()
    yield
    benchmark.extra_info["yardstick_seconds"] = min(before, _yardstick())


def _yardstick() -> float:
    kernels = exact.Kernels(exact.instruction_sets()[0], 1)
    times = []
    for _ in range(5):
        start = time.process_time()
        kernels.peak(100_000)
        times.append(time.process_time() - start)
    return min(times)


@pytest.fixture(scope="session")
def photo() -> Codec:
    return load("photo")


@pytest.fixture(scope="session")
def reference() -> Codec:
    return load("photo", engine="reference")
