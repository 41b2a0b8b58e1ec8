"""The drop-in against compressai.ans itself."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlic_fast.coder import SCALES
from mlic_fast.coder.compressai import BufferedRansEncoder, RansDecoder, RansEncoder
from mlic_fast.errors import CorruptStreamError

INT32 = np.iinfo(np.int32)


@pytest.fixture(scope="module")
def ans():
    if find_spec("compressai") is None:
        pytest.skip("needs CompressAI")
    from mlic_fast.models.compressai_import import compressai_ans

    return compressai_ans()


def make_cdfs(seed: int, count: int) -> tuple[list[list[int]], list[int], list[int]]:
    """Ragged rows padded with zeros, as CompressAI's `_quantized_cdf`, their sizes and offsets."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 40, count)
    rows = np.zeros((count, sizes.max()), np.int64)
    for row, size in zip(rows, sizes, strict=True):
        row[1 : size - 1] = np.sort(rng.choice(np.arange(1, 65536), size - 2, replace=False))
        row[size - 1] = 65536
    return rows.tolist(), sizes.tolist(), rng.integers(-30, 10, count).tolist()


def draw(seed: int, count: int, size: int, spread: int = 40) -> tuple[list[int], list[int]]:
    rng = np.random.default_rng(seed)
    symbols = rng.integers(-spread, spread, size)
    return symbols.tolist(), rng.integers(0, count, size).tolist()


def as_arrays(arguments):
    return [np.array(a, np.int32) for a in arguments]


def as_tensors(arguments):
    return [torch.tensor(a, dtype=torch.int32) for a in arguments]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 9),
    st.integers(4, 300),  # compressai.ans writes before its buffer for fewer symbols
    st.sampled_from([3, 40, 4000, 2**26]),
)
def test_same_bytes(ans, seed, count, size, spread):
    tables = make_cdfs(seed, count)
    symbols, indexes = draw(seed, count, size, spread)
    expected = ans.RansEncoder().encode_with_indexes(symbols, indexes, *tables)
    for kind in (list, as_arrays, as_tensors):
        s, i, *t = kind([symbols, indexes, *tables])
        assert RansEncoder().encode_with_indexes(s, i, *t) == expected
        decoded = RansDecoder().decode_with_indexes(expected, i, *t)
        assert isinstance(decoded, list if kind is list else np.ndarray)
        assert np.array_equal(decoded, symbols)


def test_steps(ans):
    tables = as_arrays(make_cdfs(1, 5))
    passes = [as_arrays(draw(seed, 5, 500)) for seed in range(20)]
    ours, theirs = BufferedRansEncoder(), ans.BufferedRansEncoder()
    for symbols, indexes in passes:
        ours.encode_with_indexes(symbols.reshape(50, 10), indexes.reshape(50, 10), *tables)
        theirs.encode_with_indexes(
            symbols.tolist(), indexes.tolist(), *(t.tolist() for t in tables)
        )
    data = theirs.flush()
    assert ours.flush() == data
    assert ours.flush() == RansEncoder().encode_with_indexes([], [], *tables)
    decoder = RansDecoder()
    decoder.set_stream(data)
    for symbols, indexes in passes:
        decoded = decoder.decode_stream(indexes.reshape(50, 10), *tables)
        assert np.array_equal(decoded, symbols.reshape(50, 10))
        assert decoded.dtype == np.int32


def test_the_tables_of_a_model(ans):
    from compressai.entropy_models import GaussianConditional

    model = GaussianConditional([float(s) for s in SCALES])
    model.update()
    tables = (model._quantized_cdf, model._cdf_length, model._offset)
    rng = np.random.default_rng(0)
    indexes = rng.integers(0, 64, 5000)
    symbols = np.rint(rng.standard_normal(5000) * SCALES[indexes]).astype(np.int32)
    data = RansEncoder().encode_with_indexes(symbols, indexes, *tables)
    lists = [t.tolist() for t in tables]
    assert data == ans.RansEncoder().encode_with_indexes(symbols.tolist(), indexes.tolist(), *lists)
    assert np.array_equal(RansDecoder().decode_with_indexes(data, indexes, *tables), symbols)


@pytest.mark.parametrize("size", range(4))
def test_few_symbols(size):
    tables = make_cdfs(size, 3)
    symbols, indexes = draw(size, 3, size)
    data = RansEncoder().encode_with_indexes(symbols, indexes, *tables)
    assert RansDecoder().decode_with_indexes(data, indexes, *tables) == symbols
    if size == 0:
        assert data == (1 << 31).to_bytes(8, "little")


def test_ends_of_int32():
    """compressai.ans itself never returns from the larger ones."""
    cdfs, sizes, offsets = [[0, 30000, 60000, 65536]], [4], [0]
    symbols = np.array([INT32.min, INT32.max, 0, 2**28, -(2**30)], np.int32)
    data = RansEncoder().encode_with_indexes(symbols, symbols * 0, cdfs, sizes, offsets)
    decoded = RansDecoder().decode_with_indexes(data, symbols * 0, cdfs, sizes, offsets)
    assert np.array_equal(decoded, symbols)


def test_altered_tables_are_seen():
    cdfs, sizes, offsets = as_arrays(([[0, 30000, 60000, 65536]], [4], [0]))
    symbols, indexes = np.array([0, 1, 1, 0] * 20), np.zeros(80, np.int32)
    before = RansEncoder().encode_with_indexes(symbols, indexes, cdfs, sizes, offsets)
    cdfs[0, 1] = 100
    after = RansEncoder().encode_with_indexes(symbols, indexes, cdfs, sizes, offsets)
    assert before != after
    decoded = RansDecoder().decode_with_indexes(after, indexes, cdfs, sizes, offsets)
    assert np.array_equal(decoded, symbols)
    offsets[0] = 1
    decoded = RansDecoder().decode_with_indexes(after, indexes, cdfs, sizes, offsets)
    assert np.array_equal(decoded, symbols + 1)


@pytest.mark.parametrize("kind", [list, as_arrays])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("symbols", [0, 1, 2]),
        ("indexes", [0, 1]),
        ("indexes", [0, -1]),
        ("cdfs", [[0, 30000, 30000, 65536]]),
        ("cdfs", [[0, 30000, 60000, 65535]]),
        ("cdfs", [[1, 30000, 60000, 65536]]),
        ("cdfs", [[0, 65536]]),
        ("cdfs", [[0, 5, 65536, 0], [0, 5, 65536, 0]]),
        ("sizes", [5]),
        ("sizes", [2]),
        ("sizes", [-1]),
        ("offsets", [0, 0]),
    ],
)
def test_bad_arguments(kind, name, value):
    arguments = {
        "symbols": [0, 1],
        "indexes": [0, 0],
        "cdfs": [[0, 30000, 60000, 65536]],
        "sizes": [4],
        "offsets": [0],
    }
    encoder = BufferedRansEncoder()
    encoder.encode_with_indexes(*kind(arguments.values()))
    with pytest.raises(ValueError):
        encoder.encode_with_indexes(*kind({**arguments, name: value}.values()))
    expected = RansEncoder().encode_with_indexes(*kind(arguments.values()))
    assert encoder.flush() == expected


def test_bad_types():
    tables = [[0, 30000, 60000, 65536]], [4], [0]
    encoder = BufferedRansEncoder()
    for symbols in ([0.5], [None], np.array([0.5]), [2**31], [[0]]):
        with pytest.raises((TypeError, ValueError)):
            encoder.encode_with_indexes(symbols, [0], *tables)
    with pytest.raises(ValueError, match="32 bits"):
        encoder.encode_with_indexes([INT32.max], [0], tables[0], tables[1], [-1])
    with pytest.raises(ValueError, match="set_stream"):
        RansDecoder().decode_stream([0], *tables)


def test_damaged():
    """Every cut and flip: CorruptStreamError or symbols, never a read beyond the end."""
    tables = as_arrays(make_cdfs(2, 4))
    symbols, indexes = as_arrays(draw(3, 4, 200, 2**20))
    data = RansEncoder().encode_with_indexes(symbols, indexes, *tables)
    decoder = RansDecoder()
    for end in range(len(data)):
        with pytest.raises(CorruptStreamError):
            decoder.decode_with_indexes(data[:end], indexes, *tables)
    rng = np.random.default_rng(0)
    damaged = [
        bytes(b ^ (1 << bit) * (i == at) for i, b in enumerate(data))
        for at in range(0, len(data), 3)
        for bit in (0, 7)
    ]
    damaged += [rng.bytes(int(rng.integers(0, 50)) * 4) for _ in range(1000)]
    raised = 0
    for stream in damaged:
        try:
            decoder.decode_with_indexes(stream, indexes, *tables)
        except CorruptStreamError:
            raised += 1
    assert raised > 500
