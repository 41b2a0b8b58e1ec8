"""The range coder: what goes in comes out, at the ideal size, whatever the shape of the passes."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from coder_cases import LANES, SYMBOLS, small_tables
from hypothesis import given, settings
from hypothesis import strategies as st

from mlic_fast.coder import SCALES, Decoder, Encoder, Tables, gaussian_tables
from mlic_fast.errors import CorruptStreamError

INT32 = np.iinfo(np.int32)
Passes = list[tuple[np.ndarray, np.ndarray]]


def encode(tables: Tables, passes: Passes, lanes: int | None = None, digest: int = 0):
    encoder = Encoder(tables, lanes)
    for symbols, indexes in passes:
        encoder.encode(symbols, indexes)
    return encoder.finish(digest), encoder.lanes


def assert_round_trip(tables: Tables, passes: Passes, lanes: int | None, digest: int = 0) -> bytes:
    data, lanes = encode(tables, passes, lanes, digest)
    for threads in (1, 3):
        decoder = Decoder(tables, data, lanes, threads)
        for symbols, indexes in passes:
            decoded = decoder.decode(indexes)
            assert decoded.dtype == np.int32
            assert np.array_equal(decoded, symbols)
        assert decoder.finish() == digest
    return data


def draw(rng: np.random.Generator, size: int, floor: float = 0.67) -> tuple[np.ndarray, np.ndarray]:
    """Symbols under the model, their indexes falling geometrically, a share in the lowest table."""
    indexes = np.minimum(1 + rng.exponential(8.0, size).astype(np.int64), 63)
    indexes[rng.random(size) < floor] = 0
    symbols = np.rint(rng.standard_normal(size) * SCALES[indexes]).astype(np.int32)
    return symbols, indexes.astype(np.uint8)


@st.composite
def tables_and_passes(draw):
    """Any small tables; symbols on them, near them, at the ends of int32, and runs of zeros."""
    tables = draw(small_tables())
    passes = []
    for _ in range(draw(st.integers(0, 4))):
        size = draw(st.integers(0, 80))
        seed = draw(st.integers(0, 2**32 - 1))
        pool = np.array(draw(st.lists(SYMBOLS, min_size=1, max_size=6)), np.int32)
        rng = np.random.default_rng(seed)
        indexes = rng.integers(0, len(tables), size, dtype=np.int32)
        symbols = rng.choice(pool, size)
        symbols[rng.random(size) < draw(st.sampled_from([0.0, 0.7, 0.99]))] = 0
        passes.append((symbols, indexes))
    return tables, passes


@settings(max_examples=300, deadline=None)
@given(tables_and_passes(), st.sampled_from([*LANES, None]), st.integers(0, 2**32 - 1))
def test_round_trip(tables_passes, lanes, digest):
    assert_round_trip(*tables_passes, lanes, digest)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("size", [1, 31, 33, 1025, 30_011])
def test_round_trip_on_the_gaussian_tables(lanes, size):
    rng = np.random.default_rng(size)
    passes = [draw(rng, size, floor) for floor in (0.0, 0.7, 1.0)]
    wild = passes[1][0].copy()
    wild[::7] = rng.integers(INT32.min, INT32.max, len(wild[::7]), endpoint=True)
    assert_round_trip(gaussian_tables(), [*passes, (wild, passes[1][1])], lanes, 0xDEADBEEF)


def test_nothing():
    empty = np.empty(0, np.int32)
    for passes in ([], [(empty, empty)], [(empty.reshape(0, 3), empty.reshape(0, 3))]):
        data = assert_round_trip(gaussian_tables(), passes, None, 0x12345678)
        assert data.hex() == "0078563412"


def test_zeros_of_the_lowest_table_cost_next_to_nothing():
    zeros = np.zeros(100_000, np.int32)
    passes = [(zeros, zeros.astype(np.uint8))] * 64
    assert len(assert_round_trip(gaussian_tables(), passes, None)) < 160
    passes[5] = (zeros + (np.arange(zeros.size) == 77), zeros.astype(np.uint8))
    assert len(assert_round_trip(gaussian_tables(), passes, None)) < 165


@pytest.mark.parametrize("scale_shift", [0, 1])
@pytest.mark.parametrize("lanes", [2, 8, 64])
def test_size(lanes, scale_shift):
    """Within 0.15 % of the ideal, the lengths of groups and parts, and two bytes for two lanes."""
    rng = np.random.default_rng(lanes)
    passes = [draw(rng, 24576, floor) for floor in np.linspace(0.57, 0.78, 20)]
    passes = [(s << scale_shift, i) for s, i in passes]  # also when the model is wrong
    tables = gaussian_tables()
    data = assert_round_trip(tables, passes, lanes)
    ideal = sum(tables.bits(s, i).sum() for s, i in passes) / 8
    assert len(data) <= 1.0015 * ideal + lanes / 16 + 12 + len(passes) / 8 + 2


def test_lanes_follow_the_size():
    tables = gaussian_tables()
    symbols, indexes = draw(np.random.default_rng(0), 3_000_000, 0.0)
    size = tables.bits(symbols, indexes).cumsum() / 8192  # of the first symbols, in KiB
    for limit, fewer, more in [
        (2000, 2, 32),
        (3200, 32, 64),
        (6400, 64, 128),
        (12_800, 128, 256),
        (25_600, 256, 512),
    ]:
        below, above = np.searchsorted(size, [0.99 * limit / 1024, 1.01 * limit / 1024])
        assert encode(tables, [(symbols[:below], indexes[:below])])[1] == fewer
        assert encode(tables, [(symbols[:above], indexes[:above])])[1] == more
    assert encode(tables, [(symbols, indexes)])[1] == 512


def test_golden_streams():
    """The bytes of the format: they may only change with its version."""
    i = np.arange(3000)
    indexes = (i * 7 % 64).astype(np.uint8)
    symbols = ((i * i % 11 - 5) * (indexes + 2) // 8).astype(np.int32)
    quiet = np.where(indexes == 0, 0, symbols).astype(np.int32)
    wild = symbols.copy()
    wild[[3, 500, 501, 2999]] = [INT32.min, INT32.max, 1000, -4096]
    passes = [(quiet, indexes), (symbols, indexes), (wild, indexes)]
    hashes = {}
    for lanes in (2, 8, 32, 64):
        data = assert_round_trip(gaussian_tables(), passes, lanes, 0xC0FFEE)
        hashes[lanes] = f"{len(data)} {hashlib.sha256(data).hexdigest()[:16]}"
    assert hashes == {
        2: "11419 9b389659aadaa7ad",
        8: "11426 03e0b2934ec89a5d",
        32: "11429 9dfcf12686ed8deb",
        64: "11432 76661f6d67076081",
    }
    small = [(np.array([1, -2, 0, 300, -70000], np.int32), np.array([10, 12, 0, 20, 0], np.uint8))]
    assert (
        assert_round_trip(gaussian_tables(), small, 2).hex() == "998c91a6000066022fe2bd0b9901a904"
    )


def test_kinds_of_arguments():
    rng = np.random.default_rng(3)
    symbols, indexes = (a.reshape(4, 6, 10) for a in draw(rng, 240))
    tables = gaussian_tables()
    data, lanes = encode(tables, [(symbols, indexes)])
    padded = np.full((4, 6, 20), 99, np.int32)
    padded[..., ::2] = symbols
    for s in (
        symbols.astype(np.int64),
        padded[..., ::2],
        np.asfortranarray(symbols),
        symbols.tolist(),
        torch.from_numpy(symbols),
        torch.from_numpy(padded)[..., ::2],
    ):
        for i in (indexes.astype(np.int64), indexes[::-1].copy()[::-1], torch.from_numpy(indexes)):
            assert encode(tables, [(s, i)]) == (data, lanes)
    for i in (indexes, np.asfortranarray(indexes), torch.from_numpy(indexes.astype(np.int16))):
        for stream in (data, bytearray(data), memoryview(data)):
            assert np.array_equal(Decoder(tables, stream, lanes).decode(i), symbols)
    scalar = encode(tables, [(np.array(3), np.array(20))], 2)[0]
    assert Decoder(tables, scalar, 2).decode(np.array(20)).shape == ()


def test_bad_arguments_add_nothing():
    tables = gaussian_tables()
    zeros = np.zeros(3, np.int32)
    encoder = Encoder(tables)
    for symbols, indexes, error in [
        (zeros, zeros + 64, ValueError),
        (zeros, zeros - 1, ValueError),
        (zeros, np.zeros(3, np.int64) + 2**40, ValueError),
        (zeros, zeros[:2], ValueError),
        (zeros[None], zeros, ValueError),
        (zeros.astype(np.int64) + 2**31, zeros, ValueError),
        (zeros.astype(np.float32), zeros, TypeError),
        (zeros, zeros.astype(np.float32), TypeError),
        (zeros, zeros.astype(bool), TypeError),
        (torch.zeros(3, device="meta"), zeros, TypeError),
        ("abc", zeros, TypeError),
    ]:
        with pytest.raises(error):
            encoder.encode(symbols, indexes)
    with pytest.raises(ValueError, match="32 bits"):
        encoder.finish(1 << 32)
    with pytest.raises(ValueError, match="chosen in finish"):
        _ = encoder.lanes
    data = encoder.finish()
    assert data == Encoder(tables).finish()
    with pytest.raises(ValueError, match="thread"):
        Decoder(tables, data, 2, 0)
    for lanes in (0, 1, 3, 2048):
        with pytest.raises(ValueError, match="power of two"):
            Encoder(tables, lanes)
        with pytest.raises(CorruptStreamError, match="power of two"):
            Decoder(tables, data, lanes)


def test_a_bad_index_consumes_nothing():
    tables = gaussian_tables()
    passes = [draw(np.random.default_rng(1), 500)]
    data, lanes = encode(tables, passes)
    decoder = Decoder(tables, data, lanes)
    with pytest.raises(ValueError, match="indexes must be 0 to 63"):
        decoder.decode(np.array([64]))
    assert np.array_equal(decoder.decode(passes[0][1]), passes[0][0])
    decoder.finish()


def test_use_after_finish():
    tables = gaussian_tables()
    encoder = Encoder(tables)
    data = encoder.finish()
    decoder = Decoder(tables, data, encoder.lanes)
    decoder.finish()
    zeros = np.zeros(3, np.int32)
    for call in (
        lambda: encoder.encode(zeros, zeros),
        encoder.finish,
        lambda: decoder.decode(zeros),
        decoder.finish,
    ):
        with pytest.raises(ValueError, match="finished"):
            call()


def test_threads_share_tables():
    tables = gaussian_tables()

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        assert_round_trip(tables, [draw(rng, 20_000) for _ in range(5)], None, seed)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(32)))


def test_threads_on_one_decoder_wait_for_each_other():
    tables = gaussian_tables()
    symbols, indexes = draw(np.random.default_rng(0), 5000)
    data, lanes = encode(tables, [(symbols, indexes)] * 16)
    decoder = Decoder(tables, data, lanes)
    with ThreadPoolExecutor(4) as pool:
        for decoded in pool.map(decoder.decode, [indexes] * 16):
            assert np.array_equal(decoded, symbols)
    decoder.finish()
