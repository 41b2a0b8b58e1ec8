"""The range coder's kernels, on a GPU or with emulated threads: the C++ coder's bytes, symbols, errors."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlic_fast.coder import SCALES, Decoder, Encoder, Tables, gaussian_tables
from mlic_fast.coder.device import DeviceDecoder, DeviceEncoder, DeviceTables
from mlic_fast.errors import CapacityError, CorruptStreamError, EngineError

INT32 = np.iinfo(np.int32)
LANES = [2**k for k in range(1, 11)]
#: A pass of a batch: symbols [B, positions, C], and indexes alike or the first table of the channels.
Pass = tuple[np.ndarray, np.ndarray | int]

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


def in_stream_order(x: np.ndarray) -> np.ndarray:
    """[positions, C] -> what the C++ coder takes."""
    return np.ascontiguousarray(x.T)


def indexes_of(symbols: np.ndarray, indexes: np.ndarray | int) -> np.ndarray:
    if isinstance(indexes, np.ndarray):
        return indexes
    return np.broadcast_to(indexes + np.arange(symbols.shape[-1]), symbols.shape).astype(np.int32)


def encode_on_host(tables: Tables, passes: list[Pass], image: int, lanes: int | None, digest: int):
    encoder = Encoder(tables, lanes)
    for symbols, indexes in passes:
        encoder.encode(
            in_stream_order(symbols[image]), in_stream_order(indexes_of(symbols, indexes)[image])
        )
    return encoder.finish(digest), encoder.lanes


def encode_on_device(
    tables: Tables, passes: list[Pass], batch: int, lanes: int | None, digests: list[int], device: str
) -> list[tuple[bytes, int]]:
    encoder = DeviceEncoder(
        DeviceTables(tables, device),
        batch=batch,
        capacity=1 << 16,
        symbols=sum(symbols[0].size for symbols, _ in passes),
        lanes=lanes,
    )
    encoder.digests.copy_(torch.from_numpy(np.array(digests, np.uint32).view(np.int32)))
    encoder.begin()
    for symbols, indexes in passes:
        s = torch.from_numpy(symbols).to(device)
        if isinstance(indexes, int):
            encoder.record_channels(s, indexes)
        else:
            encoder.record(s, torch.from_numpy(indexes).to(device))
    encoder.finish()
    return encoder.payloads()


class Decoding:
    """A decoder on a device, and the passes that it is asked for."""

    def __init__(self, tables: Tables, passes: list[Pass], batch: int, device: str) -> None:
        self.passes, self.device = passes, device
        self.decoder = DeviceDecoder(
            DeviceTables(tables, device),
            batch=batch,
            capacity=1 << 16,
            symbols=max((symbols[0].size for symbols, _ in passes), default=0),
        )

    def __call__(self, payloads: list[bytes], lanes: list[int]) -> list[np.ndarray]:
        self.decoder.load(payloads, lanes)
        self.decoder.begin()
        decoded = []
        for symbols, indexes in self.passes:
            out = torch.full(symbols.shape, 93, dtype=torch.int32, device=self.device)
            if isinstance(indexes, int):
                self.decoder.decode_channels(out, indexes)
            else:
                self.decoder.decode(torch.from_numpy(indexes).to(self.device), out)
            decoded.append(out)
        self.decoder.finish()
        return [out.cpu().numpy() for out in decoded]


def assert_same_coder(
    tables: Tables, passes: list[Pass], batch: int, lanes: int | None, digests: list[int], device: str
) -> list[tuple[bytes, int]]:
    expected = [encode_on_host(tables, passes, b, lanes, digests[b]) for b in range(batch)]
    assert encode_on_device(tables, passes, batch, lanes, digests, device) == expected
    decoding = Decoding(tables, passes, batch, device)
    payloads, chosen = zip(*expected, strict=True)
    for decoded, (symbols, _) in zip(decoding(payloads, chosen), passes, strict=True):
        assert np.array_equal(decoded, symbols)
    assert decoding.decoder.digests() == digests
    return expected


@st.composite
def tables_and_passes(draw):
    """Any small tables; symbols on them, near them and at the ends of int32; floor passes."""
    parts = []
    for _ in range(draw(st.integers(2, 6))):
        precision = draw(st.sampled_from([1, 4, 14, 16]))
        size = draw(st.integers(2, min(9, 1 << precision)))
        cuts = draw(
            st.sets(st.integers(1, (1 << precision) - 1), min_size=size - 1, max_size=size - 1)
        )
        frequencies = np.diff([0, *sorted(cuts), 1 << precision])
        minimum = draw(st.sampled_from([-3, -1, 0, 40, INT32.min, INT32.max - 9]))
        parts.append((frequencies, size, minimum, precision))
    frequencies, sizes, minima, precisions = zip(*parts, strict=True)
    tables = Tables(
        np.concatenate(frequencies).astype(np.uint16),
        np.array(sizes, np.int32),
        np.array(minima, np.int32),
        np.array(precisions, np.uint8),
    )
    symbol = st.one_of(
        st.integers(-8, 8), st.sampled_from([INT32.min, INT32.max, 0]), st.integers(30, 50)
    )
    batch = draw(st.integers(1, 3))
    passes: list[Pass] = []
    for _ in range(draw(st.integers(0, 4))):
        by_channel = draw(st.booleans())
        channels = draw(st.integers(1, len(tables) - 1 if by_channel else 40))
        shape = (batch, draw(st.integers(0, 30)), channels)
        pool = np.array(draw(st.lists(symbol, min_size=1, max_size=6)), np.int32)
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        symbols = rng.choice(pool, shape)
        if by_channel:
            passes.append((symbols, draw(st.integers(1, len(tables) - channels))))
            continue
        indexes = rng.integers(0, len(tables), shape, dtype=np.uint8)
        if draw(st.booleans()):
            indexes[rng.random(shape) < 0.8] = 0
        quiet = rng.random(batch) < 0.5  # these skip their floor table
        symbols[(indexes == 0) & quiet[:, None, None]] = 0
        passes.append((symbols, indexes))
    digests = draw(st.lists(st.integers(0, 2**32 - 1), min_size=batch, max_size=batch))
    return tables, passes, batch, digests


@settings(max_examples=300, deadline=None)
@given(tables_and_passes(), st.sampled_from([*LANES, None]))
def test_round_trip(case, lanes):
    tables, passes, batch, digests = case
    assert_same_coder(tables, passes, batch, lanes, digests, "cpu")
