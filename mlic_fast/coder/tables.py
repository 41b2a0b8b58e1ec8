"""Integer probability tables: what encoder and decoder must share to the bit."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlic_fast import _C


@dataclass(frozen=True, eq=False)
class Tables:
    """A set of T tables. Entry e < size - 1 of a table is the symbol minimum + e, its last entry is the escape.

    Table 0 is the floor table: passes in which all its symbols are zero skip them (docs/format.md).

    Attributes:
        frequencies: uint16, the entries of all tables one after another; each at least 1, and those of a table sum to
            2^precision.
        sizes: int32 [T], number of entries of each table, the escape included.
        minima: int32 [T], smallest symbol of each table.
        precisions: uint8 [T], 1 to 16.

    Raises:
        ValueError: the arrays are not such tables.
    """

    frequencies: NDArray[np.uint16]
    sizes: NDArray[np.int32]
    minima: NDArray[np.int32]
    precisions: NDArray[np.uint8]

    def __post_init__(self) -> None:
        dtypes = {"frequencies": np.uint16, "sizes": np.int32, "minima": np.int32, "precisions": np.uint8}
        for name, dtype in dtypes.items():
            array = np.asarray(getattr(self, name))
            if array.dtype != dtype or array.ndim != 1:
                raise ValueError(f"{name} must be a vector of {np.dtype(dtype)}, not {array.dtype} {array.shape}")
            array = np.array(array, order="C")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        _ = self.core

    @cached_property
    def core(self) -> _C.RansTables:
        """The tables as the C++ coder uses them, made once."""
        return _C.RansTables(self.frequencies, self.sizes, self.minima, self.precisions)

    def __len__(self) -> int:
        return len(self.sizes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tables):
            return NotImplemented
        mine, theirs = self.to_arrays(), other.to_arrays()
        return all(np.array_equal(mine[name], theirs[name]) for name in mine)

    def __hash__(self) -> int:
        return hash(tuple(array.tobytes() for array in self.to_arrays().values()))

    @classmethod
    def concatenate(cls, parts: Sequence[Tables]) -> Tables:
        """One set: the tables of each part follow those of the parts before it."""
        arrays = [part.to_arrays() for part in parts]
        return cls(**{name: np.concatenate([a[name] for a in arrays]) for name in arrays[0]})

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The four arrays by name, to be saved with a model."""
        return {name: getattr(self, name) for name in ("frequencies", "sizes", "minima", "precisions")}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.generic]]) -> Tables:
        """The inverse of `to_arrays`; more names in `arrays` are ignored.

        Raises:
            ValueError: an array is missing, or they are not tables.
        """
        names = ("frequencies", "sizes", "minima", "precisions")
        if missing := [name for name in names if name not in arrays]:
            raise ValueError(f"tables lack {', '.join(missing)}")
        return cls(**{name: np.asarray(arrays[name]) for name in names})

    def bits(self, symbols: NDArray[np.integer], indexes: NDArray[np.integer]) -> NDArray[np.float64]:
        """Ideal cost in bits of each symbol under these tables: -log2 of its frequency, escapes with their digits."""
        symbols, indexes = np.asarray(symbols, np.int64), np.asarray(indexes, np.int64)
        minima, escape = self.minima.astype(np.int64)[indexes], self.sizes.astype(np.int64)[indexes] - 1
        entry = symbols - minima
        off = (entry < 0) | (entry >= escape)
        first = np.concatenate([[0], np.cumsum(self.sizes[:-1], dtype=np.int64)])[indexes]
        frequency = self.frequencies[first + np.where(off, escape, entry)]
        beyond = np.where(entry < 0, -1 - entry, entry - escape)
        escaped = 2 * np.maximum(beyond, 0) + (entry < 0)
        digits = np.maximum(1, np.ceil(np.log2(escaped + 1.0) / 3))
        return self.precisions[indexes] - np.log2(frequency) + np.where(off, 4 * digits, 0)


def apportion(probabilities: NDArray[np.float64], precision: int) -> NDArray[np.uint16]:
    """Frequencies in proportion to probabilities (any sum), each at least 1, with sum 2^precision.

    Webster's method with a minimum: a slot more goes to the entry of largest p / (f + 1/2), a slot less is taken from
    that of smallest p / (f - 1/2). As log((f + 1) / f) is 1 / (f + 1/2) but for terms of third order, these are the
    steps that change the expected code length sum -p log f most, so the result is near its minimum.
    """
    total = 1 << precision
    weights = [float(p) for p in probabilities]
    scale = total / sum(weights)
    counts = [max(1, int(p * scale)) for p in weights]
    missing = total - sum(counts)
    step = 1 if missing > 0 else -1

    def key(i: int) -> float:
        return -step * weights[i] / (counts[i] + 0.5 * step)

    heap = [(key(i), i) for i in range(len(counts)) if step > 0 or counts[i] > 1]
    heapq.heapify(heap)
    for _ in range(abs(missing)):
        _, i = heap[0]
        counts[i] += step
        if step < 0 and counts[i] == 1:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (key(i), i))
    return np.array(counts, np.uint16)
