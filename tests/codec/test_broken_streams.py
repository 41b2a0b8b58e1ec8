"""Streams that are damaged, of another model, or none at all are errors."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_pictures import picture

from mlic_fast import bitstream
from mlic_fast.codec import Codec, load
from mlic_fast.engine.cpu.cpu_operations import CpuOps
from mlic_fast.errors import (
    CorruptStreamError,
    MlicError,
    UnsupportedStreamError,
    WrongModelError,
)
from mlic_fast.models import MlicModel


def test_stream_of_another_model(codecs: dict[str, Codec], variable: Codec) -> None:
    image = picture(64, 64)
    with pytest.raises(WrongModelError, match=codecs["mlic"].model_id.hex()):
        codecs["mlic_plus"].decompress(codecs["mlic"].compress(image))
    ids = {codec.model_id for codec in (*codecs.values(), variable)}
    assert len(ids) == 4


@pytest.mark.usefixtures("compressai_installed")
def test_provisional_streams(small_models: dict[str, MlicModel], fast: Codec) -> None:
    image = picture(65, 70)
    reference = load(small_models["mlic"], engine="reference", device="cpu")
    data = reference.compress(image)
    assert bitstream.read(data)[0].arithmetic_version == bitstream.PROVISIONAL
    decoded = reference.decompress(data)
    with torch.no_grad():
        x = torch.nn.functional.pad(image[None].float() / 255, (0, 58, 0, 63), mode="replicate")
        x_hat = small_models["mlic"](x)["x_hat"][0, :, :65, :70]
    # Another memory layout adds up in another order: a pixel may round to its neighbour.
    assert (decoded - x_hat.clamp(0, 1) * 255).abs().max() <= 0.501
    with pytest.raises(UnsupportedStreamError, match="provisional"):
        fast.decompress(data)
    with pytest.raises(UnsupportedStreamError, match="exact"):
        reference.decompress(fast.compress(image))
    header, payload = bitstream.read(data)
    for damaged in (b"", payload[:5], payload[:8], payload[:20], b"\xff" * 40):
        with pytest.raises(CorruptStreamError):
            reference.decompress(bitstream.write(header, damaged))


def damage(data: bytes, random: np.random.Generator) -> bytes:
    kind = random.integers(5)
    at = int(random.integers(len(data)))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data + random.bytes(1 + at % 9)
    if kind == 2:
        return random.bytes(at)
    if kind == 3:
        return data[:at] + random.bytes(4) + data[at + 4 :]
    return data[:at] + bytes([data[at] ^ 1 << int(random.integers(8))]) + data[at + 1 :]


def test_damaged_streams_are_errors(fast: Codec, stream: bytes) -> None:
    random = np.random.default_rng(7)
    expected = fast.decompress(stream)
    for _ in range(3000):
        damaged = damage(stream, random)
        if damaged != stream:
            with pytest.raises(MlicError) as caught:
                fast.decompress(damaged)
            assert "\n" not in str(caught.value)
    assert torch.equal(fast.decompress(stream), expected)


def test_altered_payloads_with_a_right_checksum_are_errors(codec: Codec) -> None:
    """The checksum mended by hand: the lanes' end states and the digest still tell."""
    random = np.random.default_rng(8)
    data = codec.compress(picture(64, 64))
    header, payload = bitstream.read(data)
    expected = codec.decompress(data)
    for _ in range(60):
        damaged = damage(payload, random)
        if damaged == payload:
            continue
        with pytest.raises(CorruptStreamError):
            codec.decompress(bitstream.write(header, damaged))
    for changes in ({"lanes": header.lanes * 2}, {"width": 65}, {"height": 129}, {"lanes": 1024}):
        with pytest.raises(CorruptStreamError):
            codec.decompress(bitstream.write(replace(header, **changes), payload))
    with pytest.raises(CorruptStreamError, match="quality"):
        codec.decompress(bitstream.write(replace(header, quality=7), payload))
    assert torch.equal(codec.decompress(data), expected)


def test_a_digest_of_other_latents_is_an_error(
    fast: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:

    with monkeypatch.context() as patch:
        patch.setattr(CpuOps, "digest", lambda ops, y, first=0: 12345)
        data = fast.compress(picture(64, 64))
    assert zlib.crc32(data)  # the stream itself is whole
    with pytest.raises(CorruptStreamError, match="not the encoded ones"):
        fast.decompress(data)


# -- threads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [1 << 40, None, [1], [[]]])
def test_only_bytes_are_streams(data: Any, fast: Codec) -> None:
    with pytest.raises(CorruptStreamError, match="a stream is bytes, not "):
        fast.decompress(data)
    with pytest.raises(CorruptStreamError, match="a stream is bytes, not "):
        fast.decode_latents(data)
