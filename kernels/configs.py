"""Block sizes, warps and stages of every launch: static, by architecture and by size of the image.

Nothing here may change a bit, and nothing is tuned at run time. ``small`` images have too few
positions to fill the device with wide blocks, so narrow ones spread them over more of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch


@dataclass(frozen=True)
class Config:
    """One launch: positions a program, warps, software stages; outputs a program, where not all;
    parts that the steps of a product are taken in; rows of a depthwise convolution.
    """

    block: int
    warps: int = 4
    stages: int = 3
    outputs: int = 32
    parts: int = 1
    rows: int = 1


#: Positions up to which an image is small: below, blocks of 64 leave most of 132 cores idle.
SMALL_POSITIONS = 4096
#: The same for products, in positions times blocks of 64 outputs; larger ones are large. On an H200
#: the products of an MLIC++ decode of 768x512 take 2.19 ms with these three kinds of tiles, 2.18
#: with the best of eight for each shape, and 2.39 with the best one for all.
PRODUCT_SIZES = {"least": 1920, "small": 9216}
#: A product of one input is taken in parts if it has so many steps at least, and so that there are
#: as many programs at most, of as many steps at least. By the model of benchmarks/gpu_model.py that
#: takes all products of that decode from 2.13 ms to 1.97, with a second launch of 2 us for each of
#: 68.
PARTED_STEPS, PARTED_PROGRAMS, PART_STEPS = 18, 320, 4
#: With more tiles than this it is parted if it has half as many steps again: then there is less to
#: gain.
PARTED_TILES = 24

#: kernel -> (architecture, size) -> configuration; ``any`` serves all that have no entry.
CONFIGS: dict[str, dict[tuple[str, str], Config]] = {
    "product": {
        ("interpreter", "any"): Config(128, outputs=128),
        ("any", "least"): Config(16, outputs=64, stages=4),
        ("sm90", "large"): Config(64, outputs=64),  # with mma instead of wgmma it would spill
        ("sm90", "parted"): Config(64, outputs=64),
        ("any", "any"): Config(32, outputs=64),  # with four stages one would spill
    },
    "totals": {
        ("interpreter", "any"): Config(128, outputs=128),
        ("any", "any"): Config(32, outputs=64),
    },
    # 32 positions of the pass kernel would spill. Its stages are as many as shared memory holds.
    "pass": {
        ("interpreter", "any"): Config(64),
        ("any", "any"): Config(16, warps=8, stages=3),
    },
    "elements": {
        ("interpreter", "any"): Config(512, outputs=128),
        ("any", "any"): Config(32),
    },
    "depthwise": {
        ("interpreter", "any"): Config(512, outputs=128, rows=2),
        ("any", "small"): Config(32, rows=2),
        ("any", "large"): Config(32, rows=4),
    },
    "window_qkv": {
        ("any", "small"): Config(16, warps=2),
        ("any", "large"): Config(64, warps=4),
    },
    # One window and head a program: a warp has 16 of the 25 tokens.
    "window_attention": {("any", "any"): Config(1, warps=2)},
    "window_mlp": {
        ("any", "small"): Config(16, outputs=64),
        ("any", "large"): Config(32, outputs=64),
    },
    # Slices of more than 32 channels, which the published models do not have.
    "window_qkv_wide": {("any", "any"): Config(16)},
    "window_mlp_wide": {("any", "any"): Config(16, warps=8, outputs=64)},
    "linear_maxima": {("any", "any"): Config(64, warps=4)},
    "linear_contexts": {("any", "any"): Config(32)},
    "linear_apply": {
        ("any", "small"): Config(64, warps=4),
        ("any", "large"): Config(128, warps=4),
    },
    # The transforms. Positions here are the pixels of a layer, and all channels are outputs.
    "activate": {
        ("interpreter", "any"): Config(2048, outputs=64),
        ("any", "any"): Config(32, outputs=64),
    },
    "normalise": {
        ("interpreter", "any"): Config(2048),
        ("sm90", "any"): Config(64, warps=8),
        ("sm100", "any"): Config(64, warps=8),
        ("any", "any"): Config(32, outputs=16),  # others have less shared memory
    },
    "to_pixels": {
        ("interpreter", "any"): Config(4096),
        ("any", "any"): Config(256),
    },
    "softmax": {
        ("any", "small"): Config(16),
        ("any", "large"): Config(64, warps=4),
    },
}


#: Bytes of shared memory that a block may have, by architecture; others have the least.
SHARED_MEMORY = {
    **{"sm80": 163 << 10, "sm86": 99 << 10, "sm89": 99 << 10},
    **{"sm90": 227 << 10, "sm100": 227 << 10, "sm120": 99 << 10},
}


@cache
def architecture(device: torch.device) -> str:
    """``sm80``, ``sm90``, .. by the compute capability, ``interpreter`` without a GPU."""
    if device.type != "cuda":
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def programmatic(device: torch.device) -> bool:
    """Whether a kernel may begin before the one before it has ended, and wait for it then."""
    name = architecture(device)
    return name.startswith("sm") and int(name[2:]) >= 90


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block may have."""
    return SHARED_MEMORY.get(architecture(device), min(SHARED_MEMORY.values()))


def config(kernel: str, device: torch.device, positions: int) -> Config:
    """The configuration of one launch over ``positions`` positions (batch included)."""
    table = CONFIGS[kernel]
    size = "small" if positions <= SMALL_POSITIONS else "large"
    return _find(table, architecture(device), size)


def product_config(
    device: torch.device, positions: int, outputs: int, steps: int, inputs: int = 1
) -> Config:
    """The configuration of a product of [positions, K] and [K, outputs], K in ``steps`` blocks for
    each of ``inputs``.
    """
    table, kind = CONFIGS["product"], architecture(device)
    if inputs == 1:
        found = _find(table, kind, "parted")
        if 0 < outputs % 64 <= 32:
            found = replace(found, outputs=32)
        tiles = -(-positions // found.block) * -(-outputs // found.outputs)
        least = PARTED_STEPS if tiles <= PARTED_TILES else 3 * PARTED_STEPS // 2
        parts = min(PARTED_PROGRAMS // tiles, steps // PART_STEPS)
        if steps >= least and parts > 1:
            return replace(found, parts=parts)
    tiles = positions * -(-outputs // 64)
    size = next((name for name, most in PRODUCT_SIZES.items() if tiles <= most), "large")
    return _find(table, kind, size)


def _find(table: dict[tuple[str, str], Config], architecture: str, size: str) -> Config:
    keys = ((architecture, size), (architecture, "any"), ("any", size), ("any", "any"))
    return next(table[key] for key in keys if key in table)
