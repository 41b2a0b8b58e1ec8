"""The range coder's kernels, on a GPU or emulated: bytes, symbols and errors of the C++ coder."""

import numpy as np
import pytest
import torch
from coder_cases import INT32, LANES, SYMBOLS, malformed_escapes, pack_states, small_tables
from hypothesis import given, settings
from hypothesis import strategies as st

from mlic_fast import _C
from mlic_fast.coder import SCALES, Decoder, Encoder, Tables, gaussian_tables
from mlic_fast.coder.gpu_coder import DeviceDecoder, DeviceEncoder, DeviceTables
from mlic_fast.errors import CapacityError, CorruptStreamError, EngineError

#: A pass of a batch: symbols [B, positions, C], and indexes alike or the first channel's table.
Pass = tuple[np.ndarray, np.ndarray | int]

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


def indexes_of(symbols: np.ndarray, indexes: np.ndarray | int) -> np.ndarray:
    if isinstance(indexes, np.ndarray):
        return indexes
    return np.broadcast_to(indexes + np.arange(symbols.shape[-1]), symbols.shape).astype(np.int32)


def encode_on_host(tables: Tables, passes: list[Pass], image: int, lanes: int | None, digest: int):
    encoder = Encoder(tables, lanes)
    for symbols, indexes in passes:
        encoder.encode(symbols[image], indexes_of(symbols, indexes)[image])
    return encoder.finish(digest), encoder.lanes


def encode_on_device(
    tables: Tables, passes: list[Pass], lanes: int | None, digests: list[int], device: str
) -> list[tuple[bytes, int]]:
    encoder = DeviceEncoder(
        DeviceTables(tables, device),
        batch=len(digests),
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

    def __init__(
        self,
        tables: Tables,
        passes: list[Pass],
        batch: int,
        device: str,
        capacity: int = 1 << 16,
        blocks: int | None = None,
    ) -> None:
        self.passes, self.device = passes, device
        self.decoder = DeviceDecoder(
            DeviceTables(tables, device),
            batch=batch,
            capacity=capacity,
            symbols=max((symbols[0].size for symbols, _ in passes), default=0),
            blocks=blocks,
        )
        for scratch in self.decoder._scratch:  # which may hold anything
            scratch.fill_(0x5A)

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
    tables: Tables,
    passes: list[Pass],
    lanes: int | None,
    digests: list[int],
    device: str,
    blocks: int | None = None,
) -> list[tuple[bytes, int]]:
    expected = [
        encode_on_host(tables, passes, b, lanes, digest) for b, digest in enumerate(digests)
    ]
    assert encode_on_device(tables, passes, lanes, digests, device) == expected
    decoding = Decoding(tables, passes, len(digests), device, blocks=blocks)
    payloads, chosen = zip(*expected, strict=True)
    for decoded, (symbols, _) in zip(decoding(payloads, chosen), passes, strict=True):
        assert np.array_equal(decoded, symbols)
    assert decoding.decoder.digests() == digests
    return expected


@st.composite
def tables_and_passes(draw):
    """Any small tables; symbols on them, near them, at the ends of int32, and runs of zeros."""
    tables = draw(small_tables())
    batch = draw(st.integers(1, 3))
    passes: list[Pass] = []
    for _ in range(draw(st.integers(0, 4))):
        by_channel = draw(st.booleans())
        channels = draw(st.integers(1, len(tables) if by_channel else 40))
        shape = (batch, draw(st.integers(0, 30)), channels)
        pool = np.array(draw(st.lists(SYMBOLS, min_size=1, max_size=6)), np.int32)
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        symbols = rng.choice(pool, shape)
        if by_channel:
            passes.append((symbols, draw(st.integers(0, len(tables) - channels))))
            continue
        indexes = rng.integers(0, len(tables), shape, dtype=np.uint8)
        if draw(st.booleans()):
            indexes[rng.random(shape) < 0.8] = 0
        quiet = rng.choice([0.0, 0.7, 0.99], batch)
        symbols[rng.random(shape) < quiet[:, None, None]] = 0
        passes.append((symbols, indexes))
    digests = draw(st.lists(st.integers(0, 2**32 - 1), min_size=batch, max_size=batch))
    return tables, passes, digests


@settings(max_examples=300, deadline=None)
@given(tables_and_passes(), st.sampled_from([*LANES, None]), st.sampled_from([None, 1, 2, 8]))
def test_round_trip(case, lanes, blocks):
    tables, passes, digests = case
    assert_same_coder(tables, passes, lanes, digests, "cpu", blocks)


def gaussian_passes(seed: int, batch: int, sizes: list[tuple[int, int]]) -> list[Pass]:
    """Symbols under the model, mostly in the lowest table."""
    rng = np.random.default_rng(seed)
    passes: list[Pass] = []
    for positions, channels in sizes:
        shape = (batch, positions, channels)
        indexes = np.minimum(1 + rng.exponential(8.0, shape).astype(np.int64), 63)
        indexes[rng.random(shape) < rng.choice([0.0, 0.67, 1.0])] = 0
        symbols = np.rint(rng.standard_normal(shape) * SCALES[indexes]).astype(np.int32)
        quiet = rng.random(batch) < 0.7
        symbols[(indexes == 0) & quiet[:, None, None]] = 0
        wild = rng.random(shape) < 0.002
        wild &= indexes > 0
        symbols[wild] = rng.integers(INT32.min, INT32.max, int(wild.sum()), endpoint=True)
        passes.append((symbols, indexes.astype(np.uint8)))
    return passes


@pytest.mark.parametrize("lanes", [*LANES, None])
def test_gaussian_tables(device, lanes):
    passes = gaussian_passes(1, 2, [(96, 32), (96, 32), (1, 32), (35, 7), (300, 5), (64, 192)])
    assert_same_coder(gaussian_tables(), passes, lanes, [0xDEADBEEF, 3], device)


@pytest.mark.parametrize("blocks", [1, 2, 4, 8, None])
def test_blocks(device, blocks):
    """Passes that leave some blocks of a cluster without symbols, or one with a single one."""
    sizes = [(1, 1), (1023, 1), (32, 32), (41, 25), (3, 683), (30, 1000), (4097, 1)]
    passes = gaussian_passes(6, 2, sizes)
    rng = np.random.default_rng(7)
    for positions, channels in [(1, 3), (100, 61), (9, 57)]:
        z = rng.standard_normal((2, positions, channels)) * SCALES[3 : 3 + channels]
        passes.insert(2, (np.rint(z).astype(np.int32), 3))
    assert_same_coder(gaussian_tables(), passes, 64, [1, 2], device, blocks)


def test_channels_beyond_shared_memory(device):
    """The cells of 192 wide tables do not fit: they are looked up where they are."""
    tables = Tables.concatenate([gaussian_tables()] * 4)
    rng = np.random.default_rng(2)
    shape = (2, 24, 192)
    z = np.rint(rng.standard_normal(shape) * np.tile(SCALES, 3)).astype(np.int32)
    z[0, :, 70] = rng.integers(INT32.min, INT32.max, 24)
    passes: list[Pass] = [(z, 64), *gaussian_passes(3, 2, [(48, 32)])]
    assert_same_coder(tables, passes, 64, [7, 8], device)
    assert_same_coder(tables, passes, None, [7, 8], device)


def test_size_of_a_photograph(device):
    passes = gaussian_passes(4, 1, [(768, 32)] * 20)
    assert_same_coder(gaussian_tables(), passes, None, [9], device)


def test_nothing(device):
    tables = gaussian_tables()
    empty = np.empty((1, 0, 32), np.int32)
    for passes in ([], [(empty, empty.astype(np.uint8))], [(empty[..., :0], 64)]):
        expected = assert_same_coder(tables, passes, None, [0x12345678], device)
        assert expected == [(bytes.fromhex("0078563412"), 2)]


@pytest.mark.parametrize("lanes", [2, 32, 1024])
def test_capacity(device, lanes):
    """Exactly enough is enough, also for the pages that the words are collected in."""
    rng = np.random.default_rng(5)
    symbols = rng.integers(INT32.min, INT32.max, (1, 800, 12), endpoint=True, dtype=np.int32)
    indexes = np.full(symbols.shape, 5, np.uint8)
    tables = gaussian_tables()
    payload, _ = encode_on_host(tables, [(symbols, indexes)], 0, lanes, 0)
    arrays = torch.from_numpy(symbols).to(device), torch.from_numpy(indexes).to(device)
    for capacity in (len(payload), len(payload) + 1, len(payload) - 2, 8):
        encoder = DeviceEncoder(
            DeviceTables(tables, device),
            batch=1,
            capacity=capacity,
            symbols=symbols.size,
            lanes=lanes,
        )
        encoder.record(*arrays)
        encoder.finish()
        if capacity >= len(payload):
            assert encoder.payloads() == [(payload, lanes)]
        else:
            with pytest.raises(CapacityError, match="exceeds"):
                encoder.payloads()


# ---- Damage ----


def outcome_on_host(tables: Tables, passes: list[Pass], payload: bytes, lanes: int):
    """The error's message, or digest and symbols."""
    try:
        decoder = Decoder(tables, payload, lanes)
        decoded = [decoder.decode(indexes_of(s, i)[0]).astype(np.int64) for s, i in passes]
        return decoder.finish(), [d.tobytes() for d in decoded]
    except CorruptStreamError as error:
        return str(error)


class Comparison:
    """Decodes payloads on host and device, and compares everything."""

    def __init__(
        self,
        tables: Tables,
        passes: list[Pass],
        device: str,
        batch: int = 1,
        capacity: int = 1 << 16,
        blocks: int | None = None,
    ) -> None:
        repeated: list[Pass] = [
            (np.repeat(s, batch, 0), i if isinstance(i, int) else np.repeat(i, batch, 0))
            for s, i in passes
        ]
        self.tables, self.passes, self.batch = tables, passes, batch
        self.decoding = Decoding(tables, repeated, batch, device, capacity, blocks)
        self.seen: set[str] = set()

    def __call__(self, payloads: list[bytes], lanes: list[int]) -> None:
        missing = self.batch - len(payloads)
        payloads, lanes = payloads + [b""] * missing, lanes + [2] * missing
        decoded = self.decoding(payloads, lanes)
        results = self.decoding.decoder.results.cpu().numpy().view(np.uint32)
        for i, (payload, n) in enumerate(zip(payloads, lanes, strict=True)):
            expected = outcome_on_host(self.tables, self.passes, payload, n)
            error, digest = results[i]
            if isinstance(expected, str):
                self.seen.add(expected)
                with pytest.raises(CorruptStreamError) as caught:
                    _C.gpu_coder.check(int(error))
                assert str(caught.value) == expected
            else:
                symbols = [np.ascontiguousarray(d[i], np.int64).tobytes() for d in decoded]
                assert (error, digest, symbols) == (0, *expected)


#: With blocks of threads.
DAMAGED_LANES = [(2, 1), (8, 8), (32, 2), (64, None), (1024, 4)]


@pytest.fixture(scope="module")
def damage_case():
    passes = gaussian_passes(11, 1, [(30, 9), (4, 0), (50, 20)])
    return Tables.concatenate([gaussian_tables()] * 2), [(passes[0][0], 64), *passes]


def damaged(rng: np.random.Generator, payload: bytes) -> bytes:
    """A bit or more flipped, mostly in front; cut; extended; or noise."""
    data = bytearray(payload)
    kind = rng.integers(0, 7)
    if kind < 3:
        for _ in range(int(rng.integers(1, 4))):
            at = rng.integers(0, len(data) if rng.random() < 0.5 else min(40, len(data)))
            data[at] ^= 1 << rng.integers(0, 8)
    elif kind == 3:
        del data[int(rng.integers(0, len(data))) :]
    elif kind == 4:
        data += rng.bytes(int(rng.integers(1, 9)))
    elif kind == 5:
        start = int(rng.integers(0, len(data)))
        data[start : start + 8] = rng.bytes(len(data[start : start + 8]))
    else:
        return rng.bytes(int(rng.integers(0, len(data) + 8)))
    return bytes(data)


@pytest.mark.parametrize(("lanes", "blocks"), DAMAGED_LANES)
def test_damage(damage_case, device, lanes, blocks):
    tables, passes = damage_case
    payload, _ = encode_on_host(tables, passes, 0, lanes, 0xC0FFEE)
    compare = Comparison(tables, passes, device, batch=16, blocks=blocks)
    rng = np.random.default_rng(lanes)
    for _ in range(40):
        # The sound ones decode beside the damaged and after them.
        compare([payload, *(damaged(rng, payload) for _ in range(14)), payload], [lanes] * 16)
    compare([payload] * 10, [2**k for k in range(1, 11)])
    assert len(compare.seen) >= 4


def test_every_cut(damage_case, device):
    """In buffers that end where the payload ends, for memory checkers."""
    tables, passes = damage_case
    for lanes in (2, 64):
        payload, _ = encode_on_host(tables, passes, 0, lanes, 0)
        for end in range(len(payload)):
            Comparison(tables, passes, device, capacity=max(8, end))([payload[:end]], [lanes])


@malformed_escapes
def test_malformed_escapes(device, words, message):
    tables = gaussian_tables()
    state = 0x3FFF << 14 | (1 << 14) - 1  # the escape; then the next word's digits, the low first
    data = b"".join(int(word, 16).to_bytes(2, "little") for word in words.split())
    for count, other in ((1, 1 << 16), (2, 1 << 16), (2, state)):
        shape = (1, 1, count)
        compare = Comparison(
            tables, [(np.zeros(shape, np.int32), np.full(shape, 24, np.uint8))], device
        )
        states = pack_states([state, other])
        compare([states + data], [2])
        assert count == 2 or all(message in text for text in compare.seen)


def test_headers(device):
    """Lengths of groups, passes before the tail, states, numbers of lanes."""
    passes: list[Pass] = [(np.zeros((1, 1, 3), np.int32), np.full((1, 1, 3), 10, np.uint8))]
    compare = Comparison(gaussian_tables(), passes, device)
    states = pack_states([1 << 16] * 64)
    wide = pack_states([(1 << 32) - 1] * 64)
    word = pack_states([1 << 16] * 63 + [1 << 16 | 7])
    for lanes, payload in [
        (64, b"\xff\xff\xff\xff\x0f" + bytes(2000)),
        (64, b"\xff\xff\xff\xff\x0f" + states),
        (64, b"\xff\xff\xff\xff\x10" + states),
        (64, b"\x80\x00" + states),
        (64, b"\xff" * 300),
        (64, b"\x80"),
        *(
            (64, b"\x00" + tail + body)
            for tail in (b"\x00", b"\x01", b"\x02", b"\xff\xff\xff\xff\x0f", b"\x80\x00")
            for body in (states, states + bytes(4), states + bytes(5), wide, wide[:-1], word)
        ),
        (64, b"\x02\x01" + states + bytes(4)),
        (64, b"\x00\x01\x01" + states[1:-1] + b"\x80"),
        (64, b"\x00\x01"),
        (1024, b"\xff\xff\xff\xff\x0f" * 31 + bytes(3000)),
        (1024, b"\x80" * 200),
        *((lanes, states) for lanes in (0, 1, 3, 48, 2048, 2**32 - 1)),
    ]:
        compare([payload], [lanes])
    assert len(compare.seen) >= 5


# ---- The interface ----


def test_bad_arguments(device):
    tables = DeviceTables(gaussian_tables(), device)
    decoder = DeviceDecoder(tables, batch=2, capacity=100, symbols=60)
    encoder = DeviceEncoder(tables, batch=2, capacity=100, symbols=60)
    good = torch.zeros(2, 5, 6, dtype=torch.uint8, device=device)
    out = good.int()
    for indexes in (
        good.int(),
        good[:1],
        good[0, 0],
        good.new_zeros(2, 6, 5).transpose(1, 2),
        good.new_zeros(2, 11, 6),
        torch.zeros(2, 5, 6, dtype=torch.uint8, device="meta"),
    ):
        with pytest.raises(ValueError, match=r"must be|made for"):
            decoder.decode(indexes)
        with pytest.raises(ValueError, match=r"must be|made for|differ"):
            encoder.record(out, indexes)
    for call in (
        lambda: decoder.decode(good, out[:, :4].contiguous()),
        lambda: decoder.decode_channels(out, -1),
        lambda: decoder.decode_channels(out, 59),
        lambda: encoder.record_channels(out, -1),
        lambda: encoder.record_channels(out.float(), 1),
        lambda: decoder.load([bytes(8)], [2]),
        lambda: decoder.load([bytes(8), bytes(101)], [2, 2]),
        lambda: DeviceEncoder(tables, batch=1, capacity=100, symbols=1, lanes=3),
        lambda: DeviceDecoder(tables, batch=0, capacity=100, symbols=1),
        lambda: DeviceDecoder(tables, batch=1, capacity=100, symbols=1, blocks=3),
    ):
        with pytest.raises(ValueError):
            call()
    for _ in range(2):
        encoder.record(out, good)
    with pytest.raises(ValueError, match="more symbols"):
        encoder.record(out, good)


def test_an_index_without_a_table(device):
    tables = DeviceTables(gaussian_tables(), device)
    encoder = DeviceEncoder(tables, batch=1, capacity=100, symbols=60)
    decoder = DeviceDecoder(tables, batch=1, capacity=100, symbols=60)
    symbols = torch.zeros(1, 5, 6, dtype=torch.int32, device=device)
    indexes = torch.full((1, 5, 6), 64, dtype=torch.uint8, device=device)
    encoder.record(symbols, indexes)
    encoder.finish()
    with pytest.raises(ValueError, match="index"):
        encoder.payloads()
    decoder.load([bytes(5)], [2])
    decoder.begin()
    decoder.decode(indexes)
    decoder.finish()
    with pytest.raises(ValueError, match="index"):
        decoder.digests()


@pytest.mark.parametrize("blocks", [1, 2, 8])
@pytest.mark.parametrize("at", [0, 3000, 8100])
def test_an_index_without_a_table_in_any_block(device, blocks, at):
    """Zeros for its image alone, whichever block has the index."""
    tables = gaussian_tables()
    passes = gaussian_passes(8, 2, [(8, 1024), (1, 100)])
    payload, lanes = encode_on_host(tables, passes, 1, None, 5)
    decoding = Decoding(tables, passes, 2, device, blocks=blocks)
    (symbols, indexes), (more, _) = passes
    assert isinstance(indexes, np.ndarray)
    indexes[0].flat[at] = 64
    first, second = decoding([payload] * 2, [lanes] * 2)
    assert not first[0].any() and not second[0].any()
    assert np.array_equal(first[1], symbols[1]) and np.array_equal(second[1], more[1])
    bad, sound = decoding.decoder.results.cpu().numpy().view(np.uint32)
    with pytest.raises(ValueError, match="index"):
        _C.gpu_coder.check(int(bad[0]))
    assert sound.tolist() == [0, 5]


def test_encoder_starts_again(device):
    tables = gaussian_tables()
    encoder = DeviceEncoder(DeviceTables(tables, device), batch=1, capacity=4096, symbols=2000)
    for seed in range(3):
        passes = gaussian_passes(seed, 1, [(40, 30), (10, 8)])
        encoder.begin()
        for symbols, indexes in passes:
            assert isinstance(indexes, np.ndarray)
            encoder.record(
                torch.from_numpy(symbols).to(device), torch.from_numpy(indexes).to(device)
            )
        encoder.finish()
        assert encoder.payloads() == [encode_on_host(tables, passes, 0, None, 0)]


def test_devices():
    with pytest.raises(EngineError, match="cpu and cuda"):
        DeviceTables(gaussian_tables(), "meta")
    if not (_C.gpu_coder.has_cuda and torch.cuda.is_available()):
        with pytest.raises(EngineError, match="CUDA"):
            DeviceTables(gaussian_tables(), "cuda")


@pytest.mark.gpu
def test_graph_replays_on_other_bytes():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    tables = gaussian_tables()
    shapes = [(96, 32), (96, 32)]
    first, second = gaussian_passes(1, 1, shapes), gaussian_passes(2, 1, shapes)
    on_device = DeviceTables(tables, "cuda")
    decoder = DeviceDecoder(on_device, batch=1, capacity=1 << 16, symbols=96 * 32)
    encoder = DeviceEncoder(on_device, batch=1, capacity=1 << 16, symbols=2 * 96 * 32)
    symbols = [torch.empty(1, *shape, dtype=torch.int32, device="cuda") for shape in shapes]
    indexes = [torch.empty(1, *shape, dtype=torch.uint8, device="cuda") for shape in shapes]
    decoded = [torch.empty_like(s) for s in symbols]

    def work() -> None:
        encoder.begin()
        for s, i in zip(symbols, indexes, strict=True):
            encoder.record(s, i)
        encoder.finish()
        decoder.begin()
        for i, out in zip(indexes, decoded, strict=True):
            decoder.decode(i, out)
        decoder.finish()

    graph = torch.cuda.CUDAGraph()
    decoder.load([bytes(8)], [2])
    work()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        work()
    for passes in (first, second, first):
        expected, lanes = encode_on_host(tables, passes, 0, None, 0)
        for (s, i), s_out, i_out in zip(passes, symbols, indexes, strict=True):
            s_out.copy_(torch.from_numpy(s))
            i_out.copy_(torch.from_numpy(i))
        decoder.load([expected], [lanes])
        graph.replay()
        assert encoder.payloads() == [(expected, lanes)]
        assert decoder.digests() == [0]
        assert all(np.array_equal(d.cpu(), s) for d, (s, _) in zip(decoded, passes, strict=True))
