"""Launch configurations: static, by architecture and size, so that nothing is tuned at run time."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """Block of positions, block of outputs or channels, warps, stages of the pipeline."""

    m: int
    n: int
    warps: int
    stages: int


#: Few positions (a Kodak image has 1536 latents): small tiles, so that all processors have one.
SMALL = Tile(64, 32, 4, 4)
LARGE = Tile(128, 64, 8, 3)
TILES = (SMALL, LARGE)
#: In the interpreter a program costs milliseconds, whatever its size.
INTERPRETED = Tile(128, 128, 4, 1)
#: Tiles of LARGE that keep the processors of any GPU busy.
_ENOUGH = 264


def tile_for(device: torch.device, positions: int, outputs: int) -> Tile:
    """The tile for a product of [positions, K] and [K, outputs]."""
    if device.type == "cpu":
        return INTERPRETED
    tiles = -(-positions // LARGE.m) * -(-outputs // LARGE.n)
    return LARGE if tiles >= _ENOUGH else SMALL


def elements_for(device: torch.device) -> Tile:
    """The tile of an elementwise kernel: positions and channels."""
    return Tile(512, 128, 4, 1) if device.type == "cpu" else Tile(32, 32, 4, 1)


def pass_for(device: torch.device) -> Tile:
    """The tile of the pass kernel, which has all outputs; 32 positions would spill."""
    return Tile(64, 0, 8, 1) if device.type == "cpu" else Tile(16, 0, 8, 2)
