"""Probability tables: the same integers everywhere, close to the model, refused when malformed."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, ndtr

from mlic_fast.coder import SCALES, Tables, factorized_tables, gaussian_tables, scale_indexes
from mlic_fast.coder.arrays import little_endian
from mlic_fast.coder.tables import apportion

SHAPES = [(3, 1), (3, 3), (3, 3), (3, 3), (1, 3)]


def digest(tables: Tables) -> str:
    arrays = tables.to_arrays().values()
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()[:16]


def prior(channels: int) -> dict[str, object]:
    """A factorised prior from integers, so that it is the same with every version of numpy.

    Narrow channels come first, as the first matrix falls.
    """
    matrices, biases, factors = [], [], []
    for layer, (out, width) in enumerate(SHAPES):
        grid = np.arange(channels * out * width).reshape(channels, out, width) % 7
        slope = np.linspace(12.0, -2.0, channels)[:, None, None] if layer == 0 else 0.0
        matrices.append((grid * 0.125 + slope).astype(np.float32))
        biases.append(np.arange(channels * out).reshape(channels, out, 1) % 5 * 0.0625 - 0.125)
        factors.append(np.arange(channels * out).reshape(channels, out, 1) % 3 * 0.25 - 0.25)
    medians = np.arange(channels, dtype=np.float32) * 0.125 - 1.0
    return {"matrices": matrices, "biases": biases, "factors": factors[:-1], "medians": medians}


def prior_pmf(p: dict, low: int, high: int) -> np.ndarray:
    """PMF [C, high - low + 1] of round(z - median) with the library's own functions."""

    def cumulative(x):
        logits = x[:, None, :]
        for layer, (matrix, bias) in enumerate(zip(p["matrices"], p["biases"], strict=True)):
            weight = np.logaddexp(0.0, matrix.astype(np.float64))
            logits = np.einsum("coi,cik->cok", weight, logits) + bias
            if layer < len(p["factors"]):
                logits = logits + np.tanh(p["factors"][layer]) * np.tanh(logits)
        return logits[:, 0, :]

    x = p["medians"].astype(np.float64)[:, None] + np.arange(low, high + 1)
    lower, upper = cumulative(x - 0.5), cumulative(x + 0.5)
    sign = np.where(lower + upper > 0, -1.0, 1.0)
    return np.abs(expit(sign * upper) - expit(sign * lower))


def rows(tables: Tables):
    """(frequencies without escape, frequency of the escape, smallest symbol, precision) a table."""
    end = 0
    for size, minimum, precision in zip(
        tables.sizes, tables.minima, tables.precisions, strict=True
    ):
        f = tables.frequencies[end : end + size].astype(np.float64)
        end += size
        yield f[:-1], f[-1], int(minimum), int(precision)


def excess_bits(pmf: np.ndarray, f: np.ndarray, precision: int) -> float:
    """Cost above entropy in bits a symbol; the last of both is what is escaped, without digits."""
    kept = pmf > 0
    return float(np.sum(pmf[kept] * (np.log2(pmf[kept]) - np.log2(f[kept]) + precision)))


def test_scales():
    exact = np.exp(np.linspace(np.log(0.11), np.log(256.0), 64))
    assert np.array_equal(SCALES, exact.astype(np.float32))
    assert hashlib.sha256(SCALES.astype("<f4").tobytes()).hexdigest()[:16] == "5e5e1aa48df2b0cc"


def test_gaussian_tables_are_the_same_everywhere():
    assert digest(gaussian_tables()) == "ef1855062e8c6305"


def test_factorized_tables_are_the_same_everywhere():
    assert digest(factorized_tables(**prior(48))) == "16a517cabf331840"


def test_gaussian_tables_match_the_model():
    for scale, (f, escape, minimum, precision) in zip(SCALES, rows(gaussian_tables()), strict=True):
        s = float(scale)
        v = np.abs(np.arange(minimum, -minimum + 1))
        assert len(f) == len(v)
        assert precision == (16 if s < 0.2 else 14)
        assert len(f) <= 255 or s >= 64
        pmf = ndtr((0.5 - v) / s) - ndtr((-0.5 - v) / s)
        tail = 2 * ndtr((minimum - 0.5) / s)
        entropy = -np.sum(pmf * np.log2(np.maximum(pmf, 1e-300)))
        excess = excess_bits(np.append(pmf, tail), np.append(f, escape), precision)
        assert excess < 1e-4 + 3e-4 * entropy
        assert np.abs(f - f[::-1]).max() <= 1


def test_factorized_tables_match_the_model():
    p = prior(48)
    pmf = prior_pmf(p, -400, 400)
    precisions = set()
    for channel, (f, escape, minimum, precision) in enumerate(rows(factorized_tables(**p))):
        inside = slice(minimum + 400, minimum + 400 + len(f))
        tail = pmf[channel].sum() - pmf[channel, inside].sum()
        entropy = -np.sum(pmf[channel] * np.log2(np.maximum(pmf[channel], 1e-300)))
        assert minimum <= -1 and minimum + len(f) - 1 >= 1
        excess = excess_bits(np.append(pmf[channel, inside], tail), np.append(f, escape), precision)
        assert excess < 6e-4 + 3e-4 * entropy
        precisions.add(precision)
    assert precisions == {14, 16}


def test_factorized_tables_take_tensors_and_parameters():
    p = prior(5)
    tensors = {
        name: [torch.nn.Parameter(torch.from_numpy(np.asarray(a, np.float32))) for a in arrays]
        for name, arrays in p.items()
        if name != "medians"
    }
    tables = factorized_tables(**tensors, medians=torch.from_numpy(p["medians"]))
    assert tables == factorized_tables(**p)


def test_factorized_tables_refuse_nan():
    p = prior(2)
    p["medians"][0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        factorized_tables(**p)


def test_scale_indexes():
    scales = np.concatenate([SCALES, np.nextafter(SCALES, np.float32(1e9)), [0, -1, 1e9, np.nan]])
    indexes = scale_indexes(scales)
    assert indexes.dtype == np.uint8
    above = np.minimum(np.arange(64) + 1, 63)
    assert indexes.tolist() == [*range(64), *above, 0, 0, 63, 63]
    grid = torch.from_numpy(scales.astype(np.float32)).reshape(11, 12)
    assert np.array_equal(scale_indexes(grid.T), indexes.reshape(11, 12).T)


@given(
    st.lists(st.floats(0.0, 1.0), min_size=2, max_size=200).filter(lambda p: sum(p) > 1e-3),
    st.integers(8, 16),
)
def test_apportion(probabilities, precision):
    f = apportion(np.array(probabilities), precision).astype(np.int64)
    assert f.sum() == 1 << precision
    assert f.min() >= 1
    order = np.argsort(probabilities, kind="stable")
    assert (np.diff(f[order]) >= -1).all()


def test_arrays_round_trip():
    tables = Tables.concatenate([gaussian_tables(), factorized_tables(**prior(7))])
    assert len(tables) == 71
    assert Tables.from_arrays({**tables.to_arrays(), "other": np.zeros(3)}) == tables
    assert pickle.loads(pickle.dumps(tables)) == tables
    assert tables != gaussian_tables()
    with pytest.raises(ValueError, match="read-only"):
        tables.frequencies[0] = 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("frequencies", [3, 5, 7], "sum to"),
        ("frequencies", [16, 0, 0], "at least 1"),
        ("frequencies", [4, 4], "missing"),
        ("frequencies", [4, 4, 8, 1], "more frequencies"),
        ("sizes", [1], "2 to 32768"),
        ("sizes", [-3], "2 to 32768"),
        ("sizes", [3, 3], "differ in length"),
        ("minima", [2**31 - 1], "32 bits"),
        ("precisions", [0], "1 to 16"),
        ("precisions", [17], "1 to 16"),
        ("frequencies", np.array([4, 4, 8], np.int32), "vector of uint16"),
        ("sizes", np.array([[3]], np.int32), "vector of int32"),
    ],
)
def test_malformed_tables(name, value, message):
    arrays = {
        "frequencies": np.array([4, 4, 8], np.uint16),
        "sizes": np.array([3], np.int32),
        "minima": np.array([-1], np.int32),
        "precisions": np.array([4], np.uint8),
    }
    Tables.from_arrays(arrays)
    bad = value if isinstance(value, np.ndarray) else np.array(value, arrays[name].dtype)
    with pytest.raises(ValueError, match=message):
        Tables.from_arrays({**arrays, name: bad})
    with pytest.raises(ValueError, match=f"lack {name}"):
        Tables.from_arrays({key: a for key, a in arrays.items() if key != name})


def test_no_tables():
    empty = {
        name: np.empty(0, dtype)
        for name, dtype in [
            ("frequencies", "u2"),
            ("sizes", "i4"),
            ("minima", "i4"),
            ("precisions", "u1"),
        ]
    }
    with pytest.raises(ValueError, match="1 to 65536"):
        Tables.from_arrays(empty)


def test_hashes_do_not_depend_on_the_order_of_bytes() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    little = little_endian(array)
    assert little.tobytes() == np.array([[0, 3], [1, 4], [2, 5]], "<i4").tobytes()
    assert little.dtype.str == "<i4"
    assert little_endian(np.ones(2, np.uint8)).dtype.str == "|u1"
