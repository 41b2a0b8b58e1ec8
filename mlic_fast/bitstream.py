"""The container of a compressed image: a header of 16 bytes (at Kodak size) and a payload.

``docs/format.md`` is the specification. Nothing here knows about models, latents or pixels; the
payload is opaque.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from .errors import CorruptStreamError, UnsupportedImageError, UnsupportedStreamError

MAGIC = b"\xf1M"
MAX_SIDE = 65535
MAX_PIXELS = 2**28
#: Pixels of a stream that is decoded, unless another limit is given: 16384x8192.
DECODED_PIXELS = 2**27
MODEL_ID_BYTES = 4

# Arithmetic versions, i.e. how the entropy path computes its numbers (docs/format.md, section 1).
PROVISIONAL = 0  # floating point: decodes only on the machine that made it
EXACT = 1
_KNOWN_VERSIONS = (PROVISIONAL, EXACT)

_LOG2_LANES = range(1, 11)
_FIXED_BYTES = len(MAGIC) + 1 + MODEL_ID_BYTES + 1
_CRC_BYTES = 4
#: A header and its checksum have no more bytes.
HEADER_BYTES = _FIXED_BYTES + 2 * 3 + _CRC_BYTES


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


def write(header: Header, payload: bytes) -> bytes:
    """Return the complete stream: header, checksum, payload.

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
            bytes([header.quality]),
            _varint(header.width),
            _varint(header.height),
        )
    )
    return head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload


def read(data: bytes | bytearray | memoryview) -> tuple[Header, bytes]:
    """Split a stream into its header and its payload after checking every byte of it.

    Raises `CorruptStreamError` if the data are not a stream, are cut short or altered, and
    `UnsupportedStreamError` if they are of a later version of the format.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise CorruptStreamError(
            f"a stream is bytes, not {type(data).__name__}; of a file, give what it holds"
        )
    data = bytes(data)
    header, at = _parse(data)
    (crc,) = struct.unpack_from("<I", data, at)
    payload = data[at + _CRC_BYTES :]
    if zlib.crc32(payload, zlib.crc32(data[:at])) != crc:
        raise CorruptStreamError(
            "the stream is cut short or altered: its checksum is wrong; get a fresh copy of it"
        )
    _check(header)
    return header, payload


def peek(data: bytes) -> Header:
    """What a stream says of itself, from its first `HEADER_BYTES` bytes: nothing is certain yet.

    Raises what `read` raises.
    """
    header, _ = _parse(data)
    _check(header)
    return header


def _parse(data: bytes) -> tuple[Header, int]:
    """The header and where it ends, of whatever values: the checksum comes first."""
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
    width, at = _read_varint(data, _FIXED_BYTES)
    height, at = _read_varint(data, at)
    if len(data) < at + _CRC_BYTES:
        raise _cut_short(data)
    return Header(
        arithmetic_version=data[2] >> 4,
        lanes=1 << (data[2] & 15),
        model_id=data[3:7],
        quality=data[7],
        width=width,
        height=height,
    ), at


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


def _varint(value: int) -> bytes:
    """LEB128: 7 bits a byte, lowest first, the top bit set on all bytes but the last."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The integer that begins at ``data[at]``, at most 3 bytes, and the place after it."""
    value = 0
    for count in range(3):
        if at + count >= len(data):
            raise _cut_short(data)
        byte = data[at + count]
        value |= (byte & 127) << 7 * count
        if byte < 128:
            if byte == 0 and count:  # a longer spelling of a shorter number
                break
            return value, at + count + 1
    raise CorruptStreamError(
        "the stream is damaged: its width or height is malformed; get a fresh copy of it"
    )


def _cut_short(data: bytes) -> CorruptStreamError:
    return CorruptStreamError(
        f"the stream is cut short: {len(data)} bytes do not hold even its header; get a fresh copy "
        "of it"
    )
