"""How long a product takes on an H200, by its tile: what tiles and parts are chosen by.

Fitted to 464 timed launches of 58 shapes with a mean error of 7 % (the first run on a GPU,
docs/kernel-times.md). Times are no part of any result.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Multiprocessors.
CORES = 132
#: Microseconds between two launches of which one waits for the other. Such a launch that does
#: nothing takes 1.1 in all.
GAP = 0.35


@dataclass(frozen=True)
class TileTimes:
    """Microseconds of a tile's launch, input, step and end."""

    launch: float
    input: float
    #: A step of K by a program alone, and by every program of a multiprocessor: with a block of K
    #: of 0, and what 64 more add.
    alone: tuple[float, float]
    shared: tuple[float, float]
    #: How sharply the one becomes the other.
    bend: float
    end: float

    def step(self, block_k: int, programs: int) -> tuple[float, float]:
        """The time of a step at full load, and the time it takes."""
        alone, shared = (a + b * block_k / 64 for a, b in (self.alone, self.shared))
        shared *= programs / CORES
        return shared, (alone**self.bend + shared**self.bend) ** (1 / self.bend)

    def product(self, block_k: int, programs: int, inputs: int, steps: int) -> float:
        """From the begin of the launch to its end; ``steps`` for each input."""
        _, step = self.step(block_k, programs)
        fixed = self.launch - GAP + self.end * programs / CORES
        return fixed + inputs * (self.input + steps * step)


#: By positions and outputs of a tile.
TILES = {
    (16, 64): TileTimes(0.912, 1.24, (0.069, 0.221), (0.053, 0.108), 3.513, 0.544),
    (32, 64): TileTimes(1.392, 1.336, (0.055, 0.233), (0.024, 0.234), 3.56, 0.265),
    (64, 32): TileTimes(1.485, 0.952, (0.142, 0.224), (0.081, 0.122), 3.313, 0.622),
    (64, 64): TileTimes(2.06, 0.8, (0.163, 0.312), (0.133, 0.228), 5.119, 0.904),
}


def totals(parts: int, programs: int) -> float:
    """The launch that adds the parts of a product, four at a time."""
    return 1.25 + 0.15 * -(-parts // 4) + 0.8 * programs / CORES
