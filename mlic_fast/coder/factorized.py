"""The tables of the factorised prior of the hyper-latents: one a channel, of round(z - median)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlic_fast.coder.arrays import as_numpy
from mlic_fast.coder.elementary import Array, sigmoid, softplus, tanh
from mlic_fast.coder.tables import Tables, apportion, deserves_entry

MAX_WIDTH = 127
FINE_ABOVE = 0.998  # 14 bits cost less than 16 up to here, as the coder's state loses 0.1 % to 16


def factorized_tables(
    matrices: Sequence[Any], biases: Sequence[Any], factors: Sequence[Any], medians: Any
) -> Tables:
    """One table a channel of the prior of Balle et al., "Variational image compression with a
    scale hyperprior", section 6.1: 14 bits, 16 for channels that hardly ever change.

    Args:
        matrices, biases, factors: the parameters of CompressAI's `EntropyBottleneck`, lists of
            float32 arrays or CPU tensors [C, out, in], [C, out, 1], [C, out, 1] (one factor fewer).
        medians: C values, `quantiles[:, 0, 1]`.

    Raises:
        ValueError: a parameter is not finite.
    """
    weights = [softplus(_float64(matrix)) for matrix in matrices]
    offsets = [_float64(bias) for bias in biases]
    gains = [tanh(_float64(factor)) for factor in factors]
    centers = _float64(medians).reshape(-1, 1)
    symbols = np.arange(-MAX_WIDTH, MAX_WIDTH + 1, dtype=np.float64)
    lower = _logits(centers + (symbols - 0.5), weights, offsets, gains)
    upper = _logits(centers + (symbols + 0.5), weights, offsets, gains)
    # Both logits on the negative side, where the sigmoid keeps its relative precision.
    sign = np.where(lower + upper > 0.0, -1.0, 1.0)
    pmf = np.abs(sigmoid(sign * upper) - sigmoid(sign * lower))
    below, above = sigmoid(lower), sigmoid(-upper)  # P(symbol < v), P(symbol > v)
    tables = [_factorized_table(*rows) for rows in zip(pmf, below, above, strict=True)]
    frequencies, minima, precisions = zip(*tables, strict=True)
    return Tables(
        frequencies=np.concatenate(frequencies),
        sizes=np.array([len(f) for f in frequencies], np.int32),
        minima=np.array(minima, np.int32),
        precisions=np.array(precisions, np.uint8),
    )


def _float64(values: Any) -> Array:
    array = as_numpy(values).astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError("the factorised prior has parameters that are not finite")
    return array


def _logits(x: Array, weights: list[Array], offsets: list[Array], gains: list[Array]) -> Array:
    """Logits of the cumulative distribution at x [C, K]; sums in the written order."""
    logits = x[:, None, :]  # [C, width, K]
    for i, (weight, offset) in enumerate(zip(weights, offsets, strict=True)):
        total = weight[:, :, 0:1] * logits[:, 0:1, :]
        for j in range(1, weight.shape[2]):
            total = total + weight[:, :, j : j + 1] * logits[:, j : j + 1, :]
        logits = total + offset
        if i < len(gains):
            logits = logits + gains[i] * tanh(logits)
    return logits[:, 0, :]


def _factorized_table(
    pmf: Array, below: Array, above: Array
) -> tuple[NDArray[np.uint16], int, int]:
    """Frequencies of a range of symbols and of the escape; smallest symbol; precision."""
    precision = 16 if float(pmf.max()) > FINE_ABOVE else 14
    inside = deserves_entry(pmf, precision)
    inside[MAX_WIDTH - 1 : MAX_WIDTH + 2] = True
    first, last = np.flatnonzero(inside)[[0, -1]]
    escape = below[first] + above[last]
    frequencies = apportion(np.append(pmf[first : last + 1], escape), precision)
    return frequencies, int(first) - MAX_WIDTH, precision
