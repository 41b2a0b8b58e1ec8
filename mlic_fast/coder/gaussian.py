"""The 64 tables of the Gaussian conditional: symbols round(y - mean) of a latent of known scale."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlic_fast.coder.arrays import as_numpy
from mlic_fast.coder.elementary import Array, erfc, exp
from mlic_fast.coder.tables import Tables, apportion

LN_SMALLEST = -2.2072749131897207  # ln(0.11)
LN_LARGEST = 5.545177444479562  # ln(256)
LEVELS = 64
SCALES: NDArray[np.float32] = exp(
    LN_SMALLEST + np.arange(LEVELS) * ((LN_LARGEST - LN_SMALLEST) / (LEVELS - 1))
).astype(np.float32)
"""Scales of the tables, log-spaced from 0.11 to 256, as CompressAI's (but the same bits on every machine)."""

SQRT2 = 1.4142135623730951
FINE_BELOW = 0.2  # the five scales whose tables need 16 bits: most of a table's mass is in one symbol
NARROW_BELOW = 64.0
NARROW_WIDTH = 127  # keeps the tables of these scales within the shared memory of a GPU


def scale_indexes(scales: Any) -> NDArray[np.uint8]:
    """Table of each scale: the first whose scale is not smaller, the last for larger ones (and for NaN).

    Args:
        scales: float32, any shape; a numpy array or a torch CPU tensor.
    """
    return np.searchsorted(SCALES[:-1], as_numpy(scales).astype(np.float32)).astype(np.uint8)


@lru_cache(maxsize=1)
def gaussian_tables() -> Tables:
    """Tables 0 to 63, for `SCALES`; 14 bits, 16 for the five scales below 0.2.

    A symbol gets an entry of its own while 2^precision times its probability is at least 3/8. A slot costs the others
    log2(e) / 2^precision bits, and saves the symbol an escape's digit (4 bits), so that is where both are equal.
    """
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
    """Frequencies of -w .. w and the escape, and the precision."""
    precision = 16 if scale < FINE_BELOW else 14
    edges = (np.arange(int(8 * scale) + 3) + 0.5) / (scale * SQRT2)
    upper: Array = 0.5 * erfc(edges)  # P(symbol > v) for v = 0, 1, 2 ..
    pmf = np.concatenate([[1.0 - 2.0 * upper[0]], upper[:-1] - upper[1:]])
    width = max(1, int(np.count_nonzero(pmf * (1 << precision) >= 0.375)) - 1)
    if scale < NARROW_BELOW:
        width = min(width, NARROW_WIDTH)
    half = pmf[1 : width + 1]
    escape = 2.0 * upper[width]
    return apportion(np.concatenate([half[::-1], pmf[: width + 1], [escape]]), precision), precision
