"""Prints whether the product kernel fetches ahead: as it is, and with branches at its loop's end.

With branches, as it once was, Triton waits in every step for the copies of that step.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

os.environ["TRITON_INTERPRET"] = "0"

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mlic_fast.kernels import products
from mlic_fast.kernels.ptx import fetches_ahead

SELECTIONS = """\
        next_tap = first >= channels
        first = tl.where(next_tap, 0, first)
        dx += next_tap.to(tl.int32)
        next_row = dx > side // 2
        dx = tl.where(next_row, -(side // 2), dx)
        dy += next_row.to(tl.int32)
"""
BRANCHES = """\
        if first >= channels:
            first = 0
            dx += 1
            if dx > side // 2:
                dx = -(side // 2)
                dy += 1
"""
CONSTANTS = {"AT": -1, "INPUT": 0, "COLOUR": 0, "BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 64}
POINTERS = {"x": "*i8", "w": "*i8", "totals": "*i32"}
#: Arguments that are multiples of 16, as those of real launches are.
ALIGNED = (*POINTERS, "outputs", "channels", "x_plane", "x_position", "x_input", "w_plane")


def ahead(module: ModuleType) -> bool:
    kernel = module._parts_kernel
    names = kernel.arg_names
    signature = dict.fromkeys(names, "i32") | POINTERS | dict.fromkeys(CONSTANTS, "constexpr")
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in ALIGNED}
    compiled = triton.compile(
        ASTSource(kernel, signature, CONSTANTS, attributes),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": 4, "num_stages": 4, "enable_fp_fusion": False},
    )
    return fetches_ahead(compiled.asm["ptx"])


def with_branches(folder: Path) -> ModuleType:
    source = Path(products.__file__).read_text()
    assert source.count(SELECTIONS) == 1
    path = folder / "branches.py"
    path.write_text(source.replace(SELECTIONS, BRANCHES))
    spec = importlib.util.spec_from_file_location("branches", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["branches"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps([ahead(products), ahead(with_branches(Path(folder)))]))
