"""``python -m mlic_fast.kernels.compile``: compiles every kernel ahead of time, without a GPU.

What is compiled is what encodes and decodes of the models below launch, with the types, alignments
and constants of these launches, for small images and for large ones. Prints registers, bytes
spilled, shared memory and the tensor-core instructions of every kernel and target, and fails on
spills, on more shared memory than there is, on inexact instructions in the exact path, on a matrix
product without tensor cores, on loops that were to fetch ahead and do not, and on kernels that do
not wait for the launch before them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Compiling needs the real kernels: not those of the interpreter.
os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mlic_fast.engine.gpu.gpu_engine import compile_path, device_transforms
from mlic_fast.engine.gpu.gpu_operations import GpuOps
from mlic_fast.engine.packing.packer import pack
from mlic_fast.kernels import configs
from mlic_fast.kernels.functions import compiling_only
from mlic_fast.kernels.ptx import INEXACT, fetches_ahead
from mlic_fast.models import MlicConfig, create_model
from mlic_fast.models.config import PRESETS

#: Compute capabilities: A100; A10 and GeForce 30; L4 and GeForce 40; H100 and H200; B200; GeForce
#: 50.
TARGETS = tuple(int(name.removeprefix("sm")) for name in configs.SHARED_MEMORY)
#: All presets, and slices of 64 channels with the published widths.
MODELS = {**PRESETS, "wide": MlicConfig(slices=5)}
#: Up to how many positions an image is small: the smallest image stands for small ones, and for
#: large ones.
SMALL, LARGE = 1 << 30, 0

#: In SASS: mma and wgmma, on int8 and in half precision.
_TENSOR_CORES = re.compile(r"\b(IMMA|IGMMA|UTCIMMA|HMMA|HGMMA|UTCHMMA)\b[.\w]*")
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class StubDriver:
    """As much of a driver as compiling and loading ask for: nothing that is loaded can run."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.launcher_cls = lambda source, metadata: None
        properties = {"max_shared_mem": configs.SHARED_MEMORY[f"sm{target}"]}
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: properties,
            load_binary=lambda *_: (None, None, 0, 0, 1024),
        )

    def set_current_device(self, device: int) -> None:
        assert device == self._target

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._target, 32)

    def get_current_device(self) -> int:
        return self._target

    def get_current_stream(self, device: int) -> int:
        return 0


@dataclass(frozen=True)
class Variant:
    """A kernel as it is launched: types, constants and alignments of arguments, and options."""

    kernel: Any
    target: int
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.__module__.rpartition(".")[2] + ": " + self.kernel.__name__.strip("_")

    def __str__(self) -> str:
        names = self.kernel.arg_names
        constants = (f"{names[i]}={value}" for (i, *_), value in self.constants.items())
        return f"{self.name}, sm_{self.target}: {', '.join(constants)}, {self.options}"


@dataclass(frozen=True)
class Report:
    """What a variant became."""

    registers: int
    spilled: int
    shared: int
    tensor_cores: str
    wrong: str


def launches(config: MlicConfig, targets: Iterable[int]) -> Iterator[Variant]:
    """All variants that encodes and decodes with a model launch, once each."""
    model = create_model(config).eval()
    device = torch.device("cpu")
    packed = pack(model)
    found: dict[tuple[Any, ...], Variant] = {}

    def hook(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        kernel = fn.jit_function
        names = ("num_warps", "num_stages", "enable_fp_fusion")
        options = {name: compile[name] for name in names}
        found[kernel, target, compile["key"]] = Variant(
            kernel,
            target,
            compile["signature"],
            compile["constants"],
            compile["configs"][0],
            options,
        )
        return True  # it is not compiled now

    triton.knobs.runtime.jit_cache_hook = hook
    names = ("architecture", "SMALL_POSITIONS", "MOST_PARTS", "PARTED_PROGRAMS", "PRODUCT_TILES")
    before = {name: getattr(configs, name) for name in names}
    configs.PARTED_PROGRAMS = 1 << 30
    try:
        for target in targets:
            triton.runtime.driver.set_active(StubDriver(target))
            configs.architecture = cache(lambda _, target=target: f"sm{target}")
            ops = GpuOps(packed, device)  # weights are packed for the target
            transforms = device_transforms(model, torch.bfloat16, device)
            all_tiles = before["PRODUCT_TILES"]
            tiles = all_tiles.get(f"sm{target}", all_tiles["any"])
            for positions, outputs in tiles:
                sides = (positions, outputs), (positions, 64)  # those of 32 outputs are for some
                configs.PRODUCT_TILES = {"any": {side: tiles[side] for side in sides}}
                for configs.SMALL_POSITIONS, configs.MOST_PARTS in ((SMALL, 1), (LARGE, 12)):
                    for encoding in (True, False):
                        work = partial(compile_path, ops, transforms, device, 1, 1, 2, encoding)
                        configs._product_config.cache_clear()
                        with torch.inference_mode(), compiling_only():
                            work()
    finally:
        triton.knobs.runtime.jit_cache_hook = None
        for name, value in before.items():
            setattr(configs, name, value)
        configs._product_config.cache_clear()
    yield from found.values()


#: What workers compile: a process that is forked has it already.
_work: list[Variant] = []


def compile_one(number: int) -> Report:
    """Compiles a variant of ``_work`` by its number, and measures what came of it."""
    variant = _work[number]
    triton.runtime.driver.set_active(StubDriver(variant.target))  # kernels ask what they run on
    source = ASTSource(variant.kernel, variant.signature, variant.constants, variant.attributes)
    target = GPUTarget("cuda", variant.target, 32)
    compiled = triton.compile(source, target=target, options=variant.options)
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
    if compiled.metadata.shared > configs.SHARED_MEMORY[f"sm{variant.target}"]:
        wrong.append("too much shared memory")
    if "tt.dot" in compiled.asm["ttir"] and not instruction:
        wrong.append("no tensor cores")
    if variant.options["num_stages"] > 1 and not fetches_ahead(compiled.asm["ptx"]):
        wrong.append("a loop fetches nothing ahead")
    if variant.target >= 90 and "griddepcontrol.wait" not in compiled.asm["ptx"]:
        wrong.append("does not wait for the launch before")
    exact = not variant.options["enable_fp_fusion"]
    if exact and (inexact := set(INEXACT.findall(compiled.asm["ptx"]))):
        wrong.append("inexact: " + ", ".join(sorted(inexact)))
    return Report(
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


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if a kernel does not hold what this module checks."""
    parser = argparse.ArgumentParser(
        prog="python -m mlic_fast.kernels.compile", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--targets",
        type=lambda text: [int(each) for each in text.split(",")],
        default=list(TARGETS),
        help="compute capabilities (default: %(default)s)",
    )
    parser.add_argument(
        "--models",
        type=lambda text: text.split(","),
        default=list(MODELS),
        help="whose launches (default: %(default)s)",
    )
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    for model in options.models:
        for variant in launches(MODELS[model], options.targets):
            if options.only in variant.name and variant not in _work:
                _work.append(variant)
    reports = []
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        for variant, each in zip(_work, pool.imap(compile_one, range(len(_work))), strict=True):
            reports.append(each)
            if each.wrong:
                print(f"{each.wrong}: {each} of {variant}", flush=True)
    print_table(reports)
    return int(any(each.wrong for each in reports))


def print_table(reports: list[Report]) -> None:
    """A line for each kernel and target."""
    groups: defaultdict[tuple[str, int], list[Report]] = defaultdict(list)
    for variant, each in zip(_work, reports, strict=True):
        groups[variant.name, variant.target].append(each)
    print(f"{'kernel':42}  sm variants       regs          shared  tensor cores")
    for (name, target), group in sorted(groups.items()):
        registers, shared = (
            f"{min(values)} to {max(values)}"
            for values in ([r.registers for r in group], [r.shared for r in group])
        )
        instructions = ", ".join(sorted({r.tensor_cores for r in group} - {""}))
        print(f"{name:42} {target:3} {len(group):8} {registers:>10} {shared:>15}  {instructions}")


if __name__ == "__main__":
    sys.exit(main())
