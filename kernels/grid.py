"""Where activations lie: grids of positions, and what a kernel reads of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

#: Instead of a colour: all positions.
ALL = -1
#: How an input is read: as it is; as zero off one colour; or stored squeezed to one colour.
FULL, KEPT, SQUEEZED = range(3)


@dataclass(frozen=True)
class Positions:
    """B, H and W of the full grid of latents."""

    batch: int
    height: int
    width: int

    @property
    def count(self) -> int:
        return self.batch * self.height * self.width


@dataclass(frozen=True)
class Input:
    """Planes int8 [2, B, H, W, C] ([2, B, H, W/2, C] if SQUEEZED), and how they are read.

    Channels are contiguous; positions are equally spaced, so it may be a slice of the channels of
    a larger tensor.
    """

    planes: Tensor
    kind: int = FULL
    colour: int = 0
