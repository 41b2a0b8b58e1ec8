"""A model of the range coder's time on a GPU: cycles counted in its machine code, and launches.

**Nothing here was measured with the coder of today.** Cycles of a step are those of one warp on the
usual path of the code for sm_90, with the stalls and barriers that the compiler writes into each
instruction and latencies of 24 (shuffle) to 30 (shared memory). Counted so, the coder of before has
509 a step of the decoder and 430 of the encoder, which took 0.36 and 0.31 us on an H200: 0.71 and
0.72 ns a cycle: docs/kernel-times.md. What all warps do is bound by instructions: 8 warps of a
scheduler each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlic_fast import _C
from mlic_fast.coder.tables import Tables

#: Microseconds of a counted cycle: the measured steps of the coder of before, by their cycles.
CYCLE_US = 0.71e-3
#: A programmatic launch after another, measured.
LAUNCH_US = 0.83
#: Cycles of a step: the decoder's in runs and in plain symbols, the encoder's.
RUN_STEP, PLAIN_STEP, ENCODE_STEP = 512, 331, 277
#: Cycles of a pass of the decoder beside its steps, and of each of its symbols, if one block of
#: threads does all of it: 268 instructions in sorting 8 rows of 1,024, 221 in putting them back.
PASS, PASS_SYMBOL = 3800, 489 / 1024
#: The same where a cluster of eight blocks has more symbols than `SMALLEST_SHARED`: of a pass, and
#: of a row of each block. Two cluster barriers of 300 ns and loads of 200 cycles from another
#: block's memory, 300 from the L2 cache are assumed, not measured.
CLUSTER_PASS, CLUSTER_ROW = 5900, 416
CLUSTER_ROW_SYMBOLS = 8 * 1024
SMALLEST_SHARED = _C.gpu_coder.SMALLEST_SHARED
#: Before the first pass and after the last.
BEGIN, FINISH = 3500, 1500
#: The encoder: sorting a pass, beside the network; events of all passes side by side; what writing
#: has beside its steps, and for each pass.
SORT, SORT_SYMBOL = 3000, 1000 / 1024
COLLECT, COLLECT_SYMBOL = 3000, 600 / 1024
WRITE, WRITE_PASS = 5000, 300
#: Events a byte of the payload (2.37 to 2.51 on photographs of all rates), the share of them in
#: runs, and what the lane with the most of them has beyond that: a share, and so many steps in runs
#: a pass for lists that end (10 to 13 on two photographs at three rates with 128 to 512 lanes).
EVENTS_A_BYTE, RUNS_SHARE, IMBALANCE, LIST_ENDS = 2.46, 0.76, 1.05, 11

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CoderTime:
    """Of one image, by the model: microseconds, and the steps that they were counted from.

    Attributes:
        decode_us: of a decode, all passes together.
        sort_us: the encoder's work for a pass, beside the network.
        encode_us: the encoder's work after the last pass.
    """

    decode_us: float
    sort_us: float
    encode_us: float
    run_steps: float
    plain_steps: float


def steps_after_retirements(lanes: int) -> float:
    """Steps of the symbols that are coded when lanes have retired."""
    steps = 0.0
    while lanes > 2:
        left = _C.gpu_coder.tail_of(lanes)
        started = _C.gpu_coder.START_BITS / 8 * (lanes - left)  # bytes
        steps += EVENTS_A_BYTE * started / left
        lanes = left
    return steps


def pass_cycles(symbols: float) -> float:
    """Of a pass of the decoder, beside its steps: sorting the symbols and putting them back."""
    if symbols <= SMALLEST_SHARED:
        return PASS + PASS_SYMBOL * symbols
    return CLUSTER_PASS + CLUSTER_ROW * math.ceil(symbols / CLUSTER_ROW_SYMBOLS)


def time_of_steps(passes: int, symbols: float, run_steps: float, plain_steps: float) -> CoderTime:
    """Microseconds for so many passes, and symbols and steps in all of them together."""
    decode = BEGIN + FINISH + passes * pass_cycles(symbols / passes)
    decode += RUN_STEP * run_steps + PLAIN_STEP * plain_steps
    collect = COLLECT + COLLECT_SYMBOL * symbols / passes
    write = WRITE + WRITE_PASS * passes + ENCODE_STEP * (run_steps + plain_steps)
    return CoderTime(
        CYCLE_US * decode + LAUNCH_US * (passes + 2),
        CYCLE_US * (SORT + SORT_SYMBOL * symbols / passes) + LAUNCH_US,
        CYCLE_US * (collect + write) + 2 * LAUNCH_US,
        run_steps,
        plain_steps,
    )


def predict(payload_bytes: float, passes: int, symbols: float) -> CoderTime:
    """What the coder takes for an image of which no more than the size of its file is known.

    Args:
        payload_bytes: of the image.
        passes: 1 + 2 S of a model of S slices.
        symbols: of all passes together.
    """
    lanes = _C.gpu_coder.choose_lanes(int(payload_bytes))
    steps = EVENTS_A_BYTE * IMBALANCE * payload_bytes / lanes + steps_after_retirements(lanes)
    runs = RUNS_SHARE * steps + LIST_ENDS * passes
    return time_of_steps(passes, symbols, runs, (1 - RUNS_SHARE) * steps)


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
        A step is an event of the lane that has most of them in a pass. What few lanes code when
        the others have retired is added by :func:`steps_after_retirements`, to the runs.
    """
    if lanes is None:
        bits = sum(float(tables.bits(np.ravel(s), np.ravel(i)).sum()) for s, i in passes)
        lanes = _C.gpu_coder.choose_lanes(int(bits / 8))
    counts = [count_events(tables, np.ravel(s), np.ravel(i), lanes) for s, i in passes]
    run_steps, plain_steps = (sum(int(part[k].max(initial=0)) for part in counts) for k in range(2))
    run_steps += round(steps_after_retirements(lanes))
    symbols = sum(s.size for s, _ in passes)
    return time_of_steps(len(passes), symbols, run_steps, plain_steps)


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
    chunk = 1
    while 2 * chunk * lanes * 8 <= runs:
        chunk *= 2
    lane = np.arange(runs) // chunk % lanes
    order = np.argsort(lane, kind="stable")
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
