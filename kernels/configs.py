"""Block sizes, warps and stages of every launch: static, by architecture and by size of the image.

Nothing here may change a bit, and nothing is tuned at run time. ``small`` images have too few
positions to fill the device with wide blocks, so narrow ones spread them over more of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """One launch: positions a program, warps, software stages."""

    block: int
    warps: int = 4
    stages: int = 3


#: Positions up to which an image is small: below, blocks of 64 leave most of 132 cores idle.
SMALL_POSITIONS = 4096

#: kernel -> (architecture, size) -> configuration; ``any`` serves all that have no entry.
CONFIGS: dict[str, dict[tuple[str, str], Config]] = {
    "window_qkv": {
        ("any", "small"): Config(16, warps=2),
        ("any", "large"): Config(64, warps=4),
    },
    "window_fusion": {
        ("any", "small"): Config(16, warps=4),
        ("any", "large"): Config(32, warps=4),
    },
    "linear_maxima": {("any", "any"): Config(64, warps=4)},
    "linear_contexts": {("any", "any"): Config(32)},
    "linear_apply": {
        ("any", "small"): Config(64, warps=4),
        ("any", "large"): Config(128, warps=4),
    },
    "softmax": {
        ("any", "small"): Config(16, warps=4),
        ("any", "large"): Config(64, warps=4),
    },
}


def architecture(device: torch.device) -> str:
    """``interpreter`` on a CPU, else ``sm80``, ``sm90``, .. by the compute capability."""
    if device.type == "cpu":
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def config(kernel: str, device: torch.device, positions: int) -> Config:
    """The configuration of one launch over ``positions`` positions (batch included)."""
    table = CONFIGS[kernel]
    size = "small" if positions <= SMALL_POSITIONS else "large"
    keys = ((architecture(device), size), ("any", size), ("any", "any"))
    return next(table[key] for key in keys if key in table)
