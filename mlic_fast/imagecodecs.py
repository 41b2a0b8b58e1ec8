"""The functions that the package imagecodecs has for every format, for this one.

>>> from mlic_fast.imagecodecs import mlic_decode, mlic_encode
>>> array = mlic_decode(mlic_encode(array, level=60))
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import mlic_fast
from mlic_fast.bitstream import MAGIC


def mlic_encode(data: npt.ArrayLike, level: int | None = None) -> bytes:
    """An array uint8 [H, W], [H, W, 3] or [H, W, 4] -> a stream of quality ``level``, 1 to 100.

    Raises what :meth:`mlic_fast.Codec.compress` raises.
    """
    encoded = mlic_fast.compress(np.asarray(data), quality=level)
    assert isinstance(encoded, bytes)  # a list only for several
    return encoded


def mlic_decode(data: bytes, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    """A stream -> an array uint8 [H, W, 3], or [H, W, 4] if it is not opaque, or ``out``.

    Raises what :meth:`mlic_fast.Codec.decompress` raises, ValueError if ``out`` has another shape.
    """
    image: npt.NDArray[Any] = mlic_fast.decompress(data, output="numpy")
    if out is None:
        return image
    if out.shape != image.shape:
        raise ValueError(f"out has the shape {list(out.shape)}, the image {list(image.shape)}")
    out[:] = image
    return out


def mlic_check(data: bytes) -> bool:
    """Whether the data begin as a stream does."""
    return bytes(data[: len(MAGIC)]) == MAGIC
