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
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton

from mlic_fast.kernels import configs, functions, products
from mlic_fast.kernels.compile import StubDriver
from mlic_fast.kernels.layouts import Grid, Input
from mlic_fast.kernels.ptx import fetches_ahead

SELECTIONS = """\
        next_tap = first_channel >= weights.channels
        first_channel = tl.where(next_tap, 0, first_channel)
        dx += next_tap.to(tl.int32)
        next_row = dx > side // 2
        dx = tl.where(next_row, -(side // 2), dx)
        dy += next_row.to(tl.int32)
"""
BRANCHES = """\
        if first_channel >= weights.channels:
            first_channel = 0
            dx += 1
            if dx > side // 2:
                dx = -(side // 2)
                dy += 1
"""


def ahead(module: ModuleType) -> bool:
    """Of a 3x3 convolution of 64 channels in parts."""
    compiled: list[Any] = []

    def keep(kernel: Any, grid: Any, *args: Any, **options: Any) -> None:
        if kernel is module._parts_kernel:
            compiled.append(kernel.warmup(*args, grid=grid, **functions.EXACT, **options))

    module.launch = module.launch_tiles = keep  # type: ignore[attr-defined]
    tile = configs.Config(32, outputs=64, stages=4, parts=2)
    module.product_config = lambda *_: tile  # type: ignore[attr-defined]
    planes = torch.zeros((2, 9, 64, 64), dtype=torch.int8)
    weights = module.ProductWeights(planes, torch.ones((1, 64)), torch.ones(64), 64, 3)
    x = torch.zeros((2, 1, 3, 5, 64), dtype=torch.int8)
    out = torch.zeros((1, 3, 5, 64))
    module.conv(Input(x), weights, Grid(1, 3, 5), out=out)
    (kernel,) = compiled
    return fetches_ahead(kernel.asm["ptx"])


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
    triton.runtime.driver.set_active(StubDriver(90))
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps([ahead(products), ahead(with_branches(Path(folder)))]))
