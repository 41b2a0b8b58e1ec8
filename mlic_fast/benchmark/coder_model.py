"""A model of the time that the range coder takes on a GPU: steps times latency, and what a pass
costs beside its steps.

Nothing here was measured with the coder of today: the constants are those that fit what its
predecessor took on an H200 (see docs/kernels.md), so all figures are a model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlic_fast.coder.tables import Tables

#: One symbol of all lanes, from state to state.
STEP_US = 0.13
#: A launch, the tables' way into shared memory, and the barriers of the sort and of both parts.
PASS_US = 5.0
#: 1,024 symbols through the counting sort and back: loads, matches, sums, stores.
SORT_US = 0.12
#: The encoder's two launches before the last, all passes side by side, and the payload's layout.
ENCODE_US = 25.0

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CoderTime:
    """Of one image, by the model: microseconds and what they were counted from."""

    decode_us: float
    encode_us: float
    passes: int
    symbols: int
    steps: int
    events: int


def lanes_of(payload_bytes: float) -> int:
    """The number of lanes that an encoder gives a payload (docs/format.md, section 6)."""
    lanes = 2
    while lanes < 1024 and payload_bytes >= 800 * lanes:
        lanes *= 2
    return lanes


def coder_time(
    tables: Tables, passes: Sequence[tuple[Array, Array]], lanes: int | None = None
) -> CoderTime:
    """What encoding and decoding the passes of one image takes on a GPU, by the model.

    Args:
        tables: those of the model, of its scales first.
        passes: symbols and indexes of each, integers of equal shape, in coding order: those of z
            and of both halves of each slice.
        lanes: as in the stream's header; by default what an encoder chooses for such symbols.

    Returns:
        Microseconds and counts. A step is an event of the lane that has most of them in a pass;
        the tail, which few lanes code, is not counted (25 steps or so).
    """
    if lanes is None:
        bits = sum(float(tables.bits(np.ravel(s), np.ravel(i)).sum()) for s, i in passes)
        lanes = lanes_of(bits / 8)
    counts = [count_events(tables, np.ravel(s), np.ravel(i), lanes) for s, i in passes]
    steps = sum(int(count.max(initial=0)) for count in counts)
    symbols = sum(int(np.size(s)) for s, _ in passes)
    sort = SORT_US * symbols / 1024
    return CoderTime(
        decode_us=steps * STEP_US + len(passes) * PASS_US + sort,
        encode_us=steps * STEP_US + ENCODE_US + sort / max(1, len(passes)),
        passes=len(passes),
        symbols=symbols,
        steps=steps,
        events=sum(int(count.sum()) for count in counts),
    )


def count_events(tables: Tables, symbols: Array, indexes: Array, lanes: int) -> Array:
    """How many events each lane has in a pass: int64 [lanes]. Escapes' digits are left out."""
    longest, near = _runs(tables)
    indexes = indexes.astype(np.int64)
    order = np.lexsort((indexes, longest[indexes] == 0))
    symbols, indexes = symbols[order].astype(np.int64), indexes[order]
    runs = int(np.count_nonzero(longest[indexes]))
    places = np.arange(len(symbols))
    plain = np.bincount((places[runs:] - runs) % lanes, minlength=lanes)
    # Lists of one lane, one after the other.
    lane = places[:runs] % lanes
    order = np.lexsort((indexes[:runs], lane))
    symbols, indexes, lane = symbols[:runs][order], indexes[:runs][order], lane[order]
    if runs == 0:
        return plain
    begins = np.ones(runs, bool)
    begins[1:] = (lane[1:] != lane[:-1]) | (indexes[1:] != indexes[:-1])
    ends = np.append(begins[1:], True)
    at = np.arange(runs)
    last = np.maximum.accumulate(np.where(symbols != 0, at, -1))
    before = np.maximum(np.append(-1, last[:-1]), np.maximum.accumulate(at * begins) - 1)
    zeros = at - before - 1 + (symbols == 0)
    ended = (symbols != 0) * (1 + zeros // longest[indexes] + (np.abs(symbols) > near[indexes]))
    open_end = (ends & (symbols == 0)) * -(-zeros // longest[indexes])
    return plain + np.bincount(lane, weights=ended + open_end, minlength=lanes).astype(np.int64)


def _runs(tables: Tables) -> tuple[Array, Array]:
    """Of each table the longest run, 0 if it is a plain one, and the largest symbol of a class."""
    firsts = np.cumsum(tables.sizes) - tables.sizes
    inside = (tables.minima <= 0) & (tables.minima + tables.sizes - 2 >= 0)
    zero = np.where(inside, tables.frequencies[firsts - np.where(inside, tables.minima, 0)], 0)
    zero = zero.astype(np.int64)
    total = 1 << tables.precisions.astype(np.int64)
    other = np.maximum(total - zero, 1)
    most = np.where(np.arange(len(tables)) < 64, 256, 32)
    longest = np.where(4 * zero >= total, np.minimum(most, -(-3 * total // other)), 0)
    return longest, np.where(64 * other < total, 0, 2)
