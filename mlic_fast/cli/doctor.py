"""``mlic-fast doctor``: what this machine has, and what the codec would use of it."""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

from mlic_fast.cli.options import add_json_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.epilog = (
        "Prints the processor, GPUs, driver and versions, what device 'auto' takes and why, and\n"
        "the folders of caches. Decodes a golden stream on the CPU and on every GPU, and compares\n"
        "it bit for bit; exits with 1 if one of them is wrong. mlic-fast verify checks more."
    )
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Look and check."""
    found = examine()
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(_lines(found)))
    return 1 if any(check["problem"] for check in found["self_checks"]) else 0


def examine() -> dict[str, Any]:
    """All that is printed; of each device whether it codes a golden stream right."""
    import torch

    import mlic_fast
    from mlic_fast import self_check
    from mlic_fast.engine import gpu_problem
    from mlic_fast.profiling.machine import describe_machine

    machine = describe_machine()
    problem = gpu_problem()
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    checks = [_check("cpu")] + [_check(gpu) for gpu in gpus if problem is None]
    return {
        "versions": {
            **{"mlic_fast": mlic_fast.__version__, "python": machine["python"]},
            **{name: machine[name] for name in ("torch", "triton", "numpy")},
            "cuda": torch.version.cuda,
            "driver": self_check.driver_version() if gpus else None,
        },
        "folder": str(Path(mlic_fast.__file__).parent),
        "cpu": {
            **{"name": machine["cpu"], "cores": machine["cores"], "threads": machine["threads"]},
            "instruction_sets": machine["instruction_sets"],
        },
        "gpus": [_gpu(gpu) for gpu in gpus],
        "gpu_problem": problem,
        "self_checks": checks,
        "caches": _caches(),
        "auto": _auto(),
    }


def _gpu(name: str) -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(name)
    return {
        "device": name,
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory": found.total_memory,
        "multiprocessors": found.multi_processor_count,
    }


def _check(device: str) -> dict[str, Any]:
    """Whatever goes wrong is a finding."""
    import mlic_fast
    from mlic_fast import self_check

    start = time.perf_counter()
    try:
        codec = mlic_fast.load("photo", device=device)
        start = time.perf_counter()
        problem = self_check.check(codec)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    return {"device": device, "problem": problem, "seconds": time.perf_counter() - start}


def _caches() -> dict[str, str]:
    from mlic_fast.self_check import cache_folder

    triton = os.environ.get("TRITON_CACHE_DIR") or str(Path.home() / ".triton" / "cache")
    return {"mlic_fast": str(cache_folder()), "triton": triton}


def _auto() -> dict[str, str]:
    """What it takes, by taking it."""
    import mlic_fast
    from mlic_fast.engine import gpu_problem

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        codec = mlic_fast.load("photo")
    said = [str(each.message) for each in caught if each.category is RuntimeWarning]
    why = " ".join(said) or gpu_problem() or "a golden stream decodes bit for bit there"
    return {"device": str(codec.device), "engine": codec.engine, "why": why}


def _lines(found: dict[str, Any]) -> list[str]:
    cpu, auto, versions = found["cpu"], found["auto"], found["versions"]
    lines = [", ".join(f"{name} {value}" for name, value in versions.items() if value)]
    lines += [f"mlic_fast lies in {found['folder']}"]
    lines += [
        f"cpu: {cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads, "
        f"{', '.join(cpu['instruction_sets'])}"
    ]
    for gpu in found["gpus"]:
        lines += [
            f"{gpu['device']}: {gpu['name']}, compute capability {gpu['capability']}, "
            f"{gpu['memory'] / 2**30:.0f} GiB, {gpu['multiprocessors']} multiprocessors"
        ]
    if found["gpu_problem"]:
        lines += [f"engine gpu: cannot run: {found['gpu_problem']}"]
    for check in found["self_checks"]:
        result = f"FAILED: {check['problem']}" if check["problem"] else "ok, bit for bit"
        lines += [f"self-check on {check['device']}: {result} ({check['seconds']:.2f} s)"]
    lines += [f"cache of {name}: {folder}" for name, folder in found["caches"].items()]
    return [*lines, f"auto takes {auto['device']}, engine {auto['engine']}: {auto['why']}"]
