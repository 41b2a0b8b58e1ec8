"""Compiles and loads what the photograph model launches, as an engine does, without a GPU.

A stub takes the place of Triton's driver, so that nothing runs. Prints, as JSON, how many kernels
were compiled and the seconds it took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton

import mlic_fast
from mlic_fast.engine.gpu.gpu_engine import compile_path, device_transforms
from mlic_fast.engine.gpu.gpu_operations import GpuOps
from mlic_fast.kernels import configs
from mlic_fast.kernels.compile import StubDriver
from mlic_fast.kernels.functions import compile_only


def main() -> None:
    triton.runtime.driver.set_active(StubDriver(90))
    configs.architecture = lambda device: "sm90"
    compiled: list[str] = []

    def hook(*args: object, **kwargs: object) -> None:
        compiled.append(str(kwargs["repr"]))

    triton.knobs.runtime.jit_post_compile_hook = hook
    codec = mlic_fast.load(sys.argv[1] if sys.argv[1:] else "photo", device="cpu")
    ops = GpuOps(codec.packed, torch.device("cpu"))
    transforms = device_transforms(codec.model, torch.bfloat16, torch.device("cpu"))
    start = time.perf_counter()
    for encoding in (True, False):
        work = partial(compile_path, ops, transforms, torch.device("cpu"), 1, 8, 12, encoding)
        with torch.inference_mode():
            compile_only(work, os.cpu_count() or 1)
    seconds = time.perf_counter() - start
    print(json.dumps({"kernels": len(compiled), "seconds": seconds}))


if __name__ == "__main__":
    main()
