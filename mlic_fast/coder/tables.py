"""Integer probability tables: what encoder and decoder must share to the bit."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlic_fast import _C

DTYPES = {
    "frequencies": np.uint16,
    "sizes": np.int32,
    "minima": np.int32,
    "precisions": np.uint8,
}


@dataclass(frozen=True, eq=False)
class Tables:
    """A set of T tables: entry e of a table is its symbol minimum + e, its last entry the escape.

    Tables that are mostly zero are coded as runs of zeros (docs/format.md).

    Attributes:
        frequencies: uint16, the entries of all tables one after another. Each is at least 1; those
            of a table sum to 2^precision.
        sizes: int32 [T], number of entries of each table, with the escape.
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
        for name, dtype in DTYPES.items():
            array = np.array(getattr(self, name), order="C")
            if array.dtype != dtype or array.ndim != 1:
                raise ValueError(
                    f"{name} must be a vector of {np.dtype(dtype)}, "
                    f"not {array.dtype} of shape {array.shape}"
                )
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
        return self._bytes() == other._bytes()

    def __hash__(self) -> int:
        return hash(self._bytes())

    def __reduce__(self) -> tuple[Any, ...]:
        return Tables, tuple(self.to_arrays().values())

    def _bytes(self) -> tuple[bytes, ...]:
        return tuple(array.tobytes() for array in self.to_arrays().values())

    @classmethod
    def concatenate(cls, parts: Sequence[Tables]) -> Tables:
        """One set: the tables of each part follow those of the parts before it."""
        arrays = [part.to_arrays() for part in parts]
        return cls(*(np.concatenate([a[name] for a in arrays]) for name in DTYPES))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The four arrays by name, to be saved with a model."""
        return {name: getattr(self, name) for name in DTYPES}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Tables:
        """The inverse of `to_arrays`; other names in `arrays` are ignored.

        Raises:
            ValueError: an array is missing, or they are not tables.
        """
        if missing := [name for name in DTYPES if name not in arrays]:
            raise ValueError(f"the tables lack {', '.join(missing)}")
        return cls(*(arrays[name] for name in DTYPES))

    def bits(self, symbols: NDArray[Any], indexes: NDArray[Any]) -> NDArray[np.float64]:
        """Ideal cost of each symbol under these tables: -log2 of its probability, in bits.

        ``symbols`` and ``indexes`` are integers of equal shape, which is that of the result.

        Escaped symbols cost the escape and four bits a digit. For measuring, not for coding.
        """
        symbols, indexes = symbols.astype(np.int64), indexes.astype(np.int64)
        firsts = np.cumsum(self.sizes, dtype=np.int64) - self.sizes
        escape = self.sizes[indexes] - 1
        entry = symbols - self.minima[indexes]
        off = (entry < 0) | (entry >= escape)
        frequency = self.frequencies[firsts[indexes] + np.where(off, escape, entry)]
        u = np.where(entry < 0, 2 * (-1 - entry) + 1, 2 * (entry - escape))
        digits = np.maximum(1, np.ceil(np.log2(np.maximum(u, 0) + 1.0) / 3))
        return self.precisions[indexes] - np.log2(frequency) + np.where(off, 4 * digits, 0)


def deserves_entry(pmf: NDArray[np.float64], precision: int) -> NDArray[np.bool_]:
    """Which symbols are better given a slot of their own than escaped, by their probabilities [n].

    A slot costs all others log2(e) / 2^precision bits; without it the symbol pays a digit more, 4
    bits. Both are equal near 2^precision * p = 3/8.
    """
    return pmf * float(1 << precision) >= 0.375


def apportion(probabilities: NDArray[np.float64], precision: int) -> NDArray[np.uint16]:
    """Frequencies [n] in proportion to probabilities [n] of any sum: at least 1, sum 2^precision.

    Webster's method with a minimum: one slot more goes to the entry of largest p / (f + 1/2), one
    less comes from that of smallest p / (f - 1/2). As log((f + 1) / f) is 1 / (f + 1/2) but for
    terms of third order, each step is the one that is best for the code length -sum p log f.
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
        i = heap[0][1]
        counts[i] += step
        if step < 0 and counts[i] == 1:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (key(i), i))
    return np.array(counts, np.uint16)
