"""The container of a compressed image: a header of 16 bytes (at Kodak size), sections if there are
any (:mod:`mlic_fast.sections`), and a payload.

``docs/format.md`` is the specification. Nothing here knows about models, latents or pixels; the
payload and the sections are opaque.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import IO, NamedTuple

from .errors import CorruptStreamError, UnsupportedImageError, UnsupportedStreamError

MAGIC = b"\xf1M"
MAX_SIDE = 65535
MAX_PIXELS = 2**28
#: The most pixels of a stream that is decoded, unless another limit is given: 16384x8192.
DECODED_PIXELS = 2**27
MODEL_ID_BYTES = 4

# Arithmetic versions, i.e. how the entropy path computes its numbers (docs/format.md, section 1).
PROVISIONAL = 0  # floating point: decodes only on the machine that made it
EXACT = 1
_KNOWN_VERSIONS = (PROVISIONAL, EXACT)

_LOG2_LANES = range(1, 11)
_FIXED_BYTES = len(MAGIC) + 1 + MODEL_ID_BYTES + 1
_CRC_BYTES = 4
#: The bit in the byte of the quality that says that there are sections.
_HAS_SECTIONS = 128
#: Bytes of a LEB128 number below 2^16, and below 2^32.
_SIDE_BYTES, LENGTH_BYTES = 3, 5
#: A header, its checksum and the length of the sections have no more bytes.
_HEAD_BYTES = _FIXED_BYTES + 2 * _SIDE_BYTES + _CRC_BYTES + LENGTH_BYTES
_PIECE_BYTES = 1 << 15


@dataclass(frozen=True)
class Header:
    """What a decoder must know before it can read the payload.

    ``lanes`` is the number of rANS lanes (a power of two, 2 .. 1024), ``model_id`` the first 4
    bytes of the SHA-256 of the model, ``quality`` 1 .. 100, or 0 for a model with a single rate;
    ``width`` and ``height`` are those of the image in pixels, without padding.
    """

    arithmetic_version: int
    lanes: int
    model_id: bytes
    quality: int
    width: int
    height: int

    @property
    def pixels(self) -> int:
        """Number of pixels of the image."""
        return self.width * self.height


class Stream(NamedTuple):
    """The parts of a file: ``sections`` without their length, empty if there are none."""

    header: Header
    sections: bytes
    payload: bytes


def check_size(width: int, height: int) -> None:
    """Raise `UnsupportedImageError` unless a stream can hold an image of this size."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise UnsupportedImageError(
            f"the image is {width}x{height} pixels, but both sides must be between 1 and "
            f"{MAX_SIDE}; crop or resize it first"
        )
    if width * height > MAX_PIXELS:
        raise UnsupportedImageError(
            f"the image is {width}x{height} pixels, above the limit of {MAX_PIXELS} pixels; crop "
            "or resize it first"
        )


def write(header: Header, payload: bytes, sections: bytes = b"") -> bytes:
    """Return the complete stream: header, checksum, sections if there are any, payload.

    Raises `UnsupportedImageError` if the image is too large, and `ValueError` if another field is
    out of range.
    """
    check_size(header.width, header.height)
    log2_lanes = header.lanes.bit_length() - 1
    if log2_lanes not in _LOG2_LANES or header.lanes != 1 << log2_lanes:
        raise ValueError(f"lanes must be a power of two from 2 to 1024, not {header.lanes}")
    if header.arithmetic_version not in _KNOWN_VERSIONS:
        raise ValueError(f"unknown arithmetic version {header.arithmetic_version}")
    if len(header.model_id) != MODEL_ID_BYTES:
        raise ValueError(f"model_id must have {MODEL_ID_BYTES} bytes, not {len(header.model_id)}")
    if not 0 <= header.quality <= 100:
        raise ValueError(f"quality must be between 0 and 100, not {header.quality}")
    head = b"".join(
        (
            MAGIC,
            bytes([header.arithmetic_version << 4 | log2_lanes]),
            header.model_id,
            bytes([header.quality | (_HAS_SECTIONS if sections else 0)]),
            leb128(header.width),
            leb128(header.height),
        )
    )
    crc = struct.pack("<I", zlib.crc32(payload, zlib.crc32(head)))
    return head + crc + (leb128(len(sections)) + sections if sections else b"") + payload


def read(data: bytes | bytearray | memoryview) -> tuple[Header, bytes]:
    """The header and the payload of a stream after checking every byte of both.

    Raises what `split` raises.
    """
    stream = split(data)
    return stream.header, stream.payload


def split(data: bytes | bytearray | memoryview) -> Stream:
    """The parts of a stream; everything but the sections is checked.

    Raises `CorruptStreamError` if the data are not a stream, are cut short or altered, and
    `UnsupportedStreamError` if they are of a later version of the format.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise CorruptStreamError(
            f"a stream is bytes, not {type(data).__name__}; of a file, give what it holds"
        )
    data = bytes(data)
    header, at, start, end = _parse(data)
    (crc,) = struct.unpack_from("<I", data, at)
    payload = data[end:]
    if end > len(data) or zlib.crc32(payload, zlib.crc32(data[:at])) != crc:
        raise CorruptStreamError(
            "the stream is cut short or altered: its checksum is wrong; get a fresh copy of it"
        )
    _check(header)
    return Stream(header, data[start:end], payload)


def peek(file: IO[bytes]) -> tuple[Header, bytes]:
    """Header and sections of an open file. No more of it is read, so no checksum is checked.

    Raises what `split` raises.
    """
    data = bytearray(file.read(_HEAD_BYTES))
    header, _, start, end = _parse(bytes(data))
    _check(header)
    # In pieces, as reading n bytes takes memory for n, whatever the file has.
    while piece := file.read(min(_PIECE_BYTES, max(0, end - len(data)))):
        data += piece
    if end > len(data):
        raise _cut_short()
    return header, bytes(data[start:end])


def _parse(data: bytes) -> tuple[Header, int, int, int]:
    """The header, where it ends, and where the sections begin and end. The values are not checked
    here: the checksum comes first.
    """
    if not data:
        raise CorruptStreamError("the stream is empty; make it again with 'mlic-fast encode'")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise CorruptStreamError("not a .mlic file: it does not begin with the signature F1 4D")
    if len(data) > len(MAGIC):
        version = data[len(MAGIC)] >> 4
        if version not in _KNOWN_VERSIONS:
            raise UnsupportedStreamError(
                f"the stream is of arithmetic version {version}, but this release knows versions "
                f"{min(_KNOWN_VERSIONS)} to {max(_KNOWN_VERSIONS)}; decode it with a later release "
                "of mlic_fast"
            )
    width, at = read_leb128(data, _FIXED_BYTES, _SIDE_BYTES)
    height, at = read_leb128(data, at, _SIDE_BYTES)
    if len(data) < at + _CRC_BYTES:
        raise _cut_short()
    start, length = at + _CRC_BYTES, 0
    if data[7] & _HAS_SECTIONS:
        length, start = read_leb128(data, start, LENGTH_BYTES)
        if length == 0:
            raise CorruptStreamError("the stream is invalid: it has sections of no length")
    header = Header(
        arithmetic_version=data[2] >> 4,
        lanes=1 << (data[2] & 15),
        model_id=data[3:7],
        quality=data[7] & ~_HAS_SECTIONS,
        width=width,
        height=height,
    )
    return header, at, start, start + length


def _check(header: Header) -> None:
    """Raise `CorruptStreamError` for values that no encoder writes with a right checksum."""
    if header.lanes.bit_length() - 1 not in _LOG2_LANES:
        raise CorruptStreamError(
            f"the stream is invalid: it has {header.lanes} lanes, not 2 to 1024"
        )
    if header.quality > 100:
        raise CorruptStreamError(
            f"the stream is invalid: its quality is {header.quality}, above 100"
        )
    width, height = header.width, header.height
    if width == 0 or height == 0 or max(width, height) > MAX_SIDE or header.pixels > MAX_PIXELS:
        raise CorruptStreamError(
            f"the stream is invalid: its image would be {width}x{height} pixels, outside the "
            f"limits of the format (sides up to {MAX_SIDE}, {MAX_PIXELS} pixels)"
        )


def leb128(value: int) -> bytes:
    """7 bits a byte, lowest first, the top bit set on all bytes but the last."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_leb128(data: bytes, at: int, most: int) -> tuple[int, int]:
    """The integer at ``data[at]``, of at most ``most`` bytes, and the place after it."""
    value = 0
    for count in range(most):
        if at + count >= len(data):
            raise _cut_short()
        byte = data[at + count]
        value |= (byte & 127) << 7 * count
        if byte < 128:
            if byte == 0 and count:  # a longer spelling of a shorter number
                break
            return value, at + count + 1
    raise CorruptStreamError(
        "the stream is damaged: a width, a height or a length is malformed; get a fresh copy of it"
    )


def _cut_short() -> CorruptStreamError:
    return CorruptStreamError(
        "the stream is cut short within its header or its sections; get a fresh copy of it"
    )
