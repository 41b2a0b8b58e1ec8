"""Large pictures in bands of rows, so that what networks compute on the way takes little memory.

Arithmetic is exact, so a band has the values of the whole picture wherever its layers do not reach
beyond the rows that it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Positions of latents that are computed at a time, in whole rows.
BAND_POSITIONS = 1 << 15


class Band(NamedTuple):
    """Rows that are computed from the rows ``seen``, of which they are the rows ``inner``."""

    rows: slice
    seen: slice
    inner: slice


def bands(height: int, width: int, halo: int) -> list[Band]:
    """All rows of a picture of so many latents, in one band if it is small.

    Layers see ``halo`` rows on each side. Bands and what they see begin in even rows, where the
    colours of a row are those of the first.
    """
    halo += halo % 2
    rows = height
    if height * width > BAND_POSITIONS:
        rows = max(2 * halo, BAND_POSITIONS // width // 2 * 2, 2)
    found = []
    for first in range(0, height, rows):
        last = min(first + rows, height)
        start = max(0, first - halo)
        seen = slice(start, min(height, last + halo))
        found.append(Band(slice(first, last), seen, slice(first - start, last - start)))
    return found


def in_bands(found: list[Band], network: Callable[[slice], tuple[Array, ...]]) -> tuple[Array, ...]:
    """Run a network band by band and join what it gives: arrays [B, H, ..].

    ``network`` takes the rows that a band sees.
    """
    if len(found) == 1:
        return network(found[0].seen)
    whole: tuple[Array, ...] = ()
    for band in found:
        parts = network(band.seen)
        whole = whole or tuple(
            np.empty((each.shape[0], found[-1].rows.stop, *each.shape[2:]), each.dtype)
            for each in parts
        )
        for array, part in zip(whole, parts, strict=True):
            array[:, band.rows] = part[:, band.inner]
    return whole
