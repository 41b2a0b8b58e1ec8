"""Image files and profiles made by hand, as Pillow would not write them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Entry = tuple[int, int, int, bytes]


def directory(entries: list[Entry], at: int) -> bytes:
    """A TIFF directory at an offset, with its values behind it."""
    entries = sorted(entries)
    end = at + 2 + 12 * len(entries) + 4
    head, data = struct.pack("<H", len(entries)), b""
    for tag, kind, count, value in entries:
        if len(value) > 4:
            offset = end + len(data)
            data += value + bytes(len(value) % 2)
            value = struct.pack("<I", offset)
        head += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    return head + bytes(4) + data


def exif(orientation: int, *entries: Entry, gps: Any = ()) -> bytes:
    whole = [(0x112, 3, 1, struct.pack("<H", orientation)), *entries]
    if gps:
        size = len(directory([*whole, (0x8825, 4, 1, bytes(4))], 8))
        whole.append((0x8825, 4, 1, struct.pack("<I", 8 + size)))
        return b"Exif\0\0II*\0\x08\0\0\0" + directory(whole, 8) + directory(list(gps), 8 + size)
    return b"Exif\0\0II*\0\x08\0\0\0" + directory(whole, 8)


ODD = {
    "nothing odd": {},
    "resolution as text": {"entries": [(0x11A, 2, 3, b"72\0")]},
    "width as text": {"entries": [(0x100, 2, 5, b"4032\0")]},
    "XMP as text": {"entries": [(0x2BC, 2, 13, b"<x:xmpmeta/>\0")]},
    "below the sea": {"gps": [(6, 10, 1, struct.pack("<ii", -430, 1))]},
    "version as text": {"gps": [(0, 2, 4, b"2200")]},
    "a value too large": {"entries": [(0x213, 4, 1, struct.pack("<I", 65537))]},
}


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, depth: int, pixels: bytes, *more: bytes, colour: int = 0, lace: int = 0
) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, lace)
    data = chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + b"".join((chunk(b"IHDR", head), *more, data, chunk(b"IEND", b"")))


def png16(path: Path, colour_type: int, channels: int) -> Path:
    """A PNG of 16 bits a channel, which Pillow cannot write in colour."""

    header = struct.pack(">IIBBBBB", 4, 3, 16, colour_type, 0, 0, 0)
    pixels = (b"".join(level.to_bytes(2, "big") * channels for level in (0, 255, 32767, 65535)),)
    rows = b"".join(b"\0" + row for row in 3 * pixels)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def png_of(levels: npt.NDArray[np.uint16], colour_type: int, interlaced: int) -> bytes:
    """[H, W, channels], each row with another filter."""
    height, width, channels = levels.shape
    size, data = 2 * channels, b""
    starts = ((0, 0), (4, 0), (0, 4), (2, 0), (0, 2), (1, 0), (0, 1))
    steps = ((8, 8), (8, 8), (4, 8), (4, 4), (2, 4), (2, 2), (1, 2))
    passes = zip(starts, steps, strict=True) if interlaced else [((0, 0), (1, 1))]
    for (left, top), (across, down) in passes:
        part = levels[top::down, left::across]
        if not part.size:
            continue
        above = np.zeros(size + part.shape[1] * size, int)
        for number, row in enumerate(part):
            raw = np.zeros_like(above)
            raw[size:] = np.frombuffer(row.astype(">u2").tobytes(), np.uint8)
            x, a, b, c = raw[size:], raw[:-size], above[size:], above[:-size]
            p = a + b - c
            near = np.abs(p - a), np.abs(p - b), np.abs(p - c)
            paeth = np.where(
                (near[0] <= near[1]) & (near[0] <= near[2]), a, np.where(near[1] <= near[2], b, c)
            )
            predicted = (0, a, b, (a + b) // 2, paeth)[number % 5]
            data += bytes([number % 5]) + ((x - predicted) % 256).astype(np.uint8).tobytes()
            above = raw
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def icc_profile(kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A minimal ICC profile, version 2."""
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = 128 + len(table) + len(body)
    header = (
        struct.pack(">I4sI4s4s4s", size, b"test", 0x02400000, kind, space, pcs)
        + bytes(12)
        + b"acsp"
    )
    white = struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(68, b"\0") + white + bytes(48) + table + body


def xyz(*values: int) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *values)


def matrix_profile(order: str, gamma: float = 2.2) -> bytes:
    """An RGB profile with the primaries of sRGB, but its channels in the given order."""
    primaries = {
        "r": xyz(0x6FA2, 0x38F5, 0x390),
        "g": xyz(0x6299, 0xB785, 0x18DA),
        "b": xyz(0x24A0, 0xF84, 0xB6CF),
    }
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {b"wtpt": xyz(0xF6D6, 0x10000, 0xD32D)}
    for channel, primary in zip("rgb", order, strict=True):
        tags[channel.encode() + b"XYZ"] = primaries[primary]
        tags[channel.encode() + b"TRC"] = curve
    return icc_profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    return icc_profile(
        b"mntr", b"GRAY", b"XYZ ", {b"wtpt": xyz(0xF6D6, 0x10000, 0xD32D), b"kTRC": curve}
    )


def cmyk_profile() -> bytes:
    """A printer whose inks turn the paper black by their sum: an 8-bit table of 2^4 nodes to
    Lab."""
    ramp = bytes(range(256))
    nodes = b"".join(bytes([max(0, 255 - 255 * bin(i).count("1")), 128, 128]) for i in range(16))
    identity = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x10000)
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + nodes + ramp * 3
    return icc_profile(
        b"prtr", b"CMYK", b"Lab ", {b"wtpt": xyz(0xF6D6, 0x10000, 0xD32D), b"A2B0": table}
    )


# ---- what comes in
