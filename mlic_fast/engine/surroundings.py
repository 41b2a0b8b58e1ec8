"""What a process has set globally reaches none of our results, and we leave it as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

#: The process that worked first; its children, when forked, have no threads of PyTorch.
_first_process: int | None = None


@contextmanager
def surroundings() -> Iterator[None]:
    """No gradients, autocast, default device or numpy errors but ours, while entered.

    Raises MemoryError where PyTorch finds no memory on the CPU, for which it has no type.

    In a child that was forked after the parent worked, PyTorch's operators run on one thread: those
    of OpenMP do not survive a fork, and waiting for them would never end. Our own kernels begin new
    threads there.
    """
    with (
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        torch.device("cpu"),
        np.errstate(all="ignore"),
        _whole_float32(),
        _threads_that_exist(),
    ):
        try:
            yield
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
            raise MemoryError(str(error)) from error


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Products of float32 are of float32, not of TF32 or bfloat16."""
    backends: Any = torch.backends
    switches = (
        *(backends.mkldnn.conv, backends.mkldnn.matmul),
        *(backends.cudnn.conv, backends.cuda.matmul),
    )
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


@contextmanager
def _threads_that_exist() -> Iterator[None]:
    global _first_process
    if _first_process is None:
        _first_process = os.getpid()
    threads = torch.get_num_threads()
    if _first_process == os.getpid() or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
