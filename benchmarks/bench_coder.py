"""The range coders side by side on the symbols of one image, 24,576 a pass at Kodak size.

- drawn: 20 passes with the statistics of trained MLIC++ models at about 0.3 bit a pixel;
- photo: what the photograph model codes for a synthetic photograph, 10 passes.

All coders take integer arrays and give bytes, and the reverse, in decoding pass by pass, as a codec
must. A stream is decoded and compared with the input before anything is timed.

- mlic_fast: this project's stream.
- compressai.ans: as the public MLIC++ code calls it, through lists; its tables are made lists once.
- drop-in: mlic_fast.coder.compressai on arrays; the bytes of compressai.ans.
- constriction: an independent coder, with the Gaussian itself as its model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from conftest import CPU_SUITE
from scipy.special import ndtr

from mlic_fast import load
from mlic_fast.coder import SCALES, Decoder, Encoder, gaussian_tables
from mlic_fast.coder import compressai as drop_in
from mlic_fast.conformance.recorder import Recorder
from mlic_fast.models.compressai_import import compressai_ans
from mlic_fast.profiling.pictures import synthetic_photograph

# Where it is missing, the other suites run all the same.
constriction = pytest.importorskip("constriction")

Array = np.ndarray
BASELINE = "compressai.ans"

pytestmark = CPU_SUITE


@dataclass(frozen=True)
class Coder:
    """encode(symbols, indexes) -> bytes; decode(bytes, indexes) -> symbols of each pass."""

    name: str
    encode: Callable[[Array, Array], bytes]
    decode: Callable[[bytes, Array], list[Array]]


def mlic_fast() -> Coder:
    tables = gaussian_tables()
    lanes = 0  # in a file it is in the header

    def encode(symbols: Array, indexes: Array) -> bytes:
        nonlocal lanes
        encoder = Encoder(tables)
        for s, i in zip(symbols, indexes, strict=True):
            encoder.encode(s, i)
        data = encoder.finish()
        lanes = encoder.lanes
        return data

    def decode(data: bytes, indexes: Array) -> list[Array]:
        decoder = Decoder(tables, data, lanes)
        symbols = [decoder.decode(i) for i in indexes]
        decoder.finish()
        return symbols

    return Coder("mlic_fast", encode, decode)


def compressai_tables() -> tuple[Array, Array, Array]:
    from compressai.entropy_models import GaussianConditional

    model = GaussianConditional([float(s) for s in SCALES])
    model.update()
    return model._quantized_cdf.numpy(), model._cdf_length.numpy(), model._offset.numpy()


def baseline() -> Coder:
    ans = compressai_ans()
    tables = [array.tolist() for array in compressai_tables()]

    def encode(symbols: Array, indexes: Array) -> bytes:
        encoder = ans.BufferedRansEncoder()
        encoder.encode_with_indexes(symbols.ravel().tolist(), indexes.ravel().tolist(), *tables)
        return encoder.flush()

    def decode(data: bytes, indexes: Array) -> list[Array]:
        decoder = ans.RansDecoder()
        decoder.set_stream(data)
        return [np.array(decoder.decode_stream(i.tolist(), *tables), np.int32) for i in indexes]

    return Coder(BASELINE, encode, decode)


def dropped_in() -> Coder:
    tables = compressai_tables()

    def encode(symbols: Array, indexes: Array) -> bytes:
        encoder = drop_in.BufferedRansEncoder()
        encoder.encode_with_indexes(symbols, indexes, *tables)
        return encoder.flush()

    def decode(data: bytes, indexes: Array) -> list[Array]:
        decoder = drop_in.RansDecoder()
        decoder.set_stream(data)
        return [decoder.decode_stream(i, *tables) for i in indexes]

    return Coder("drop-in", encode, decode)


def independent() -> Coder:
    model = constriction.stream.model.QuantizedGaussian(-4096, 4095)
    scales = SCALES.astype(np.float64)

    def encode(symbols: Array, indexes: Array) -> bytes:
        coder = constriction.stream.stack.AnsCoder()
        for s, i in zip(symbols[::-1], indexes[::-1], strict=True):
            coder.encode_reverse(s, model, np.zeros(s.size), scales[i])
        return coder.get_compressed().tobytes()

    def decode(data: bytes, indexes: Array) -> list[Array]:
        coder = constriction.stream.stack.AnsCoder(np.frombuffer(data, np.uint32))
        return [coder.decode(model, np.zeros(i.size), scales[i]) for i in indexes]

    return Coder("constriction", encode, decode)


def draw_symbols(seed: int = 0) -> tuple[Array, Array]:
    """[20, 24576] of each: 57 to 78 % in the lowest table, the others' indexes exponential."""
    rng = np.random.default_rng(seed)
    shape = (20, 24576)
    floor = rng.random(shape) < np.linspace(0.57, 0.78, 20)[:, None]
    mean_index = np.linspace(11.0, 5.0, 20)[:, None]
    indexes = np.minimum(1 + rng.exponential(mean_index, shape).astype(np.int64), 63)
    indexes[floor] = 0
    symbols = np.rint(rng.standard_normal(shape) * SCALES[indexes])
    return symbols.astype(np.int32), indexes.astype(np.uint8)


def coded_symbols() -> tuple[Array, Array]:
    """[passes, K] of each: what the photograph model codes for a photograph."""
    codec = load("photo", engine="cpu")
    recorder = codec._engine._ops = Recorder(codec._engine._ops)
    codec.compress(synthetic_photograph(768, 512))
    _, *symbols = recorder.symbols  # the first are those of z
    passes = [x.reshape(-1) for x in (*symbols, *recorder.indexes)]
    return np.stack(passes[: len(symbols)]), np.stack(passes[len(symbols) :])


@cache
def symbols_of(source: str) -> tuple[Array, Array]:
    return draw_symbols() if source == "drawn" else coded_symbols()


def ideal_bytes(symbols: Array, indexes: Array) -> float:
    """Sum of -log2 of the Gaussian model's probabilities, none below CompressAI's bound of 1e-9."""
    distance = np.abs(symbols.astype(np.float64))
    scales = SCALES[indexes].astype(np.float64)
    pmf = ndtr((0.5 - distance) / scales) - ndtr((-0.5 - distance) / scales)
    return float(-np.log2(np.maximum(pmf, 1e-9)).sum() / 8)


CODERS = {coder.name: coder for coder in (mlic_fast(), baseline(), dropped_in(), independent())}


@pytest.fixture(params=["drawn", "photo"])
def source(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=list(CODERS))
def coder(request: pytest.FixtureRequest) -> Coder:
    return CODERS[request.param]


def test_encode(benchmark: Any, source: str, coder: Coder) -> None:
    symbols, indexes, _ = prepared(benchmark, "encode", source, coder)
    benchmark(coder.encode, symbols, indexes)


def test_decode(benchmark: Any, source: str, coder: Coder) -> None:
    _, indexes, data = prepared(benchmark, "decode", source, coder)
    benchmark(coder.decode, data, indexes)


def prepared(benchmark: Any, way: str, source: str, coder: Coder) -> tuple[Array, Array, bytes]:
    """Symbols, indexes and the stream of them, which has been checked."""
    symbols, indexes = symbols_of(source)
    benchmark.group = f"range coder, {way}, {source}"
    data = checked(coder, symbols, indexes)
    describe(benchmark, data, symbols, indexes)
    return symbols, indexes, data


def checked(coder: Coder, symbols: Array, indexes: Array) -> bytes:
    """The stream, having decoded it."""
    data = coder.encode(symbols, indexes)
    assert np.array_equal(coder.decode(data, indexes), symbols)
    if coder.name == "drop-in":
        assert data == CODERS[BASELINE].encode(symbols, indexes)
    return data


def describe(benchmark: Any, data: bytes, symbols: Array, indexes: Array) -> None:
    benchmark.extra_info["bytes"] = len(data)
    over = 100 * (len(data) / ideal_bytes(symbols, indexes) - 1)
    benchmark.extra_info["over_ideal_percent"] = over
    benchmark.extra_info["symbols"] = symbols.size
    benchmark.extra_info["lowest_table_percent"] = 100 * float(np.mean(indexes == 0))
