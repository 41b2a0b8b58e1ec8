"""Compiles the range coder's CUDA kernels ahead of time, without a GPU; prints what they use.

    python benchmarks/compile_coder.py [--targets 80,86,89,90,100,120]

Exits 1 if a kernel does not compile or spills registers.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"
SOURCE = CSRC / "rans" / "gpu" / "launch.cu"
#: Parts of the mangled names, in the order of the table.
KERNELS = {
    "begin": "begin_kernel",
    "decode, cells in shared memory": "decode_kernelILb1E",
    "decode, cells in global memory": "decode_kernelILb0E",
    "finish": "finish_kernel",
    "prepare": "prepare_kernel",
    "collect": "collect_kernel",
    "write": "write_kernel",
}


@dataclass(frozen=True)
class Usage:
    """Of one kernel: registers a thread, bytes of static shared memory, bytes on the stack."""

    registers: int
    shared: int
    stack: int  # what is spilled lies there too


def compile_for(target: str) -> dict[str, Usage]:
    """What ptxas says of each kernel. Raises `subprocess.CalledProcessError`."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{target}", "-Xptxas=-v", "-cubin"]
        command += ["-Werror=all-warnings", f"-I{CSRC}", "-o", f"{folder}/coder.cubin", str(SOURCE)]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    usages = {}
    for part in log.split("Compiling entry function")[1:]:
        (name,) = (kernel for kernel, symbol in KERNELS.items() if symbol in part.split("\n")[0])
        stack = re.search(r"(\d+) bytes stack frame", part)
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        assert stack and registers
        usages[name] = Usage(int(registers[1]), int(shared[1]) if shared else 0, int(stack[1]))
    return usages


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", default="80,86,89,90,100,120")
    targets = parser.parse_args().targets.split(",")
    try:
        usages = {target: compile_for(target) for target in targets}
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr)
        return 1
    print("| kernel | shared memory | " + " | ".join(f"sm_{t}" for t in targets) + " |")
    print("|---" * (len(targets) + 2) + "|")
    for name in KERNELS:
        shared = max(usage[name].shared for usage in usages.values())
        cells = [str(usages[target][name].registers) for target in targets]
        print(f"| {name} | {shared} | " + " | ".join(cells) + " |")
    spilled = [f"{k} on sm_{t}" for t, usage in usages.items() for k, u in usage.items() if u.stack]
    if spilled:
        print(f"registers are spilled, or arrays are not in registers: {', '.join(spilled)}")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
