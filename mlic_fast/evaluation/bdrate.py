"""Bjontegaard's rate difference of two codecs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlic_fast.errors import EvaluationError

Floats = NDArray[np.float64]


def bd_rate(anchor: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]]) -> float:
    """Mean rate difference of ``test`` against ``anchor`` at equal quality, in percent.

    Each codec's log rate is interpolated over quality by a monotone piecewise cubic (PCHIP, as in
    JCT-VC's and JVET's later sheets: the single cubic of VCEG-M33 oscillates on six points), and
    the difference is averaged over the qualities that both reach:
    ``100 (exp(mean(log rate_test - log rate_anchor)) - 1)``. Negative: ``test`` needs fewer bits.

    Args:
        anchor: at least two points (rate, quality), in any order: rate in any unit above zero,
            quality in dB (PSNR, or MS-SSIM in dB).
        test: the same for the other codec.

    Raises:
        EvaluationError: too few points, quality that does not grow with rate, or no overlap.
    """
    curves = [_Curve(points) for points in (anchor, test)]
    low = max(curve.quality[0] for curve in curves)
    high = min(curve.quality[-1] for curve in curves)
    if low >= high:
        raise EvaluationError(
            "the two codecs reach no common quality: choose qualities whose ranges overlap"
        )
    means = [(curve.integral(high) - curve.integral(low)) / (high - low) for curve in curves]
    return float(100 * np.expm1(means[1] - means[0]))


class _Curve:
    """Log rate over quality, as one cubic an interval."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        rate, quality = np.array(sorted(points), np.float64).reshape(-1, 2).T
        if len(rate) < 2:
            raise EvaluationError("a BD-rate needs at least two points of each codec")
        if not (rate[0] > 0 and np.isfinite(quality).all() and (np.diff(quality) > 0).all()):
            raise EvaluationError(
                "a BD-rate needs positive rates and a quality that is finite and grows with rate"
            )
        self.quality: Floats = quality
        self._value = np.log(rate)
        self._slope = pchip_slopes(quality, self._value)

    def integral(self, x: Any) -> float:
        """Integral of the log rate from the lowest quality to ``x``."""
        total = 0.0
        for i, start in enumerate(self.quality[:-1]):
            width = self.quality[i + 1] - start
            t = float(np.clip((x - start) / width, 0, 1))
            total += width * self._hermite_integral(i, width, t)
        return total

    def _hermite_integral(self, i: int, width: float, t: float) -> float:
        """Integral over [0, t] of the cubic Hermite basis, weighted with values and slopes."""
        v, s = self._value, self._slope
        t2, t3, t4 = t * t, t**3, t**4
        return float(
            v[i] * (t4 / 2 - t3 + t)
            + v[i + 1] * (t3 - t4 / 2)
            + width * s[i] * (t4 / 4 - 2 * t3 / 3 + t2 / 2)
            + width * s[i + 1] * (t4 / 4 - t3 / 3)
        )


def pchip_slopes(x: Floats, y: Floats) -> Floats:
    """Slopes at the knots x, y [n] of the monotone interpolant of Fritsch and Butland (1984).

    Inside, the weighted harmonic mean of the neighbouring secants, or 0 where their signs differ;
    at the ends a parabola's slope, limited so that the curve stays monotone.
    """
    h, secant = np.diff(x), np.diff(y) / np.diff(x)
    if len(x) == 2:
        return np.repeat(secant, 2)
    w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    agree = secant[:-1] * secant[1:] > 0
    # The divisions are by 1 where the result is not used.
    left, right = np.where(agree, secant[:-1], 1), np.where(agree, secant[1:], 1)
    inner = np.where(agree, (w1 + w2) / (w1 / left + w2 / right), 0)
    first = _end_slope(h[0], h[1], secant[0], secant[1])
    last = _end_slope(h[-1], h[-2], secant[-1], secant[-2])
    return np.concatenate([[first], inner, [last]])


def _end_slope(h0: float, h1: float, secant0: float, secant1: float) -> float:
    slope = ((2 * h0 + h1) * secant0 - h0 * secant1) / (h0 + h1)
    if slope * secant0 <= 0:
        return 0.0
    if secant0 * secant1 <= 0 and abs(slope) > 3 * abs(secant0):
        return 3 * secant0
    return slope
