"""Is the GPU engine right here? Builds it, then runs its tests side by side: bits, not time.

    python benchmarks/gpu/check.py FOLDER [--seconds 120] [--rehearse]

Each step is a process with a log of its own, ``FOLDER/STEP.txt``; one that fails costs no other.
``FOLDER/check.json`` says what each came to, and the exit code is 1 if one did not pass. Needs
pytest and hypothesis. In a rehearsal the tests are collected, not run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"


def steps(rehearses: bool) -> dict[str, list[str]]:
    """Name -> command, the longest first."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider"]
    pytest += ["--collect-only"] if rehearses else []
    mlic_fast = [sys.executable, "-m", "mlic_fast.cli"]
    kernels = sorted((TESTS / "kernels").glob("test_*.py"), key=lambda file: -file.stat().st_size)
    engine = [
        TESTS / "engine" / f"test_{name}.py"
        for name in ("gpu", "fused_transforms", "gpu_transforms")
    ]
    files = [*engine, *kernels, TESTS / "test_self_check.py"]
    found = {file.stem: [*pytest, str(file)] for file in files}
    found["profiler"] = [*pytest, str(TESTS / "test_profile.py"), "-k", "taken_apart"]
    coder = [*pytest, str(TESTS / "coder" / "test_gpu_coder.py"), "-k"]
    found["coder"] = [*coder, "cuda"]
    found["doctor"] = [*mlic_fast, "doctor"]
    if not rehearses:
        found["golden streams"] = [*mlic_fast, "verify", "--engine", "gpu"]
    if memcheck := shutil.which("compute-sanitizer", path=os.environ["PATH"]):
        checked = [memcheck, "--tool", "memcheck", "--error-exitcode", "9"]
        some = [*coder, "cuda and (capacity or headers)"]
        found["memcheck"] = some if rehearses else [*checked, *some]
    return found


def main() -> int:
    start = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for logs and results")
    parser.add_argument("--seconds", type=float, default=120, help="default: %(default)s")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    end = start + (3600 if args.rehearse else args.seconds)
    environment = {
        **os.environ,
        "PATH": f"{os.environ['PATH']}:/usr/local/cuda/bin",
        "PYTHONPATH": str(ROOT),
        "MLIC_FAST_CUDA": "AUTO" if args.rehearse else "ON",
    }
    os.environ["PATH"] = environment["PATH"]

    def run(name: str, command: list[str], **more: str) -> dict[str, object]:
        begun = time.monotonic()
        with open(args.folder / f"{name}.txt", "w") as log:
            try:
                code = subprocess.run(
                    command,
                    cwd=ROOT,
                    env={**environment, **more},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=max(1.0, end - begun),
                ).returncode
            except subprocess.TimeoutExpired:
                code = -1
        seconds = round(time.monotonic() - begun, 1)
        lines = (args.folder / f"{name}.txt").read_text(errors="replace").splitlines()
        last = "out of time" if code == -1 else next(reversed(lines), "")
        print(f"[{time.monotonic() - start:5.1f} s] {name}: {code}, {last}", flush=True)
        return {"exit": code, "seconds": seconds, "last": last}

    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    found = {"build": run("build", build)}
    if found["build"]["exit"] == 0:
        cores = os.cpu_count() or 1
        threads = {"OMP_NUM_THREADS": "1" if cores < 8 else "2"}
        # Without PyTorch's cache every array is an allocation of its own; graphs need the cache.
        alone = {"memcheck": {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}}
        with ThreadPoolExecutor(max(1, cores - 2)) as pool:
            started = {
                name: pool.submit(run, name, command, **threads, **alone.get(name, {}))
                for name, command in steps(args.rehearse).items()
            }
            found |= {name: future.result() for name, future in started.items()}
    (args.folder / "check.json").write_text(json.dumps({"check": found}, indent=1) + "\n")
    # pytest's 5: a file without a test that is selected
    failed = [name for name, step in found.items() if step["exit"] not in (0, 5)]
    print(f"{len(found)} steps, {len(failed)} not passed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
