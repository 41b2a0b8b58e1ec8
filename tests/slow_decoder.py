"""A small, slow decoder of .mlic files, written from docs/format.md alone.

It shares no code with the package and needs nothing but the standard library, so that a mistake in
one of the two shows. What depends on the model's networks, the indexes of each pass, is asked from
the caller.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Corrupt(Exception):
    """The stream is corrupt in the sense of docs/format.md."""


class Unsupported(Exception):
    """The stream is of an arithmetic version that docs/format.md does not describe."""


class Table(NamedTuple):
    """Section 4, "Tables"."""

    precision: int
    minimum: int
    frequencies: list[int]


class Container(NamedTuple):
    """Section 1."""

    arithmetic_version: int
    lanes: int
    model: bytes
    quality: int
    width: int
    height: int
    payload: bytes
    sections: dict[int, bytes]


class Bytes:
    """Takes bytes from the front."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, count: int) -> bytes:
        if count > len(self.rest):
            raise Corrupt("ends too early")
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def take_leb128(self, limit: int) -> int:
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value += (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        if (byte == 0 and shift > 7) or value > limit:
            raise Corrupt("LEB128")
        return value


def read_container(data: bytes) -> Container:
    """Section 1."""
    source = Bytes(data)
    if source.take(2) != b"\xf1\x4d":
        raise Corrupt("signature")
    (version_and_lanes,) = source.take(1)
    version, log2_lanes = version_and_lanes >> 4, version_and_lanes & 15
    if version > 1:
        raise Unsupported(f"arithmetic version {version}")
    model = source.take(4)
    (quality,) = source.take(1)
    has_sections, quality = quality >> 7, quality & 127
    width, height = source.take_leb128(65535), source.take_leb128(65535)
    head = data[: len(data) - len(source.rest)]
    (crc,) = struct.unpack("<I", source.take(4))
    sections = b""
    if has_sections:
        length = source.take_leb128(2**32 - 1)
        sections = source.take(length)
        if length == 0:
            raise Corrupt("no sections")
    if zlib.crc32(head + source.rest) != crc:
        raise Corrupt("CRC-32")
    if not 1 <= log2_lanes <= 10 or quality > 100:
        raise Corrupt("lanes or quality")
    if not 1 <= width * height <= 2**28:
        raise Corrupt("size")
    contents = read_sections(sections)
    return Container(version, 2**log2_lanes, model, quality, width, height, source.rest, contents)


def read_sections(data: bytes) -> dict[int, bytes]:
    """Section 8: contents by kind, of the kinds that the text knows."""
    source, contents, last = Bytes(data), {}, 0
    while source.rest:
        (kind,) = source.take(1)
        length = source.take_leb128(2**32 - 1)
        (crc,) = struct.unpack("<I", source.take(4))
        body = source.take(length)
        if kind <= last:
            raise Corrupt("order of the sections")
        last = kind
        if kind <= 6:
            if zlib.crc32(bytes([kind]) + body) != crc:
                raise Corrupt("CRC-32 of a section")
            inflate = zlib.decompressobj(wbits=-15)
            try:
                contents[kind] = inflate.decompress(body)
            except zlib.error as error:
                raise Corrupt("DEFLATE") from error
            if not inflate.eof or inflate.unused_data or not contents[kind]:
                raise Corrupt("DEFLATE")
    return contents


def read_alpha(content: bytes, width: int, height: int) -> list[list[int]]:
    """Section 8: the plane of transparency, by rows."""
    if len(content) != width * height:
        raise Corrupt("size of transparency")
    rows: list[list[int]] = []
    for row in range(height):
        above = rows[-1] if rows else [0] * width
        values: list[int] = []
        for column in range(width):
            left = values[-1] if column else 0
            between = above[column - 1] if column else 0
            values.append((content[row * width + column] + left + above[column] - between) % 256)
        rows.append(values)
    return rows


class Payload:
    """Section 4: decodes one pass after the other."""

    def __init__(self, tables: Sequence[Table], payload: bytes, lanes: int) -> None:
        self.tables = tables
        self.group_size = min(lanes, 32)
        self.tail_lanes = min(max(lanes // 4, 2), 32)
        groups = lanes // self.group_size
        source = Bytes(payload)
        lengths = [source.take_leb128(2**32 - 1) for _ in range(groups - 1)]
        self.before_tail = source.take_leb128(2**32 - 1) if lanes > 2 else 0
        nibbles = source.take(lanes // 2)
        sizes = [16 + (nibbles[lane // 2] >> 4 * (lane % 2) & 15) for lane in range(lanes)]
        bits = int.from_bytes(source.take((sum(sizes) + 7) // 8), "little")
        self.states = []
        for size in sizes:
            self.states.append(2**size + bits % 2**size)
            bits >>= size
        if bits != 0:
            raise Corrupt("rest of the last byte")
        parts = [source.take(2 * length) for length in lengths] + [source.rest]
        if len(parts[-1]) % 2:
            raise Corrupt("odd byte")
        self.words = [list(struct.unpack(f"<{len(part) // 2}H", part)) for part in parts]
        for words in self.words:
            words.reverse()  # so that pop() takes the next
        self.spare = 0
        self.has_retired = False
        self.retire_if_due()

    def retire_if_due(self) -> None:
        """Section 4, "The tail"."""
        if self.before_tail > 0 or self.has_retired:
            return
        retired = self.states[self.tail_lanes :]
        if any(self.words[1:]) or any(state >= 2**17 for state in retired):
            raise Corrupt("retired lanes")
        self.spare = len(retired) if not self.words[0] else 0
        self.words = [self.words[0] + [state % 2**16 for state in reversed(retired)]]
        self.states = self.states[: self.tail_lanes]
        self.has_retired = True

    def renormalise(self, lane: int) -> None:
        if self.states[lane] < 2**16:
            words = self.words[lane // self.group_size]
            if not words:
                raise Corrupt("no words left")
            self.states[lane] = self.states[lane] << 16 | words.pop()

    def bits(self, lane: int, count: int) -> int:
        value = self.states[lane] % 2**count
        self.states[lane] >>= count
        self.renormalise(lane)
        return value

    def entry(self, lane: int, table: Table) -> int:
        x = self.states[lane]
        slot = x % 2**table.precision
        start = entry = 0
        while slot >= start + table.frequencies[entry]:
            start += table.frequencies[entry]
            entry += 1
        x = table.frequencies[entry] * (x >> table.precision) + slot - start
        self.states[lane] = x
        self.renormalise(lane)
        return entry

    def decode_pass(self, indexes: Sequence[int]) -> list[int]:
        symbols = [0] * len(indexes)
        if not symbols:
            return symbols
        coded = list(range(len(indexes)))
        if 0 in indexes and self.bits(0, 1) == 1:
            coded = [place for place in coded if indexes[place] != 0]
        lanes = len(self.states)
        for step in range(0, len(coded), lanes):
            places = coded[step : step + lanes]  # of the symbols on lanes 0, 1, 2 ..
            for first in range(0, len(places), self.group_size):
                group = range(first, min(first + self.group_size, len(places)))
                self.decode_group(group, places, indexes, symbols)
        self.before_tail -= 1
        self.retire_if_due()
        return symbols

    def decode_group(
        self, group: range, places: list[int], indexes: Sequence[int], symbols: list[int]
    ) -> None:
        escaped: dict[int, int] = {}  # lane: u
        for lane in group:
            table = self.tables[indexes[places[lane]]]
            entry = self.entry(lane, table)
            if entry == len(table.frequencies) - 1:
                escaped[lane] = 0
            else:
                symbols[places[lane]] = table.minimum + entry
        for turn in range(12):
            for lane in sorted(escaped):
                digit = self.bits(lane, 4)
                if (digit == 0 and turn > 0) or (digit >= 8 and turn == 10):
                    raise Corrupt("escape")
                escaped[lane] += (digit & 7) * 8**turn
                if digit < 8:
                    table = self.tables[indexes[places[lane]]]
                    symbols[places[lane]] = unfold(escaped.pop(lane), table)

    def digest(self) -> int:
        """Section 4, "The end"."""
        if not self.has_retired:
            raise Corrupt("no tail")
        (words,) = self.words
        if len(words) > self.spare or any(words):
            raise Corrupt("words are left")
        low, high, *others = [state - 2**16 for state in self.states]
        if any(others) or low >= 2**16 or high >= 2**16:
            raise Corrupt("end states")
        return low | high << 16


def unfold(u: int, table: Table) -> int:
    maximum = table.minimum + len(table.frequencies) - 2
    symbol = maximum + 1 + u // 2 if u % 2 == 0 else table.minimum - 1 - u // 2
    if not -(2**31) <= symbol < 2**31:
        raise Corrupt("symbol")
    return symbol


def decode_payload(
    tables: Sequence[Table],
    payload: bytes,
    lanes: int,
    passes: int,
    indexes_of: Callable[[list[list[int]]], Sequence[int]],
) -> tuple[list[list[int]], int]:
    """All symbols, pass by pass, and the digest.

    ``indexes_of(symbols of the passes so far)`` gives the indexes of the next pass.
    """
    decoder = Payload(tables, payload, lanes)
    decoded: list[list[int]] = []
    for _ in range(passes):
        decoded.append(decoder.decode_pass(indexes_of(decoded)))
    return decoded, decoder.digest()


def latents_digest(values: Sequence[float]) -> int:
    """Section 5."""
    total = 0
    for i, value in enumerate(values):
        (v,) = struct.unpack("<I", struct.pack("<f", value if value != 0 else 0.0))
        v = (v + i * 0x9E3779B1) % 2**32
        v = (v ^ (v >> 16)) * 0x85EBCA6B % 2**32
        v = (v ^ (v >> 13)) * 0xC2B2AE35 % 2**32
        total += v ^ (v >> 16)
    return total % 2**32
