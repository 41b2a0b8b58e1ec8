"""A model of the range coder's time on a GPU: steps times latency, and what a launch costs beside.

**Nothing here was measured with the coder of today.** The one before it was, on an H200: 20 passes
of 24,576 symbols on 16 to 512 lanes. Its times are 22.4 us a launch and 0.36 us a step in decoding
(within 6 %), 101 us and 0.31 us a step in encoding (within 2 %), see docs/kernels.md. Where today's
code does the same as that one, its constants are taken as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlic_fast.coder.tables import Tables

#: A launch of the decoder, one a pass, one before and one after: measured with the predecessor.
LAUNCH_US = 22.4
#: A step of the decoder in runs and in plain symbols: latencies of the chain from state to state,
#: 390 and 250 cycles, times 1.34, by which the predecessor's measured step exceeded its 470.
RUN_STEP_US, PLAIN_STEP_US = 0.30, 0.19
#: The encoder beside its steps, and a step: measured with the predecessor.
ENCODE_US, ENCODE_STEP_US = 101.0, 0.31
#: Events a byte of the payload (2.37 to 2.51 on photographs of all rates), what the lane with the
#: most of them has beyond the mean, and the share of events in runs.
EVENTS_A_BYTE, IMBALANCE, RUNS_SHARE = 2.46, 1.1, 0.76

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CoderTime:
    """Of one image, by the model: microseconds, and the steps that they were counted from."""

    decode_us: float
    encode_us: float
    run_steps: float
    plain_steps: float


def lanes_of(payload_bytes: float) -> int:
    """The number of lanes that an encoder gives a payload (docs/format.md, section 6)."""
    lanes = 2
    while lanes < 1024 and payload_bytes >= 800 * lanes:
        lanes *= 2
    return lanes


def time_of_steps(passes: int, run_steps: float, plain_steps: float) -> CoderTime:
    """Microseconds for so many passes, and steps in all of them together."""
    decode = LAUNCH_US * (passes + 2) + RUN_STEP_US * run_steps + PLAIN_STEP_US * plain_steps
    encode = ENCODE_US + ENCODE_STEP_US * (run_steps + plain_steps)
    return CoderTime(decode, encode, run_steps, plain_steps)


def predict(payload_bytes: float, passes: int) -> CoderTime:
    """What the coder takes for an image of which no more than the size of its file is known.

    Args:
        payload_bytes: of the image.
        passes: 1 + 2 S of a model of S slices.
    """
    steps = EVENTS_A_BYTE * IMBALANCE * payload_bytes / lanes_of(payload_bytes)
    return time_of_steps(passes, RUNS_SHARE * steps, (1 - RUNS_SHARE) * steps)


def coder_time(
    tables: Tables, passes: Sequence[tuple[Array, Array]], lanes: int | None = None
) -> CoderTime:
    """What the coder takes for the symbols of an image.

    Args:
        tables: those of the model, of its scales first.
        passes: symbols and indexes of each, integers of equal shape, in coding order: those of z
            and of both halves of each slice.
        lanes: as in the stream's header; by default what an encoder chooses for such symbols.

    Returns:
        A step is an event of the lane that has most of them in a pass. The tail, which few lanes
        code, is not counted (25 steps or so).
    """
    if lanes is None:
        bits = sum(float(tables.bits(np.ravel(s), np.ravel(i)).sum()) for s, i in passes)
        lanes = lanes_of(bits / 8)
    counts = [count_events(tables, np.ravel(s), np.ravel(i), lanes) for s, i in passes]
    run_steps, plain_steps = (sum(int(part[k].max(initial=0)) for part in counts) for k in range(2))
    return time_of_steps(len(passes), run_steps, plain_steps)


def count_events(tables: Tables, symbols: Array, indexes: Array, lanes: int) -> tuple[Array, Array]:
    """How many events each lane has in a pass, in runs and in plain symbols: int64 [lanes] both.

    Escapes' digits are left out.
    """
    longest, near = _runs(tables)
    indexes = indexes.astype(np.int64)
    order = np.lexsort((indexes, longest[indexes] == 0))
    symbols, indexes = symbols[order].astype(np.int64), indexes[order]
    runs = int(np.count_nonzero(longest[indexes]))
    plain = np.bincount(np.arange(len(symbols) - runs) % lanes, minlength=lanes)
    # Lists of one lane, one after the other.
    lane = np.arange(runs) % lanes
    order = np.lexsort((indexes[:runs], lane))
    symbols, indexes, lane = symbols[:runs][order], indexes[:runs][order], lane[order]
    begins = np.ones(runs, bool)
    begins[1:] = (lane[1:] != lane[:-1]) | (indexes[1:] != indexes[:-1])
    ends = np.append(begins[1:], True)[:runs]
    at = np.arange(runs)
    last = np.maximum.accumulate(np.where(symbols != 0, at, -1))
    before = np.maximum(np.append(-1, last)[:runs], np.maximum.accumulate(at * begins) - 1)
    zeros = at - before - 1 + (symbols == 0)
    ended = (symbols != 0) * (1 + zeros // longest[indexes] + (np.abs(symbols) > near[indexes]))
    open_end = (ends & (symbols == 0)) * -(-zeros // longest[indexes])
    events = np.bincount(lane, weights=ended + open_end, minlength=lanes)
    return events.astype(np.int64), plain


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
