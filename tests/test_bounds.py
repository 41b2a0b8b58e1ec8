"""What a stream may cost: memory before its checks, and work as a function of its size alone."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lively import BLOCKS, lively_model
from PIL import Image

import mlic_fast
import mlic_fast.pillow
from mlic_fast import bitstream
from mlic_fast.bitstream import Header
from mlic_fast.coder import Decoder
from mlic_fast.engine import exact_engine
from mlic_fast.errors import UnsupportedImageError
from mlic_fast.images import load_picture

#: What SECURITY.md states: two copies of the stream, and this.
REFUSED_BYTES = 1 << 16


@pytest.fixture(scope="module")
def codec() -> mlic_fast.Codec:
    return mlic_fast.load(lively_model(BLOCKS), device="cpu", engine="cpu")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The symbols of each pass that an engine asks the range decoder for."""
    sizes: list[int] = []

    class Counted(Decoder):
        def decode(self, indexes: object) -> np.ndarray:
            sizes.append(np.size(indexes))
            return super().decode(indexes)

    monkeypatch.setattr(exact_engine, "Decoder", Counted)
    return sizes


sides = st.sampled_from([1, 64, 1000, 11585, 16384, 65535]) | st.integers(1, 65535)


@given(
    st.binary(max_size=3000),
    st.sampled_from(["bytes", "another model", "no quality", "half a word", "few lanes"]),
    sides,
    sides,
)
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_refused_costs_its_bytes_alone(
    codec: mlic_fast.Codec, asked: list[int], body: bytes, how: str, width: int, height: int
) -> None:
    height = min(height, bitstream.MAX_PIXELS // width)
    header = Header(bitstream.EXACT, 64, codec.model_id, 60, width, height)
    if how == "bytes":
        data = bitstream.MAGIC + b"\x16" + body
    elif how == "another model":
        data = bitstream.write(replace(header, model_id=bytes(4)), body)
    elif how == "no quality":
        data = bitstream.write(replace(header, quality=0), body)
    elif how == "half a word":  # states of the least size for all lanes, then a byte
        data = bitstream.write(header, bytes(2 + 32 + 128) + body[: len(body) // 2 * 2] + b"\0")
    else:
        data = bitstream.write(replace(header, lanes=1024), body[:1500])
    assert refused(mlic_fast.MlicError, lambda: codec.decompress(data, "numpy")) <= (
        2 * len(data) + REFUSED_BYTES
    )
    assert asked == []


def refused(error: type[Exception], work: Callable[[], object]) -> int:
    """The bytes that were allocated at most until the error, when all is imported."""
    with pytest.raises(error):
        work()
    tracemalloc.start()
    try:
        with pytest.raises(error):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [1000, (1 << 31) + 5, (1 << 35) - 1])
def test_lengths_that_lie(tmp_path: Path, length: int) -> None:
    """In files, of which as many bytes as one asks for are allocated before they are read."""
    head = bitstream.MAGIC + bytes([bitstream.EXACT << 4 | 6, 0, 0, 0, 0, 60 | 128, 64, 64])
    crc = struct.pack("<I", zlib.crc32(b"", zlib.crc32(head)))
    stream = tmp_path / "a.mlic"
    stream.write_bytes(head + crc + bitstream.leb128(length) + b"abc")
    Image.init()  # imports all that Pillow reads
    of_files = io.DEFAULT_BUFFER_SIZE  # 128 KiB from Python 3.14 on
    assert refused(OSError, lambda: Image.open(stream)) <= REFUSED_BYTES + of_files
    assert refused(mlic_fast.MlicError, lambda: mlic_fast.info(stream)) <= REFUSED_BYTES + of_files

    png = tmp_path / "a.png"
    Image.new("RGB", (9, 3)).save(png)
    data = png.read_bytes()
    at = data.index(b"IDAT") - 4
    lie = struct.pack(">I", min(length, (1 << 32) - 1))
    png.write_bytes(data[:at] + lie + data[at + 4 : at + 12])
    assert refused(UnsupportedImageError, lambda: load_picture(png)) <= 1 << 20


@pytest.mark.parametrize(("width", "height"), [(1, 1), (65, 64), (200, 3)])
def test_work_is_fixed_by_the_size(
    codec: mlic_fast.Codec, asked: list[int], width: int, height: int
) -> None:
    random = np.random.default_rng(width)
    picture = random.integers(0, 256, (height, width, 3), np.uint8)
    header, payload = bitstream.read(codec.compress(picture, 60))
    codec.decompress(bitstream.write(header, payload), "numpy")
    blocks = -(-width // 64) * -(-height // 64)
    config = codec.packed.config
    hyper, latents = blocks * config.N, 16 * blocks * config.M
    whole = [hyper] + [latents // (2 * config.slices)] * (2 * config.slices)
    assert asked == whole

    errors = 0
    for _ in range(100):
        asked.clear()
        damaged = bytearray(payload)
        for at in random.integers(0, len(payload), random.integers(1, 4)):
            damaged[at] ^= 1 << random.integers(8)
        data = bitstream.write(header, bytes(damaged) + bytes(2 * random.integers(3)))
        try:
            codec.decompress(data, "numpy")
        except mlic_fast.CorruptStreamError:
            errors += 1
        assert asked == whole[: len(asked)]
    assert errors > 50
