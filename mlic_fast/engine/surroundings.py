"""Global settings of a process change none of our results, and we leave them as they are.

Those of PyTorch are looked after only where PyTorch is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

_OUT_OF_MEMORY = (
    *("can't allocate memory", "out of memory", "std::bad_alloc", "can't start new thread"),
    *("could not create a primitive", "could not create a memory", "could not execute a primitive"),
)

#: The process that worked first; its children, when forked, have no threads of PyTorch.
_first_process: int | None = None


@contextmanager
def surroundings() -> Iterator[None]:
    """No gradients, autocast, default device or numpy errors but ours, while entered.

    Raises MemoryError where PyTorch finds no memory on the CPU.

    In a child that was forked after the parent worked, PyTorch's operators run on one thread: those
    of OpenMP do not survive a fork, and waiting for them would never end. Our own kernels begin new
    threads there.
    """
    global _first_process
    if _first_process is None:
        _first_process = os.getpid()
    with ExitStack() as stack:
        stack.enter_context(np.errstate(all="ignore"))
        if "torch" in sys.modules:
            import torch  # waits for another thread that is importing it

            stack.enter_context(torch.no_grad())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):  # entering costs more than all else here
                    stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(torch.device("cpu"))
            stack.enter_context(_whole_float32())
            stack.enter_context(_threads_that_exist())
        try:
            yield
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise MemoryError(str(error)) from error


def out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch, oneDNN or a thread found no memory on the CPU, for which they have no type.

    oneDNN writes each kernel when it is first asked for and says only what it could not create.
    """
    return any(text in str(error) for text in _OUT_OF_MEMORY)


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Products of float32 are of float32, not of TF32 or bfloat16."""
    import torch

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
    import torch

    threads = torch.get_num_threads()
    if _first_process == os.getpid() or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def thread_count() -> int:
    """How many threads the kernels use: as many as PyTorch, where it is imported.

    Else what it would choose: OMP_NUM_THREADS, or the cores that this process may run on.
    """
    if "torch" in sys.modules:
        import torch

        return torch.get_num_threads()
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(wanted) if wanted.isdecimal() and int(wanted) else _cores()


def set_thread_count(count: int) -> None:
    """Sets the number of threads of kernels and PyTorch; to be called before a codec is loaded."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)


def _cores() -> int:
    """Number of cores that this process may use; hardware threads of one core count once."""
    processors = os.sched_getaffinity(0)
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        return len({Path(siblings.format(each)).read_text() for each in processors})
    except OSError:
        return len(processors)
