"""Arguments of the coders, as the C++ core wants them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

INT32 = np.iinfo(np.int32)


def as_numpy(values: Any) -> NDArray[Any]:
    """A numpy array of the values, shared where possible.

    Raises:
        TypeError: a tensor that is not on the CPU.
    """
    if isinstance(values, np.ndarray):
        return values
    device = getattr(values, "device", None)
    if getattr(device, "type", "cpu") != "cpu":
        raise TypeError(f"a tensor on {device} cannot be coded on the CPU: call .cpu() first")
    if hasattr(values, "detach"):
        values = values.detach()
    return np.asarray(values)


def as_int32(values: Any, name: str) -> NDArray[np.int32]:
    """Contiguous int32.

    Raises:
        TypeError: not integers.
        ValueError: integers that do not fit.
    """
    array = as_numpy(values)
    if array.dtype != np.int32:
        if array.size == 0:
            array = array.astype(np.int32)
        elif array.dtype.kind not in "iu":
            raise TypeError(f"{name} must be integers, not {array.dtype}")
        elif array.min() < INT32.min or array.max() > INT32.max:
            raise ValueError(f"{name} must fit in 32 bits")
    return np.ascontiguousarray(array, np.int32).reshape(array.shape)


def little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """The array contiguous and in the order of bytes that hashes are taken of, on any machine."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def as_indexes(values: Any) -> NDArray[np.uint8] | NDArray[np.int32]:
    """Contiguous uint8 as they are, other integers as int32."""
    array = as_numpy(values)
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array).reshape(array.shape)
    return as_int32(array, "indexes")
