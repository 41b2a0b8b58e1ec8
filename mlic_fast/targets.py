"""The quality that meets a size or a distortion: a search over all qualities of a model.

Sizes and PSNR grow with quality; where rounding makes a step go the other way, the result still
meets its target.
"""

from __future__ import annotations

from collections.abc import Callable

from mlic_fast.errors import QualityError

QUALITIES = range(1, 101)


def largest_within(encode: Callable[[int], bytes], size: int) -> bytes:
    """The stream of the highest quality found that has at most ``size`` bytes.

    Raises QualityError where even the lowest quality has more.
    """
    best = encode(QUALITIES[0])
    if len(best) > size:
        raise QualityError(
            f"{size} bytes are too few: the lowest quality takes {len(best)}; scale the image down"
        )
    low, high = QUALITIES[0], QUALITIES[-1]  # low fits; what is above high does not
    while low < high:
        middle = (low + high + 1) // 2
        data = encode(middle)
        if len(data) <= size:
            low, best = middle, data
        else:
            high = middle - 1
    return best


def smallest_reaching(
    encode: Callable[[int], bytes], psnr: Callable[[bytes], float], target: float
) -> bytes:
    """The stream of the lowest quality found whose PSNR is at least ``target`` dB.

    Raises QualityError where even the highest quality has less.
    """
    best = encode(QUALITIES[-1])
    reached = psnr(best)
    if reached < target:
        raise QualityError(
            f"{target:g} dB cannot be reached: the highest quality has {reached:.2f} dB"
        )
    low, high = QUALITIES[0], QUALITIES[-1]  # high reaches it; what is below low does not
    while low < high:
        middle = (low + high) // 2
        data = encode(middle)
        if psnr(data) >= target:
            high, best = middle, data
        else:
            low = middle + 1
    return best
