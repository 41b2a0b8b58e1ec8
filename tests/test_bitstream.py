"""The container: exact bytes, round trips, and that damaged streams are never read."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlic_fast import bitstream
from mlic_fast.bitstream import MAX_PIXELS, Header
from mlic_fast.errors import (
    CorruptStreamError,
    MlicError,
    UnsupportedImageError,
    UnsupportedStreamError,
)

KODAK = Header(
    arithmetic_version=1, lanes=8, model_id=b"\x01\x02\x03\x04", quality=60, width=768, height=512
)

headers = st.builds(
    Header,
    arithmetic_version=st.sampled_from([0, 1]),
    lanes=st.integers(1, 10).map(lambda n: 1 << n),
    model_id=st.binary(min_size=4, max_size=4),
    quality=st.integers(0, 100),
    width=st.one_of(st.integers(1, 65535), st.sampled_from([1, 127, 128, 16383, 16384, 65535])),
    height=st.integers(1, 4096),
)


def with_checksum(head: bytes, payload: bytes = b"") -> bytes:
    """A stream with a right checksum around any header bytes."""
    return head + zlib.crc32(head + payload).to_bytes(4, "little") + payload


def test_kodak_stream_is_written_byte_for_byte() -> None:
    data = bitstream.write(KODAK, b"payload")
    head = bytes.fromhex("f14d 13 01020304 3c 8006 8004")
    assert data == head + zlib.crc32(head + b"payload").to_bytes(4, "little") + b"payload"
    assert len(data) == 16 + len(b"payload")


@given(headers, st.binary(max_size=200))
def test_round_trip(header: Header, payload: bytes) -> None:
    data = bitstream.write(header, payload)
    assert len(data) - len(payload) <= 18
    assert bitstream.read(data) == (header, payload)
    assert bitstream.read(memoryview(bytearray(data))) == (header, payload)


@given(headers, st.binary(max_size=60), st.data())
def test_every_prefix_and_every_flipped_bit_is_refused(
    header: Header, payload: bytes, data: st.DataObject
) -> None:
    stream = bitstream.write(header, payload)
    cut = data.draw(st.integers(0, len(stream) - 1))
    with pytest.raises(CorruptStreamError):
        bitstream.read(stream[:cut])
    bit = data.draw(st.integers(0, 8 * len(stream) - 1))
    altered = bytearray(stream)
    altered[bit // 8] ^= 1 << bit % 8
    with pytest.raises((CorruptStreamError, UnsupportedStreamError)):
        bitstream.read(altered)


@given(st.binary(max_size=64))
def test_foreign_bytes_never_escape_the_typed_errors(data: bytes) -> None:
    for stream in (data, b"\xf1M" + data, b"\xf1M\x13idid\x3c" + data):
        with pytest.raises(MlicError):
            bitstream.read(stream)


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n" + bytes(40), b"M", b"MM", b"\xf1N" + bytes(40)]
)
def test_foreign_files_are_called_foreign(data: bytes) -> None:
    with pytest.raises(CorruptStreamError, match=r"not a \.mlic file"):
        bitstream.read(data)


def test_truncation_and_emptiness_are_named() -> None:
    stream = bitstream.write(KODAK, b"payload")
    with pytest.raises(CorruptStreamError, match="empty"):
        bitstream.read(b"")
    for size in range(1, 16):
        with pytest.raises(CorruptStreamError, match="cut short"):
            bitstream.read(stream[:size])
    with pytest.raises(CorruptStreamError, match="cut short or altered"):
        bitstream.read(stream + b"\0")


def test_later_versions_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedStreamError, match="arithmetic version 2"):
        bitstream.read(with_checksum(bytes.fromhex("f14d 23 01020304 3c 8006 8004")))


@pytest.mark.parametrize(
    "head",
    [
        "f14d 13 01020304 65 01 01",  # quality 101
        "f14d 10 01020304 3c 01 01",  # one lane
        "f14d 1b 01020304 3c 01 01",  # 2048 lanes
        "f14d 13 01020304 3c 00 01",  # no pixels
        "f14d 13 01020304 3c 8100 01",  # a width of 1 in two bytes
        "f14d 13 01020304 3c 808080 01",  # four bytes and more
        "f14d 13 01020304 3c 808004 01",  # a side of 65536
        "f14d 13 01020304 3c ffff03 ffff03",  # 65535 x 65535 pixels
    ],
)
def test_invalid_fields_with_a_right_checksum_are_refused(head: str) -> None:
    with pytest.raises(CorruptStreamError):
        bitstream.read(with_checksum(bytes.fromhex(head)))


def test_the_pixel_limit_is_inclusive() -> None:
    assert MAX_PIXELS == 16384**2
    largest = Header(1, 2, b"abcd", 0, 16384, 16384)
    assert bitstream.read(bitstream.write(largest, b"")) == (largest, b"")
    for width, height in [(16384, 16385), (65536, 1), (1, 0)]:
        with pytest.raises(UnsupportedImageError, match=f"{width}x{height}"):
            bitstream.write(Header(1, 2, b"abcd", 0, width, height), b"")


@pytest.mark.parametrize(
    "field",
    [
        {"lanes": 3},
        {"lanes": 0},
        {"lanes": 1},
        {"lanes": 2048},
        {"quality": 101},
        {"model_id": b"abc"},
    ],
)
def test_writing_refuses_fields_out_of_range(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        bitstream.write(Header(**{**vars(KODAK), **field}), b"")  # type: ignore[arg-type]
