"""Where activations lie: grids of positions, and what a kernel reads of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from mlic_fast.kernels.planes import ALL

#: How an activation is stored and read: on the full grid; on the full grid, but zero off one
#: colour; on the full grid, but only the positions of one colour; squeezed to one colour.
FULL, KEPT, ONE_COLOUR, SQUEEZED = range(4)


@dataclass(frozen=True)
class Grid:
    """B, H and W of the full grid of latents."""

    batch: int
    height: int
    width: int

    @property
    def count(self) -> int:
        return self.batch * self.height * self.width


class KeySums(NamedTuple):
    """What linear attention begins with: the maxima of the keys, and sums over positions, zero.

    ``maxima`` int32 [B, blocks, heads D], of blocks of positions; ``contexts`` int64
    [B, heads, D, D]; ``totals`` int64 [B, heads, D].
    """

    maxima: Tensor
    contexts: Tensor
    totals: Tensor


@dataclass(frozen=True)
class Input:
    """Planes int8 [2, B, H, W, C] ([2, B, H, W/2, C] if SQUEEZED), and how they are read.

    Channels are contiguous; positions are equally spaced, so it may be a slice of the channels of
    a larger tensor. ``colour``: 0 non-anchors, 1 anchors. ``sums``: of keys, if they are there.
    """

    planes: Tensor
    kind: int = FULL
    colour: int = 0
    sums: KeySums | None = None

    @property
    def read(self) -> int:
        """The colour whose positions of ``planes`` are read, or ALL."""
        return self.colour if self.kind == ONE_COLOUR else ALL
