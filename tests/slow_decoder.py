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


class RunTables(NamedTuple):
    """Section 4, "Runs": what a run table has beside its own entries."""

    near: int
    longest: int
    starts: list[int]
    values: Table
    value_symbols: list[int]


def start_entries(before: Sequence[int], weights: int, slots: int) -> list[int]:
    """Where entries begin, from the sums of the weights before each."""
    room = slots - len(before)
    return [i + w * room // weights for i, w in enumerate(before)]


def run_tables_of(number: int, table: Table) -> RunTables | None:
    """None if it is a plain table."""
    precision, minimum, f = table
    total = 2**precision
    frequency = {minimum + e: f[e] for e in range(len(f) - 1)}
    zero = frequency.get(0, 0)
    if 4 * zero < total:
        return None
    other = total - zero
    longest = min(256 if number < 64 else 32, -(-3 * total // other))
    near = 0 if 64 * other < total else 2
    classes = [v for v in range(-near, near + 1) if v != 0]
    before, left = [], 2**32
    for _ in range(longest):
        passed = 0
        for v in [*classes, None]:
            before.append(2**32 - left + (left * passed >> precision))
            passed += 0 if v is None else frequency.get(v, 0)
        left = left * zero >> precision
    before.append(2**32 - left)
    starts = start_entries(before, 2**32, 2**14)

    lowest, highest = min(minimum, -near - 1), max(minimum + len(f) - 2, near + 1)
    symbols = [v for v in range(lowest, highest + 1) if abs(v) > near]
    weights = [frequency.get(v, 0) for v in symbols] + [f[-1]]
    before = [sum(weights[:e]) for e in range(len(weights))]
    value_precision = max(precision, 14)
    value_starts = start_entries(before, sum(weights), 2**value_precision)
    ends = [*value_starts[1:], 2**value_precision]
    frequencies = [end - start for start, end in zip(value_starts, ends, strict=True)]
    return RunTables(near, longest, starts, Table(value_precision, lowest, frequencies), symbols)


class Lane:
    """What a lane has still to code of the runs of a section."""

    def __init__(self, places: list[int], index_at: Sequence[int]) -> None:
        self.places = places
        self.index_at = index_at
        self.further: int | None = None

    def is_done(self) -> bool:
        return not self.places and self.further is None

    def left_in_list(self) -> int:
        """How many of its next symbols have the same table."""
        own = self.index_at[self.places[0]]
        return next(
            (i for i, place in enumerate(self.places) if self.index_at[place] != own),
            len(self.places),
        )


def lanes_that_stay(lanes: int) -> int:
    return min(max(lanes // 4, 2), 32)


def retirements_of(lanes: int) -> int:
    return 0 if lanes == 2 else 1 + retirements_of(lanes_that_stay(lanes))


class Payload:
    """Section 4: decodes one pass after the other."""

    def __init__(self, tables: Sequence[Table], payload: bytes, lanes: int) -> None:
        self.tables = tables
        self.runs = [run_tables_of(number, table) for number, table in enumerate(tables)]
        self.group_size = min(lanes, 32)
        groups = lanes // self.group_size
        source = Bytes(payload)
        lengths = [source.take_leb128(2**32 - 1) for _ in range(groups - 1)]
        # Symbols until lanes retire, for each time that they do.
        self.until = [source.take_leb128(2**32 - 1) for _ in range(retirements_of(lanes))]
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
        self.retire_if_due()

    def retire_if_due(self) -> None:
        """Section 4, "Lanes that retire"."""
        while self.until and self.until[0] == 0:
            self.until.pop(0)
            stay = lanes_that_stay(len(self.states))
            retired, self.states = self.states[stay:], self.states[:stay]
            sizes = [state.bit_length() - 17 for state in retired]
            bits = at = 0
            for value, count in (
                *((size, 4) for size in sizes[:-1]),
                *((state % 2 ** (16 + k), 16 + k) for state, k in zip(retired, sizes, strict=True)),
            ):
                bits += value << at
                at += count
            if any(self.words[1:]) or at % 16 != 0:
                raise Corrupt("retired lanes")
            given = [bits >> 16 * i & 0xFFFF for i in range(at // 16)]
            if len(self.words[0]) <= self.spare:
                self.spare += len(given)
            self.words = [self.words[0] + given[::-1]]

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

    def slot(self, lane: int, precision: int) -> int:
        return self.states[lane] % 2**precision

    def take(self, lane: int, precision: int, start: int, end: int) -> None:
        x = self.states[lane]
        self.states[lane] = (end - start) * (x >> precision) + x % 2**precision - start
        self.renormalise(lane)

    def entry(self, lane: int, table: Table) -> int:
        slot = self.slot(lane, table.precision)
        start = entry = 0
        while slot >= start + table.frequencies[entry]:
            start += table.frequencies[entry]
            entry += 1
        self.take(lane, table.precision, start, start + table.frequencies[entry])
        return entry

    def decode_pass(self, indexes: Sequence[int]) -> list[int]:
        """Section 4, "A pass"."""
        order = sorted(
            range(len(indexes)), key=lambda i: (self.runs[indexes[i]] is None, indexes[i], i)
        )
        index_at = [indexes[i] for i in order]
        values = [0] * len(indexes)
        begin = 0
        while begin < len(values):
            end = len(values)
            if self.until:
                end = min(end, begin + self.until[0])
                self.until[0] -= end - begin
            self.decode_part(range(begin, end), index_at, values)
            self.retire_if_due()
            begin = end
        symbols = [0] * len(indexes)
        for i, value in zip(order, values, strict=True):
            symbols[i] = value
        return symbols

    def decode_part(self, part: range, index_at: Sequence[int], values: list[int]) -> None:
        runs = [place for place in part if self.runs[index_at[place]] is not None]
        plain = [place for place in part if self.runs[index_at[place]] is None]
        escaped: list[int] = []
        for group in range(len(self.states) // self.group_size or 1):
            self.decode_runs(runs, group, index_at, values, escaped)
            self.decode_plain(plain, group, index_at, values, escaped)
        self.decode_escapes(sorted(escaped), index_at, values)

    def lanes_of(self, group: int) -> range:
        size = min(self.group_size, len(self.states))
        return range(group * size, (group + 1) * size)

    def decode_runs(
        self,
        places: Sequence[int],
        group: int,
        index_at: Sequence[int],
        values: list[int],
        escaped: list[int],
    ) -> None:
        if not places:
            return
        n, size = len(self.states), 1
        while 2 * size * n * 8 <= len(places):
            size *= 2
        lanes = {
            lane: Lane([p for i, p in enumerate(places) if i // size % n == lane], index_at)
            for lane in self.lanes_of(group)
        }
        while not all(lane.is_done() for lane in lanes.values()):
            for number, lane in lanes.items():
                if not lane.is_done():
                    self.decode_event(number, lane, values, escaped)

    def decode_event(self, number: int, lane: Lane, values: list[int], escaped: list[int]) -> None:
        if lane.further is not None:
            runs = self.runs[lane.index_at[lane.further]]
            assert runs is not None
            entry = self.entry(number, runs.values)
            if entry == len(runs.value_symbols):
                escaped.append(lane.further)
            else:
                values[lane.further] = runs.value_symbols[entry]
            lane.further = None
            return
        runs = self.runs[lane.index_at[lane.places[0]]]
        assert runs is not None
        classes = [v for v in range(-runs.near, runs.near + 1) if v != 0]
        most = min(runs.longest, lane.left_in_list())
        last = most * (len(classes) + 1)
        slot = self.slot(number, 14)
        if slot >= runs.starts[last]:
            self.take(number, 14, runs.starts[last], 2**14)
            del lane.places[:most]
            return
        entry = max(e for e in range(last) if runs.starts[e] <= slot)
        self.take(number, 14, runs.starts[entry], runs.starts[entry + 1])
        zeros, kind = divmod(entry, len(classes) + 1)
        place = lane.places[zeros]
        del lane.places[: zeros + 1]
        if kind < len(classes):
            values[place] = classes[kind]
        else:
            lane.further = place

    def decode_plain(
        self,
        places: Sequence[int],
        group: int,
        index_at: Sequence[int],
        values: list[int],
        escaped: list[int],
    ) -> None:
        lanes = self.lanes_of(group)
        for k, place in enumerate(places):
            lane = k % len(self.states)
            if lane in lanes:
                table = self.tables[index_at[place]]
                entry = self.entry(lane, table)
                values[place] = table.minimum + entry
                if entry == len(table.frequencies) - 1:
                    escaped.append(place)

    def decode_escapes(
        self, escaped: Sequence[int], index_at: Sequence[int], values: list[int]
    ) -> None:
        size = min(self.group_size, len(self.states))
        for first in range(0, len(escaped), size):
            u = {
                (first + i) % len(self.states): (place, 0)
                for i, place in enumerate(escaped[first : first + size])
            }
            for turn in range(12):
                for lane in sorted(u):
                    place, value = u[lane]
                    digit = self.bits(lane, 4)
                    if (digit == 0 and turn > 0) or (digit >= 8 and turn == 10):
                        raise Corrupt("escape")
                    u[lane] = place, value + (digit & 7) * 8**turn
                    if digit < 8:
                        place, value = u.pop(lane)
                        values[place] = self.unfold(value, index_at[place])

    def unfold(self, u: int, index: int) -> int:
        runs, table = self.runs[index], self.tables[index]
        minimum = table.minimum
        maximum = minimum + len(table.frequencies) - 2
        if runs is not None:
            minimum, maximum = runs.value_symbols[0], runs.value_symbols[-1]
        symbol = maximum + 1 + u // 2 if u % 2 == 0 else minimum - 1 - u // 2
        if not -(2**31) <= symbol < 2**31:
            raise Corrupt("symbol")
        return symbol

    def digest(self) -> int:
        """Section 4, "The end"."""
        if self.until:
            raise Corrupt("lanes that have not retired")
        (words,) = self.words
        if len(words) > self.spare or any(words):
            raise Corrupt("words are left")
        low, high, *others = [state - 2**16 for state in self.states]
        if any(others) or low >= 2**16 or high >= 2**16:
            raise Corrupt("end states")
        return low | high << 16


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
