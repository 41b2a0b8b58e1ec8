"""The coder and the container against the slow decoder, which was written from docs/format.md."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import slow_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_decoder import Corrupt, Table

from mlic_fast import bitstream, sections
from mlic_fast.bitstream import Header
from mlic_fast.coder import Decoder, Encoder, Tables, gaussian_tables
from mlic_fast.errors import CorruptStreamError, UnsupportedStreamError

INT32 = np.iinfo(np.int32)

Pass = tuple[list[int], list[int]]  # symbols, indexes


def as_tables(tables: list[Table]) -> Tables:
    return Tables(
        frequencies=np.concatenate([t.frequencies for t in tables]).astype(np.uint16),
        sizes=np.array([len(t.frequencies) for t in tables], np.int32),
        minima=np.array([t.minimum for t in tables], np.int32),
        precisions=np.array([t.precision for t in tables], np.uint8),
    )


def as_lists(tables: Tables) -> list[Table]:
    ends = np.cumsum(tables.sizes)
    return [
        Table(int(precision), int(minimum), tables.frequencies[end - size : end].tolist())
        for precision, minimum, size, end in zip(
            tables.precisions, tables.minima, tables.sizes, ends, strict=True
        )
    ]


def encode(tables: Tables, passes: list[Pass], digest: int, lanes: int | None) -> tuple[bytes, int]:
    encoder = Encoder(tables, lanes)
    for symbols, indexes in passes:
        encoder.encode(np.array(symbols, np.int32), np.array(indexes, np.int32))
    return encoder.finish(digest), encoder.lanes


def decode(tables: Tables, data: bytes, lanes: int, passes: list[Pass]) -> Any:
    decoder = Decoder(tables, data, lanes)
    symbols = [decoder.decode(np.array(indexes, np.int32)).tolist() for _, indexes in passes]
    return symbols, decoder.finish()


def decode_slowly(tables: list[Table], data: bytes, lanes: int, passes: list[Pass]) -> Any:
    return slow_decoder.decode_payload(
        tables, data, lanes, len(passes), lambda done: passes[len(done)][1]
    )


@st.composite
def random_tables(draw: st.DrawFn) -> list[Table]:
    tables = []
    for _ in range(draw(st.integers(1, 4))):
        precision = draw(st.sampled_from([1, 5, 14, 16]))
        # From the top on: a run table if the first symbol is zero.
        low = draw(st.sampled_from([1, max(1, 2**precision * 7 // 8)]))
        cuts = draw(st.sets(st.integers(low, 2**precision - 1), min_size=1, max_size=6))
        edges = [0, *sorted(cuts), 2**precision]
        frequencies = [b - a for a, b in pairwise(edges)]
        minimum = draw(st.sampled_from([0, -2, 40, -(2**31), 2**31 - 10]))
        tables.append(Table(precision, minimum, frequencies))
    return tables


@st.composite
def random_passes(draw: st.DrawFn, tables: list[Table]) -> list[Pass]:
    """Passes of mostly ordinary symbols, some zeros, and escapes as far as int32 goes."""
    passes = []
    for _ in range(draw(st.integers(0, 4))):
        count = draw(st.sampled_from([0, 1, 2, 7, 33, 70]))
        seed = draw(st.integers(0, 2**32 - 1))
        rng = np.random.default_rng(seed)
        indexes = rng.integers(0, len(tables), count)
        minima = np.array([tables[i].minimum for i in indexes], np.int64)
        sizes = np.array([len(tables[i].frequencies) for i in indexes], np.int64)
        symbols = minima + rng.integers(0, 8, count) % np.maximum(sizes - 1, 1)
        kinds = rng.random(count)
        rare = draw(st.sampled_from([0.0, 0.05, 1.0]))
        far = rng.integers(INT32.min, INT32.max, count, endpoint=True) >> rng.integers(0, 31, count)
        symbols = np.where(kinds < rare, far, symbols)
        symbols[rng.random(count) < draw(st.sampled_from([0.0, 0.7, 0.99]))] = 0
        symbols = symbols.clip(INT32.min, INT32.max)
        passes.append((symbols.tolist(), indexes.tolist()))
    return passes


any_lanes = st.sampled_from([None, 2, 4, 8, 32, 64, 128, 1024])
digests = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(st.data(), any_lanes, digests)
def test_both_decoders_agree_on_random_streams(
    data: st.DataObject, lanes: int | None, digest: int
) -> None:
    tables = data.draw(random_tables())
    passes = data.draw(random_passes(tables))
    payload, used = encode(as_tables(tables), passes, digest, lanes)
    expected = [symbols for symbols, _ in passes], digest
    assert decode_slowly(tables, payload, used, passes) == expected
    assert decode(as_tables(tables), payload, used, passes) == expected


@settings(deadline=None)
@given(st.data(), st.sampled_from([2, 8, 64]), digests)
def test_both_decoders_judge_damaged_streams_alike(
    data: st.DataObject, lanes: int, digest: int
) -> None:
    tables = data.draw(random_tables())
    passes = data.draw(random_passes(tables))
    payload, _ = encode(as_tables(tables), passes, digest, lanes)
    damaged = bytearray(payload)
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    damaged = (
        damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged
    )
    damaged += data.draw(st.binary(max_size=3))

    def outcome(corrupt: type[Exception], decoder: Any, *arguments: Any) -> Any:
        try:
            return decoder(*arguments)
        except corrupt:
            return "corrupt"

    slow = outcome(Corrupt, decode_slowly, tables, bytes(damaged), lanes, passes)
    fast = outcome(CorruptStreamError, decode, as_tables(tables), bytes(damaged), lanes, passes)
    assert slow == fast


def gaussian_pass(
    rng: np.random.Generator, count: int, table: npt.NDArray[np.int64] | None = None
) -> Pass:
    indexes = np.where(rng.random(count) < 0.6, 0, rng.integers(0, 64, count))
    scales = 0.11 * (256 / 0.11) ** (indexes / 63)
    symbols = np.round(rng.normal(0, scales))
    return symbols.astype(int).tolist(), indexes.tolist()


@pytest.mark.parametrize("lanes", [None, 2, 32, 256])
def test_real_tables(lanes: int | None) -> None:
    rng = np.random.default_rng(0)
    tables = gaussian_tables()
    passes = [gaussian_pass(rng, count) for count in (2000, 1, 0, 1500)]
    passes.append(([0] * 999, [0] * 999))
    payload, used = encode(tables, passes, 0xFEEDBEEF, lanes)
    expected = [symbols for symbols, _ in passes], 0xFEEDBEEF
    assert decode_slowly(as_lists(tables), payload, used, passes) == expected
    assert decode(tables, payload, used, passes) == expected


@given(st.binary(max_size=40), st.binary(min_size=4, max_size=4), st.integers(0, 255))
def test_both_readers_judge_containers_alike(rest: bytes, model: bytes, byte: int) -> None:
    good = bitstream.write(Header(1, 8, model, 50, 300, 200), rest)
    streams = [good, good[:-1], rest, b"\xf1M" + rest, good[:2] + bytes([byte]) + good[3:]]
    for stream in streams:
        try:
            header, payload = bitstream.read(stream)
        except CorruptStreamError:
            with pytest.raises(Corrupt):
                slow_decoder.read_container(stream)
        except UnsupportedStreamError:
            with pytest.raises(slow_decoder.Unsupported):
                slow_decoder.read_container(stream)
        else:
            assert slow_decoder.read_container(stream) == (*vars(header).values(), payload, {})


@given(
    st.dictionaries(st.integers(1, 5), st.binary(min_size=1, max_size=30), max_size=4),
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 255)), max_size=1),
    st.booleans(),
)
def test_both_readers_judge_sections_alike(
    contents: dict[int, bytes], damage: list[tuple[int, int]], new: bool
) -> None:
    carried = sections.join(contents)
    stream = bytearray(bitstream.write(Header(1, 8, b"abcd", 50, 3, 2), b"payload", carried))
    for place, change in damage if carried else []:
        stream[17 + place % (len(stream) - 17 - 7)] ^= change  # the header and payload stay

    def outcome() -> dict[int, bytes]:
        found = sections.Sections(bitstream.split(stream).sections)
        return {kind: content for kind in range(1, 7) if (content := found.get(kind))}

    try:
        expected = outcome()
    except CorruptStreamError:
        with pytest.raises(Corrupt):
            slow_decoder.read_container(bytes(stream))
    else:
        assert slow_decoder.read_container(bytes(stream)).sections == expected
        assert damage or expected == contents


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_transparency_as_the_text_has_it(width: int, height: int, random: Random) -> None:
    alpha = [[random.choice([0, 128, 255]) for _ in range(width)] for _ in range(height)]
    content = sections.alpha_content(np.array(alpha, np.uint8))
    assert slow_decoder.read_alpha(content, width, height) == alpha
    carried = sections.Sections(sections.join({sections.ALPHA: content}))
    found = sections.read_alpha(carried, height, width)
    assert found is not None and found.tolist() == alpha
    for size in ((height, width + 1), (height, width - 1)):
        with pytest.raises(CorruptStreamError):
            sections.read_alpha(carried, *size)


def test_the_example_of_the_text() -> None:
    """docs/format.md, section 7."""
    text = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    example = text[text.index("## 7. Example") :]
    data = bytes.fromhex(re.findall(r"```\n([0-9a-f \n]+)```", example)[0])
    tables = [Table(14, -1, [96, 16128, 96, 64]), Table(5, -2, [5, 7, 7, 6, 5, 2])]
    passes = [
        ([0, 1, -3, 0, 2], [1, 1, 1, 1, 1]),
        ([0, 0, -1, 0, 300, 0, 1], [0, 0, 1, 0, 1, 0, 0]),
    ]
    payload, lanes = encode(as_tables(tables), passes, 0x12345678, 2)
    assert data == bitstream.write(Header(1, lanes, b"\x01\x02\x03\x04", 60, 40, 30), payload)
    container = slow_decoder.read_container(data)
    expected = [symbols for symbols, _ in passes], 0x12345678
    assert decode_slowly(tables, container.payload, container.lanes, passes) == expected

    data = bytes.fromhex(re.findall(r"```\n([0-9a-f \n]+)```", text[text.index("## 8. Sec") :])[0])
    alpha = np.zeros((30, 40), np.uint8)
    alpha[:, :20] = 255
    contents = {
        sections.GAMMA: (45455).to_bytes(4, "little"),
        sections.ALPHA: sections.alpha_content(alpha),
    }
    header, carried, payload = bitstream.split(data)
    assert header == Header(1, lanes, b"\x01\x02\x03\x04", 60, 40, 30)
    assert data == bitstream.write(header, payload, carried)
    assert {kind: sections.Sections(carried).get(kind) for kind in contents} == contents
    found = slow_decoder.read_container(data)
    assert found.sections == contents and found.payload == payload == container.payload
    assert slow_decoder.read_alpha(found.sections[6], 40, 30) == alpha.tolist()
