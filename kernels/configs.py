"""Block sizes, warps and stages of every launch: static, by architecture and by size of the image.

Nothing here may change a bit, and nothing is tuned at run time. ``small`` images have too few
positions to fill the device with wide blocks, so narrow ones spread them over more of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

import torch

from mlic_fast.kernels.product_times import GAP, TILES, totals


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


#: Grid up to which an image is small: below, blocks of 64 leave most of 132 cores idle.
SMALL_POSITIONS = 4096
#: Tiles of products, positions by outputs, by architecture. Which one a product has, and in how
#: many parts its steps are taken, is what takes least by the times of product_times.py.
PRODUCT_TILES = {
    "interpreter": {(128, 128): Config(128, outputs=128)},
    "sm90": {
        (16, 64): Config(16, outputs=64, stages=4),
        (32, 64): Config(32, outputs=64),  # with four stages one would spill
        (64, 32): Config(64),  # only where it has the outputs that a tile of 64 would leave empty
        (64, 64): Config(64, outputs=64),
    },
    # With mma instead of wgmma those of 64 positions would spill.
    "any": {
        (16, 64): Config(16, outputs=64, stages=4),
        (32, 64): Config(32, outputs=64),
    },
}
#: Where a step of K may have 128 channels. Elsewhere nothing was timed, or shared memory is less.
WIDE_STEPS = ("interpreter", "sm90")
#: A product of one input is taken in at most so many parts, of at least so many steps, if it then
#: has at most so many programs.
MOST_PARTS, PART_STEPS, PARTED_PROGRAMS = 12, 2, 320

#: kernel -> (architecture, size) -> configuration; ``any`` serves all that have no entry.
CONFIGS: dict[str, dict[tuple[str, str], Config]] = {
    "totals": {
        ("interpreter", "any"): Config(128, outputs=128),
        ("any", "any"): Config(32, outputs=64),
    },
    # 32 positions of the pass kernel would spill. Its stages are as many as shared memory holds.
    "pass": {
        ("interpreter", "any"): Config(64),
        ("sm120", "any"): Config(16, warps=4, stages=3),
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
    "window_mlp_wide": {
        ("sm100", "any"): Config(16, outputs=64),
        ("sm120", "any"): Config(16, outputs=64),
        ("any", "any"): Config(16, warps=8, outputs=64),
    },
    "linear_contexts": {("any", "any"): Config(32)},
    "linear_apply": {
        ("any", "small"): Config(64, warps=4),
        ("any", "large"): Config(128, warps=4),
    },
    # The transforms. Positions here are the pixels of a layer, and all channels are outputs.
    "first": {
        ("interpreter", "any"): Config(2048, outputs=64, stages=1),
        ("any", "any"): Config(64, outputs=64, stages=1),
    },
    "activate": {
        ("interpreter", "any"): Config(2048, outputs=64),
        ("any", "any"): Config(32, outputs=64),
    },
    "normalise": {
        ("interpreter", "any"): Config(2048),
        ("sm90", "any"): Config(64, warps=8),
        ("sm100", "any"): Config(64, warps=8),
        # Others have less shared memory.
        ("sm120", "any"): Config(32, warps=8, outputs=16),
        ("any", "any"): Config(32, outputs=16),
    },
    "to_pixels": {
        ("interpreter", "any"): Config(4096),
        ("any", "any"): Config(256),
    },
    "softmax": {
        ("sm90", "small"): Config(16, warps=8),
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
    return _programmatic(architecture(device))


@cache
def _programmatic(architecture: str) -> bool:
    return architecture.startswith("sm") and int(architecture[2:]) >= 90


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block may have."""
    return SHARED_MEMORY.get(architecture(device), min(SHARED_MEMORY.values()))


def config(kernel: str, device: torch.device, positions: int) -> Config:
    """The configuration of one launch over ``positions`` positions (batch included)."""
    size = "small" if positions <= SMALL_POSITIONS else "large"
    return _config(kernel, architecture(device), size)


@cache
def _config(kernel: str, architecture: str, size: str) -> Config:
    table = CONFIGS[kernel]
    keys = ((architecture, size), (architecture, "any"), ("any", size), ("any", "any"))
    return next(table[key] for key in keys if key in table)


def wide_steps(device: torch.device) -> bool:
    """Whether WIDE_STEPS has the device."""
    return architecture(device) in WIDE_STEPS


def product_step(device: torch.device, channels: int) -> int:
    """How many channels of an input a step of K has; beyond them are zeros, which cost less than
    steps.
    """
    if channels % 128 == 0 and wide_steps(device):
        return 128
    return 64 if channels > 32 else 32


def product_config(
    device: torch.device, positions: int, outputs: int, inputs: int, steps: int, block_k: int
) -> Config:
    """The configuration of a product of [positions, K] and [K, outputs], K in ``steps`` blocks for
    each of ``inputs``.
    """
    return _product_config(architecture(device), positions, outputs, inputs, steps, block_k)


@cache
def _product_config(
    architecture: str, positions: int, outputs: int, inputs: int, steps: int, block_k: int
) -> Config:
    narrow = 0 < outputs % 64 <= 32
    best, least = None, math.inf
    choice = PRODUCT_TILES.get(architecture, PRODUCT_TILES["any"])
    for (block, width), tile in choice.items():
        if width == 32 and not narrow:
            continue
        times = TILES.get((block, width), TILES[64, 64])
        tiles = -(-positions // block) * -(-outputs // width)
        adding = -(-positions // 32) * -(-outputs // 64)
        for parts in _parts(tiles, inputs, steps):
            us = times.product(block_k, tiles * parts, inputs, -(-steps // parts))
            if parts > 1:
                us += GAP + totals(parts, adding)
            if us < least:
                best, least = replace(tile, parts=parts), us
    assert best is not None
    return best


def _parts(tiles: int, inputs: int, steps: int) -> Iterable[int]:
    most = min(MOST_PARTS, steps // PART_STEPS, PARTED_PROGRAMS // tiles) if inputs == 1 else 1
    return range(1, max(1, most) + 1)
