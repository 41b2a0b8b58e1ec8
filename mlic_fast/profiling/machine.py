"""What a result was measured on, and how fast that machine is at best."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import mlic_fast
from mlic_fast._C import exact

CPU = torch.device("cpu")
_PACKAGES = ("torch", "triton", "numpy", "compressai", "constriction")


def describe_machine(device: torch.device = CPU) -> dict[str, Any]:
    """Processor or GPU, clocks, load, versions and, in a checkout, the commit."""
    machine = {
        "name": "",
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_sets": exact.instruction_sets(),
        "cpu_mhz": _clock(),
        "load": os.getloadavg()[0],
        "gpu": _gpu(device),
        "system": platform.platform(),
        "python": platform.python_version(),
        "mlic_fast": mlic_fast.__version__,
        **{name: _version(name) for name in _PACKAGES},
        "commit": describe_commit(),
    }
    return {**machine, "name": machine_name(machine)}


def machine_name(machine: dict[str, Any]) -> str:
    """Short enough for a folder; machines of one kind have one name."""
    if machine.get("gpu"):
        text = machine["gpu"]["name"]
    else:
        text = f"{machine['cpu']} {machine['instruction_sets'][0]} {machine['cores']} cores"
    text = re.sub(r"\((r|tm)\)|processor|@.*?ghz", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


@cache
def matrix_peak(dtype: torch.dtype, device: torch.device = CPU) -> float:
    """Multiplications and additions a second in PyTorch's matrix product of a dtype, in pairs."""
    side = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    return side**3 / _best(lambda: a @ b, device)


@cache
def integer_peak(device: torch.device = CPU) -> float:
    """Products a second of a weight and an activation of the exact arithmetic.

    On the CPU those of the kernels' instruction of the best instruction set, from registers alone,
    with as many threads as PyTorch has; on a CUDA device those of its int8 matrix product, four of
    which make one (docs/arithmetic.md).
    """
    if device.type != "cpu":
        side = 8192
        a, b = (torch.ones(side, side, dtype=torch.int8, device=device) for _ in range(2))
        return side**3 / _best(lambda: torch._int_mm(a, b.T), device) / 4
    kernels = exact.Kernels(exact.instruction_sets()[0], 1)
    # Some ms, beside which the start of a thread is short.
    iterations, threads = 2_000_000, torch.get_num_threads()
    products = kernels.peak(iterations)
    with ThreadPoolExecutor(threads) as pool:
        return (
            threads
            * products
            / _best(
                lambda: list(pool.map(lambda _: kernels.peak(iterations), range(threads))), device
            )
        )


@cache
def bandwidth(device: torch.device = CPU) -> float:
    """Bytes a second that a copy reads and writes, of the size that is fastest.

    Activations often stay in a cache, so the memory alone would be no bound.
    """
    sizes = (1 << 20, 1 << 22, 1 << 24, 1 << 28) if device.type == "cpu" else (1 << 24, 1 << 30)
    speeds = []
    for size in sizes:
        a, b = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
        # Several copies at a time, so that reading the clock does not count.
        times = max(1, (1 << 24) // size)
        seconds = _best(partial(_copy, a, b, times), device)
        speeds.append(2 * size * times / seconds)
    return max(speeds)


def _copy(source: torch.Tensor, target: torch.Tensor, times: int) -> None:
    for _ in range(times):
        target.copy_(source)


def _best(work: Callable[[], object], device: torch.device, runs: int = 9) -> float:
    """Seconds of the fastest run, after one that warms up."""
    work()
    times = []
    for _ in range(runs):
        _synchronise(device)
        start = time.perf_counter()
        work()
        _synchronise(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    names = _cpuinfo("model name")
    return names[0] if names else platform.processor() or platform.machine()


def _clock() -> float | None:
    """Clock of the fastest core at this moment, in MHz."""
    return max(map(float, _cpuinfo("cpu MHz")), default=None)


def _cpuinfo(key: str) -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]


def _gpu(device: torch.device) -> dict[str, str] | None:
    """Name, driver and clocks of a CUDA device, as nvidia-smi tells them."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    columns = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit")
    index = torch.cuda.current_device() if device.index is None else device.index
    text = _output(
        "nvidia-smi", f"--id={index}", f"--query-gpu={','.join(columns)}", "--format=csv,noheader"
    )
    values = [value.strip() for value in (text or "").split(",")]
    told = dict(zip(columns, values, strict=True)) if len(values) == len(columns) else {}
    return {"name": properties.name, "cuda": str(torch.version.cuda), **told}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe_commit() -> str | None:
    """The commit of the checkout that the package lies in; None where there is none."""
    folder = str(Path(mlic_fast.__file__).parent)
    return _output("git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=12")


def _output(*command: str) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None
