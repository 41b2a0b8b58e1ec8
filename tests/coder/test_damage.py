"""Damaged payloads give CorruptStreamError, at the latest at the end; never a crash."""

import numpy as np
import pytest
from coder_cases import malformed_escapes, pack_states

from mlic_fast.coder import SCALES, Decoder, Encoder, gaussian_tables
from mlic_fast.errors import CorruptStreamError


def draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    indexes = rng.integers(0, 40, size, dtype=np.uint8)
    symbols = np.rint(rng.standard_normal(size) * SCALES[indexes]).astype(np.int32)
    symbols[::50] = rng.integers(-(2**31), 2**31, len(symbols[::50]))
    return symbols, indexes


def survives(data: bytes, lanes: int, passes: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether the payload decodes to its end; whatever it decodes to must then be right."""
    try:
        decoder = Decoder(gaussian_tables(), data, lanes)
        decoded = [decoder.decode(indexes) for _, indexes in passes]
        decoder.finish()
    except CorruptStreamError:
        return False
    return all(np.array_equal(d, symbols) for d, (symbols, _) in zip(decoded, passes, strict=True))


@pytest.fixture(scope="module", params=[2, 8, 64])
def stream(request):
    rng = np.random.default_rng(request.param)
    passes = [draw(rng, size) for size in (70, 0, 301)]
    encoder = Encoder(gaussian_tables(), request.param)
    for symbols, indexes in passes:
        encoder.encode(symbols, indexes)
    return encoder.finish(7), request.param, passes


def test_cut(stream):
    data, lanes, passes = stream
    assert survives(data, lanes, passes)
    assert not any(survives(data[:end], lanes, passes) for end in range(len(data)))
    assert not any(survives(data[start:], lanes, passes) for start in range(1, len(data)))


def test_extended(stream):
    data, lanes, passes = stream
    for extra in (b"\0", b"\0\0", b"\xff\xff", bytes(1000)):
        assert not survives(data + extra, lanes, passes)
        assert not survives(extra + data, lanes, passes)


def test_flipped(stream):
    """Every bit, and many at once.

    The digits of escapes are raw bits of a state, so damage that ends up in those alone is not
    noticed here (the container's checksum sees it). Everything else is.
    """
    data, lanes, passes = stream
    tables = gaussian_tables()
    original = int.from_bytes(data, "little")
    rng = np.random.default_rng(0)
    masks = [1 << bit for bit in range(8 * len(data))]
    masks += [int.from_bytes(rng.bytes(len(data)), "little") for _ in range(500)]
    for mask in masks:
        damaged = (original ^ mask).to_bytes(len(data), "little")
        try:
            decoder = Decoder(tables, damaged, lanes)
            decoded = [decoder.decode(indexes) for _, indexes in passes]
            if decoder.finish() != 7:
                continue
        except CorruptStreamError:
            continue
        pairs = list(zip(decoded, passes, strict=True))
        if not all(np.array_equal(d, symbols) for d, (symbols, _) in pairs):
            assert any(
                (np.abs(symbols.astype(np.int64)) > -tables.minima[indexes])[d != symbols].any()
                for d, (symbols, indexes) in pairs
            )


def test_noise():
    rng = np.random.default_rng(1)
    symbols, indexes = draw(rng, 400)
    for _ in range(2000):
        data = rng.bytes(int(rng.integers(0, 600)))
        lanes = int(2 ** rng.integers(1, 11))
        assert not survives(data, lanes, [(symbols, indexes)])


def test_other_indexes_and_lanes(stream):
    data, lanes, passes = stream
    changed = [(symbols, (indexes + 1) % 64) for symbols, indexes in passes]
    assert not survives(data, lanes, changed)
    assert not survives(data, lanes, passes[:-1])
    assert not survives(data, lanes, [*passes, passes[0]])
    assert not any(survives(data, 2**k, passes) for k in range(1, 11) if 2**k != lanes)


@malformed_escapes
def test_malformed_escapes(words, message):
    tables, index = gaussian_tables(), 24
    table = tables.frequencies[tables.sizes[:index].sum() :][: tables.sizes[index]]
    assert table[-1] == 1
    state = 0x3FFF << 14 | (1 << 14) - 1  # the escape; then the next word's digits, the low first
    states = pack_states([state, 1 << 16])
    data = b"".join(int(word, 16).to_bytes(2, "little") for word in words.split())
    decoder = Decoder(tables, states + data, 2)
    with pytest.raises(CorruptStreamError, match=message):
        decoder.decode(np.array([index], np.uint8))
    with pytest.raises(CorruptStreamError, match="before"):
        decoder.decode(np.array([index], np.uint8))
    with pytest.raises(CorruptStreamError, match="before"):
        decoder.finish()


def test_a_huge_length_allocates_nothing():
    data = b"\xff\xff\xff\xff\x0f" + bytes(2000)
    with pytest.raises(CorruptStreamError):
        Decoder(gaussian_tables(), data, 64)
    with pytest.raises(CorruptStreamError, match="length"):
        Decoder(gaussian_tables(), b"\x80\x00" + pack_states([1 << 16] * 64), 64)
    with pytest.raises(CorruptStreamError, match="length"):
        Decoder(gaussian_tables(), b"\xff" * 300, 64)


def test_lanes_that_retire():
    """The symbols before they do, and what they give back."""
    # Without words a lane is started from zeros, the last one from as many as make whole words.
    tables, start, last = gaussian_tables(), 1 << 16, 1 << 28
    indexes = np.full(3, 24, np.uint8)

    def decode(before: int, states: list[int], words: bytes = b"") -> None:
        decoder = Decoder(tables, bytes([before]) + pack_states(states) + words, len(states))
        decoder.decode(indexes)
        assert decoder.finish() == 0

    # Three zeros of a plain table, all of them or the last two on lanes 0 and 1 alone.
    frequencies = tables.frequencies[tables.sizes[:24].sum() :][: tables.sizes[24]].tolist()
    zero = -int(tables.minima[24])

    def put_zero(x: int) -> int:
        f = frequencies[zero]
        return (x // f << 14) + x % f + sum(frequencies[:zero])

    once, twice = put_zero(start), put_zero(put_zero(start))
    good = [twice, once, start, last]
    decode(0, good)
    decode(1, good)
    decode(3, [once, once, once, last])
    for before, states, words in (
        (4, [once, once, once, last], b""),  # never
        (0, [*good[:3], last | 5], b""),  # a word is left
        (0, [*good[:3], last << 1], b""),  # a bit of a word
        (0, good, b"\0\0"),  # words of the payload must be used
        (1, [start, *good[1:]], b""),  # the first symbol takes a word, and there is none
    ):
        with pytest.raises(CorruptStreamError):
            decode(before, states, words)
    with pytest.raises(CorruptStreamError, match="length"):
        Decoder(tables, b"\x80\x00" + pack_states(good), 4)
    with pytest.raises(CorruptStreamError, match="states"):
        Decoder(tables, bytes([0]) + pack_states(good)[:-1] + b"\xff", 4)


def test_threads_find_the_same_damage():
    """Groups of lanes are decoded side by side: what one of them finds is found."""
    rng = np.random.default_rng(3)
    passes = [draw(rng, 30_000), draw(rng, 9_001)]
    encoder = Encoder(gaussian_tables(), 256)
    for symbols, indexes in passes:
        encoder.encode(symbols, indexes)
    data = np.frombuffer(encoder.finish(7), np.uint8)

    def outcome(damaged: bytes, threads: int) -> object:
        try:
            decoder = Decoder(gaussian_tables(), damaged, 256, threads)
            decoded = [decoder.decode(indexes).tobytes() for _, indexes in passes]
            return decoded, decoder.finish()
        except CorruptStreamError as error:
            return str(error)

    outcomes = set()
    for _ in range(60):
        damaged = data.copy()
        at = rng.integers(0, len(data))
        damaged[at : at + rng.integers(1, 4)] ^= rng.integers(1, 256, dtype=np.uint8)
        alone, together = (outcome(damaged.tobytes(), threads) for threads in (1, 3))
        assert together == alone
        outcomes.add(alone if isinstance(alone, str) else "")
    assert len(outcomes) > 1
