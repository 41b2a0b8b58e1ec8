"""The little of torch.distributed that training needs; without torchrun everything is a single
process.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch import distributed as dist

from mlic_fast.training.run_config import TrainingError


def start(device: str) -> torch.device:
    """Joins the processes that torchrun started, if it did, and returns this process's device."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise TrainingError(f"device {device!r} cannot be used here: choose auto, cpu or cuda")
    if "LOCAL_RANK" in os.environ:
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device))
    return torch.device(device)


def stop() -> None:
    """Leaves the processes that :func:`start` joined, if it did."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 if it is the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Waits until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` holds in any process, so that all of them stop at the same step."""
    if not dist.is_initialized():
        return flag
    shared = torch.tensor([float(flag)], device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return bool(shared.item())


def mean(values: Tensor) -> Tensor:
    """Mean of a tensor of any shape over the processes."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= world_size()
    return values


def agreed(value: float, device: torch.device) -> float:
    """The value of the first process, so that all of them do the same."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return shared.item()


def share(values: Tensor) -> None:
    """Gives every process, in place, the values of the first; any shape."""
    if dist.is_initialized():
        dist.broadcast(values, 0)
