"""The 64 tables of the Gaussian conditional: symbols round(y - mean) of latents of known scale."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlic_fast.coder.arrays import as_numpy
from mlic_fast.coder.elementary import Array, erfc, exp
from mlic_fast.coder.tables import Tables, apportion, deserves_entry

LN_SMALLEST = -2.2072749131897207  # ln(0.11)
LN_LARGEST = 5.545177444479562  # ln(256)
LEVELS = 64
SCALES: NDArray[np.float32] = exp(
    LN_SMALLEST + np.arange(LEVELS) * ((LN_LARGEST - LN_SMALLEST) / (LEVELS - 1))
).astype(np.float32)
"""Scales of the tables, log-spaced from 0.11 to 256 like CompressAI's, the same everywhere."""

SQRT2 = 1.4142135623730951
FINE_BELOW = 0.2  # nearly all mass is in one symbol: 14 bits are too coarse for the others
NARROW_BELOW = 64.0
NARROW_WIDTH = 127  # keeps the tables of these scales within the shared memory of a GPU


def scale_indexes(scales: Any) -> NDArray[np.uint8]:
    """The table of each scale: the first whose scale is not smaller, else (also for NaN) the last.

    Args:
        scales: float32, any shape; a numpy array or a torch CPU tensor.
    """
    return np.searchsorted(SCALES[:-1], as_numpy(scales).astype(np.float32)).astype(np.uint8)


@lru_cache(maxsize=1)
def gaussian_tables() -> Tables:
    """Tables 0 to 63, for `SCALES`; 14 bits, 16 for the five scales below 0.2."""
    tables = [_gaussian_table(float(scale)) for scale in SCALES]
    frequencies, precisions = zip(*tables, strict=True)
    sizes = np.array([len(f) for f in frequencies], np.int32)
    return Tables(
        frequencies=np.concatenate(frequencies),
        sizes=sizes,
        minima=-(sizes - 2) // 2,
        precisions=np.array(precisions, np.uint8),
    )


def _gaussian_table(scale: float) -> tuple[NDArray[np.uint16], int]:
    """Frequencies of -width .. width and of the escape; precision."""
    precision = 16 if scale < FINE_BELOW else 14
    edges = (np.arange(int(8 * scale) + 3) + 0.5) / (scale * SQRT2)
    above: Array = 0.5 * erfc(edges)  # P(symbol > v) for v = 0, 1, 2 ..
    pmf = np.append(1.0 - 2.0 * above[0], above[:-1] - above[1:])
    width = max(1, int(np.count_nonzero(deserves_entry(pmf, precision))) - 1)
    if scale < NARROW_BELOW:
        width = min(width, NARROW_WIDTH)
    sides = pmf[1 : width + 1]
    weights = np.concatenate([sides[::-1], pmf[: width + 1], [2.0 * above[width]]])
    return apportion(weights, precision), precision
