"""The model of the coder's time counts what a decoder does."""

from collections import Counter

import numpy as np
import pytest
import slow_decoder
from test_slow_decoder import as_lists

from mlic_fast.coder import SCALES, Encoder, Tables, gaussian_tables
from mlic_fast.profiling.coder_model import (
    PASS,
    PASS_SYMBOL,
    SMALLEST_SHARED,
    coder_time,
    count_events,
    pass_cycles,
    steps_after_retirements,
)


class Counting(slow_decoder.Payload):
    """Counts the entries that each lane takes."""

    taken: Counter[int]

    def take(self, lane: int, *arguments: int) -> None:
        self.taken[lane] += 1
        super().take(lane, *arguments)


@pytest.mark.parametrize("lanes", [2, 64])
@pytest.mark.parametrize("tables", [gaussian_tables(), Tables.concatenate([gaussian_tables()] * 2)])
def test_counts(lanes: int, tables: Tables) -> None:
    rng = np.random.default_rng(lanes)
    indexes = np.minimum(rng.exponential(6, 700).astype(int), 63) + 64 * (len(tables) > 64)
    indexes[rng.random(700) < 0.3] = 0
    symbols = np.rint(rng.standard_normal(700) * SCALES[indexes % 64]).astype(np.int32)
    runs, plain = count_events(tables, symbols, indexes, lanes)
    decoder = Counting(as_lists(tables), payload_of(tables, symbols, indexes, lanes), lanes)
    decoder.taken = Counter()
    assert decoder.decode_pass(indexes.tolist()) == symbols.tolist()
    assert [decoder.taken[lane] for lane in range(lanes)] == (runs + plain).tolist()
    time = coder_time(tables, [(symbols, indexes)] * 3, lanes)
    assert time.run_steps == 3 * runs.max() + round(steps_after_retirements(lanes))
    assert time.plain_steps == 3 * plain.max()


def payload_of(tables: Tables, symbols: np.ndarray, indexes: np.ndarray, lanes: int) -> bytes:
    """A pass that ends before the tail, which has passes of its own."""
    encoder = Encoder(tables, lanes)
    encoder.encode(symbols, indexes)
    encoder.encode(np.arange(-1000, 1000), np.full(2000, 60))
    return encoder.finish()


def test_clusters_sort_where_they_take_less() -> None:
    for symbols in (SMALLEST_SHARED + 1, 8192, 8193, 24_576, 49_152, 130_560):
        assert pass_cycles(symbols) < PASS + PASS_SYMBOL * symbols
    assert pass_cycles(SMALLEST_SHARED) == PASS + PASS_SYMBOL * SMALLEST_SHARED
