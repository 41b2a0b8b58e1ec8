"""What a result was measured on, and how fast that machine is at best."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import mlic_fast
from mlic_fast._C import exact


def describe_machine() -> dict[str, Any]:
    """Processor, versions and, in a checkout, the commit."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_sets": exact.instruction_sets(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mlic_fast": mlic_fast.__version__,
        "commit": _commit(),
    }


def matrix_peak(dtype: torch.dtype) -> float:
    """Multiplications and additions a second in PyTorch's matrix product of a dtype, in pairs."""
    side = 1024
    a, b = torch.ones(side, side, dtype=dtype), torch.ones(side, side, dtype=dtype)
    return side**3 / _best(lambda: a @ b)


def integer_peak(isa: str, threads: int) -> float:
    """Integer products a second of the exact arithmetic's kernels, from registers alone."""
    kernels = exact.Kernels(isa, 1)
    iterations = 200_000
    products = kernels.peak(iterations)
    with ThreadPoolExecutor(threads) as pool:
        return (
            threads
            * products
            / _best(lambda: list(pool.map(lambda _: kernels.peak(iterations), range(threads))))
        )


def _best(work: Callable[[], object], runs: int = 7) -> float:
    """Seconds of the fastest run."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    folder = Path(mlic_fast.__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None
