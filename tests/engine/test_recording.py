"""What the CPU engine records and replays is what it does without."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lively import BLOCKS, SMALL, lively_model, photograph

from mlic_fast import bitstream
from mlic_fast._C import exact
from mlic_fast.codec import Codec, load
from mlic_fast.engine.cpu import recording
from mlic_fast.engine.cpu.cpu_operations import CpuOps
from mlic_fast.engine.cpu.recording import Client, Memory, Recording, Recordings, _Places
from mlic_fast.errors import CorruptStreamError

CONFIGS = {**SMALL, "blocks": BLOCKS, "2023": replace(SMALL["mlic_plus"], weight_family="2023")}
#: One latent of z, one row of them, and more.
SIZES = [(64, 64), (50, 190), (130, 129)]


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    x = (photograph(height, width)[0] * 255).round().to(torch.uint8)
    return x.roll((17 * seed, 5 * seed), (1, 2)) ^ (255 * (seed % 2))


def recordings_of(codec: Codec) -> Recordings:
    found = codec._engine._recordings  # type: ignore[attr-defined]
    assert isinstance(found, Recordings)
    return found


def coded(codec: Codec, image: torch.Tensor, **how: Any) -> tuple[bytes, np.ndarray]:
    stream = codec.compress(image, **how)
    return stream, codec.decompress(stream, output="numpy")


def poison(codec: Codec) -> None:
    """All memory of the recordings holds garbage."""
    for lane in recordings_of(codec)._idle:
        for chunk in lane.memory.chunks:
            chunk[:] = 0xA7


@pytest.mark.parametrize("name", CONFIGS)
def test_replays_equal_the_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = load(lively_model(CONFIGS[name]), device="cpu", engine="cpu")
    images = [picture(*size, seed=seed) for seed in range(3) for size in SIZES]
    with monkeypatch.context() as patch:
        patch.setattr(codec._engine, "_recordings", None)
        expected = [coded(codec, image) for image in images]
    for image, (stream, pixels) in zip(images[:3], expected, strict=False):
        found = coded(codec, image)
        assert found[0] == stream and np.array_equal(found[1], pixels)
    assert len(recordings_of(codec)._idle) == 1  # all on one memory

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("replays call no operation")

    for operation in ("conv", "depthwise", "quantise", "decoded"):
        monkeypatch.setattr(CpuOps, operation, fail)
    for image, (stream, pixels) in zip(images[3:], expected[3:], strict=True):
        poison(codec)
        found = coded(codec, image)
        assert found[0] == stream and np.array_equal(found[1], pixels)


def test_rates_share_recordings() -> None:
    codec = load(lively_model(BLOCKS), device="cpu", engine="cpu")
    image = picture(65, 66)
    found = [coded(codec, image, quality=quality) for quality in (1, 50, 100)]
    (lane,) = recordings_of(codec)._idle
    assert len(lane.recordings) == 4
    recordings_of(codec)._idle.clear()
    for quality, (stream, pixels) in zip((100, 50, 1), reversed(found), strict=True):
        again = coded(codec, image, quality=quality)
        assert again[0] == stream and np.array_equal(again[1], pixels)


def test_threads_have_recordings_of_their_own() -> None:
    codec = load(lively_model(BLOCKS), device="cpu", engine="cpu")
    images = [picture(64, 130, seed=seed) for seed in range(12)]
    expected = [coded(codec, image)[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: coded(codec, image)[0], images * 3))
    assert found == expected * 3


def test_failures_leave_recordings_usable() -> None:
    codec = load(lively_model(BLOCKS), device="cpu", engine="cpu")
    stream, pixels = coded(codec, picture(200, 130))
    header, payload = bitstream.read(stream)
    damaged = bitstream.write(header, payload[:-1] + bytes([payload[-1] ^ 1]))
    recordings_of(codec)._idle.clear()
    for _ in range(2):  # while recording, and in replays
        with pytest.raises(CorruptStreamError):
            codec.decompress(damaged)
        poison(codec)
        assert np.array_equal(codec.decompress(stream, output="numpy"), pixels)
    assert len(recordings_of(codec)._idle) == 1


def test_a_codec_that_is_dropped_is_gone() -> None:
    codec = load(lively_model(BLOCKS), device="cpu", engine="cpu")
    coded(codec, picture(64, 64))
    kernels = weakref.ref(codec._engine._ops)  # type: ignore[attr-defined]
    gc.disable()
    try:
        del codec
        assert kernels() is None
    finally:
        gc.enable()


def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = load(lively_model(BLOCKS), device="cpu", engine="cpu")
    small, large = picture(64, 64), picture(256, 256)
    expected = [coded(codec, image)[0] for image in (small, large)]
    (lane,) = recordings_of(codec)._idle
    needed = lane.memory.bytes
    recordings = Recordings()
    monkeypatch.setattr(codec._engine, "_recordings", recordings)
    monkeypatch.setattr(recording, "KEPT_BYTES", needed // 4)
    assert coded(codec, small)[0] == expected[0]
    assert len(recordings._idle) == 1
    assert coded(codec, large)[0] == expected[1]
    with monkeypatch.context() as patch:
        patch.setattr(recording, "_Lane", None)  # large pictures are not recorded again
        assert coded(codec, large)[0] == expected[1]
    assert coded(codec, small)[0] == expected[0]
    assert sum(each.memory.bytes for each in recordings._idle) <= needed // 4


def test_few_recordings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_RECORDINGS", 5)
    codec = load(lively_model(BLOCKS), device="cpu", engine="cpu")
    for side in (64, 128, 192, 64):
        coded(codec, picture(side, side))
    (lane,) = recordings_of(codec)._idle
    assert len(lane.recordings) == 5


def test_arrays_elsewhere_are_refused() -> None:
    """A call that is made again needs its arrays where they were."""
    kernels = exact.Kernels("scalar", 1)
    elsewhere = np.zeros((1, 2, 2, 8), np.float32)

    def reads(client: Client, arrays: list[Any]) -> list[np.ndarray]:
        out = recording.room(elsewhere.shape, np.int16)
        kernels.quantise(elsewhere, out=out, out_scale=1.0)
        return [out]

    def writes(client: Client, arrays: list[Any]) -> list[np.ndarray]:
        out = np.zeros(elsewhere.shape, np.int16)
        kernels.quantise(arrays[0], out=out, out_scale=1.0)
        return [out]

    def copies(client: Client, arrays: list[Any]) -> list[np.ndarray]:
        out = recording.room(elsewhere.shape, np.float32)
        kernels.scale(arrays[0], np.ones(16, np.float32)[::2], out)
        return [out]

    for work in (reads, writes, copies):
        with pytest.raises((RuntimeError, ValueError), match="recorded call"):
            Recording([elsewhere], Memory()).run(work, Client(), [elsewhere])
        assert recording.room((2,), np.uint8).base is None  # the thread records no more
    with pytest.raises(RuntimeError, match="already"):
        first, second = exact.Recording(), exact.Recording()
        first.begin()
        try:
            second.begin()
        finally:
            first.end()


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=60))
def test_places(steps: list[tuple[int, bool]]) -> None:
    memory = Memory()
    memory.add_chunk(64 * 32)
    chunks: list[np.ndarray] = []
    places = _Places(memory, chunks.append)
    taken: list[tuple[int, int]] = []
    for number, (blocks, back) in enumerate(steps):
        if back and taken:
            places.give_back(*taken.pop(number % len(taken)))
        at = places.take(64 * blocks)
        taken.append((at, 64 * blocks))
        assert at % 64 == 0
        inside = [
            c
            for c in chunks
            if c.ctypes.data <= at and at + 64 * blocks <= c.ctypes.data + c.nbytes
        ]
        assert len(inside) == 1
        ordered = sorted(taken)
        assert all(a + size <= b for (a, size), (b, _) in pairwise(ordered))
    assert [id(each) for each in chunks] == [id(each) for each in memory.chunks]
    for at, size in taken:
        places.give_back(at, size)
    assert places._free == sorted((c.ctypes.data, c.nbytes) for c in chunks)
