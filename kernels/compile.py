"""``python -m mlic_fast.kernels.compile``: compiles every kernel ahead of time, without a GPU.

Prints registers, bytes spilled, shared memory and the tensor-core instruction of every
specialisation and target, and fails on spills, on more shared memory than there is, on inexact
instructions in the exact path, and on a matrix product without tensor cores.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Compiling needs the real kernels: not those of the interpreter.
os.environ["TRITON_INTERPRET"] = "0"

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import mlic_fast.kernels
from mlic_fast.kernels.functions import EXACT, FREE
from mlic_fast.kernels.ptx import INEXACT
from mlic_fast.kernels.specialisation import Specialisation

#: Compute capabilities (A100; A10 and GeForce 30; L4 and GeForce 40; H100 and H200; B200; GeForce
#: 50), and the bytes of shared memory that a block may have there.
SHARED = {
    **{80: 163 << 10, 86: 99 << 10, 89: 99 << 10},
    **{90: 227 << 10, 100: 227 << 10, 120: 99 << 10},
}

#: In SASS: mma and wgmma, on int8 and in half precision.
_TENSOR_CORES = re.compile(r"\b(IMMA|IGMMA|UTCIMMA|HMMA|HGMMA|UTCHMMA)\b[.\w]*")
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Report:
    """What a specialisation became on a target."""

    kernel: str
    specialisation: str
    target: int
    registers: int
    spilled: int
    shared: int
    tensor_cores: str
    wrong: str


def specialisations() -> dict[str, Specialisation]:
    """Of all kernel files, by "file: name"."""
    found = {}
    for module in pkgutil.iter_modules(mlic_fast.kernels.__path__):
        if module.name == "compile":
            continue
        file = importlib.import_module(f"mlic_fast.kernels.{module.name}")
        for each in getattr(file, "SPECIALISATIONS", []):
            found[f"{module.name}: {each.name}"] = each
    return found


def compile_one(name: str, target: int) -> Report:
    """Compile for a compute capability."""
    each = specialisations()[name]
    signature: dict[str, Any] = dict.fromkeys(each.kernel.arg_names, "constexpr")
    aligned: dict[tuple[int, ...], Any] = {}
    for argument, types in each.arguments.items():
        index = each.kernel.arg_names.index(argument)
        if isinstance(types, tuple):
            signature[argument] = tuple(t.partition(":")[0] for t in types)
            paths: dict[tuple[int, ...], str] = {(index, i): t for i, t in enumerate(types)}
        else:
            signature[argument] = types.partition(":")[0]
            paths = {(index,): types}
        aligned |= {k: [["tt.divisibility", 16]] for k, t in paths.items() if t.endswith(":16")}
    source = ASTSource(each.kernel, signature, dict(each.constants), aligned)
    fusion = EXACT if each.exact else FREE
    options = {"num_warps": each.warps, "num_stages": each.stages, **fusion}
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _cuobjdump("-res-usage", file.name)
        sass = _cuobjdump("-sass", file.name)
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert match, usage
    registers, stack = int(match[1]), int(match[2])
    spilled = max(stack, 4 * len(re.findall(r"\b(?:LDL|STL)\b", sass)))
    instruction = _TENSOR_CORES.search(sass)
    wrong = []
    if spilled:
        wrong.append("spills")
    if compiled.metadata.shared > SHARED[target]:
        wrong.append("too much shared memory")
    if each.tensor_cores and not instruction:
        wrong.append("no tensor cores")
    if each.exact and (inexact := set(INEXACT.findall(compiled.asm["ptx"]))):
        wrong.append("inexact: " + ", ".join(sorted(inexact)))
    kernel, _, specialisation = name.partition(": ")
    return Report(
        kernel,
        specialisation,
        target,
        registers,
        spilled,
        compiled.metadata.shared,
        instruction[0] if instruction else "",
        ", ".join(wrong),
    )


def _cuobjdump(option: str, path: str) -> str:
    return subprocess.run(
        [_CUOBJDUMP, option, path], capture_output=True, text=True, check=True
    ).stdout


def compile_all(targets: list[int], jobs: int, only: str) -> Iterator[Report]:
    """Reports in order, as they come."""
    found = {name: each for name, each in specialisations().items() if only in name}
    work = [
        (name, target)
        for name, each in found.items()
        for target in targets
        if not each.targets or target in each.targets
    ]
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(compile_one, *zip(*work, strict=True))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mlic_fast.kernels.compile", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--targets",
        type=lambda text: [int(each) for each in text.split(",")],
        default=list(SHARED),
        help="compute capabilities (default: %(default)s)",
    )
    parser.add_argument("--only", default="", help="specialisations whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    failed = 0
    print(f"{'kernel':62} sm   regs spill  shared  tensor cores")
    for r in compile_all(options.targets, options.jobs, options.only):
        print(
            f"{r.kernel + ': ' + r.specialisation:62} {r.target:3} {r.registers:5} {r.spilled:5} "
            f"{r.shared:7}  {r.tensor_cores:28} {r.wrong}",
            flush=True,
        )
        failed += bool(r.wrong)
    if failed:
        print(f"{failed} not as they must be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
