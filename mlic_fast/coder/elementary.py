"""Elementary functions of float64 arrays, the same bits on every machine.

Library versions of exp, log, erfc and tanh differ between machines in the last bits, and
probability tables must not. Only additions, subtractions, multiplications, divisions, roundings and
comparisons of numpy arrays are used here, which are exact or correctly rounded everywhere, in a
written order. Arrays have any shape; the functions work element by element.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LN2_HIGH = 6.93147180369123816490e-01  # 33 bits, so that its multiples below are exact
LN2_LOW = 1.90821492927058770002e-10
TWO_OVER_SQRT_PI = 1.1283791670955126


def exp(x: Array) -> Array:
    """e^x; 0 below -700."""
    x = np.asarray(x, np.float64)
    clipped = np.minimum(np.maximum(x, -700.0), 700.0)
    n = np.rint(clipped / (LN2_HIGH + LN2_LOW))
    r = (clipped - n * LN2_HIGH) - n * LN2_LOW  # |r| <= ln(2) / 2
    result = np.ones_like(r)
    for k in range(16, 0, -1):  # Taylor
        result = 1.0 + result * r / k
    power_of_two = ((n.astype(np.int64) + 1023) << 52).view(np.float64)
    return np.where(x < -700.0, 0.0, result * power_of_two)


def log1p(x: Array) -> Array:
    """ln(1 + x) for 0 <= x <= 1: twice the series of atanh(x / (2 + x))."""
    s = x / (2.0 + x)
    square = s * s
    result = np.zeros_like(s)
    for k in range(35, 0, -2):
        result = 1.0 / k + square * result
    return 2.0 * (s * result)


def erfc(x: Array) -> Array:
    """The complementary error function for x >= 0: a series below 2, a continued fraction above."""
    x = np.asarray(x, np.float64)
    gauss = exp(-(x * x))

    small = np.minimum(x, 2.0)
    term = small
    series = small
    for k in range(1, 50):  # erf(x) = 2 / sqrt(pi) e^(-x^2) sum 2^k x^(2k+1) / (1 3 5 .. 2k+1)
        term = term * (small * small) / (k + 0.5)
        series = series + term
    near = 1.0 - TWO_OVER_SQRT_PI * gauss * series

    large = np.maximum(x, 2.0)
    fraction = large
    for k in range(80, 0, -1):  # erfc(x) = e^(-x^2) / sqrt(pi) / (x + (1/2) / (x + (2/2) / (x + ..
        fraction = large + (k / 2.0) / fraction
    far = (TWO_OVER_SQRT_PI / 2.0) * gauss / fraction
    return np.where(x < 2.0, near, far)


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), without cancellation on either side."""
    e = exp(-np.abs(x))
    return np.where(x >= 0.0, 1.0, e) / (1.0 + e)


def tanh(x: Array) -> Array:
    """The hyperbolic tangent; its absolute error is below 1e-15."""
    e = exp(-2.0 * np.abs(x))
    magnitude = (1.0 - e) / (1.0 + e)
    return np.where(x >= 0.0, magnitude, -magnitude)


def softplus(x: Array) -> Array:
    """ln(1 + e^x)."""
    return np.maximum(x, 0.0) + log1p(exp(-np.abs(x)))
