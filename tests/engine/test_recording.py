"""What the CPU engine records and replays is what it does without."""

from __future__ import annotations

import ctypes
import gc
import signal
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
from mlic_fast.engine.cpu import cpu_kernels, recording
from mlic_fast.engine.cpu.cpu_operations import CpuOps
from mlic_fast.engine.cpu.recording import Client, RecordedWork, Recordings
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


def recorded(codec: Codec, image: torch.Tensor) -> tuple[bytes, np.ndarray]:
    """The stream and pixels, and the work is recorded."""
    coded(codec, image)
    return coded(codec, image)


def coded(codec: Codec, image: torch.Tensor, **how: Any) -> tuple[bytes, np.ndarray]:
    stream = codec.compress(image, **how)
    return stream, codec.decompress(stream, output="numpy")


def poison(codec: Codec) -> None:
    """All memory of the recordings holds garbage."""
    for lane in recordings_of(codec)._idle:
        for address, size in lane.memory.chunks.items():
            ctypes.memset(address, 0xA7, size)


@pytest.mark.parametrize("name", CONFIGS)
def test_replays_equal_the_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = load(lively_model(CONFIGS[name]), device="cpu", engine="cpu")
    images = [picture(*size, seed=seed) for seed in range(3) for size in SIZES]
    with monkeypatch.context() as patch:
        patch.setattr(codec._engine, "_recordings", None)
        expected = [coded(codec, image) for image in images]
    for image, (stream, pixels) in zip(images[:3], expected, strict=False):
        found = recorded(codec, image)
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
    assert len(lane.works) == 4
    recordings_of(codec).clear()
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
    stream, pixels = recorded(codec, picture(200, 130))
    header, payload = bitstream.read(stream)
    damaged = bitstream.write(header, payload[:-1] + bytes([payload[-1] ^ 1]))
    recordings_of(codec).clear()
    for _ in range(2):  # while recording, and in replays
        with pytest.raises(CorruptStreamError):
            codec.decompress(damaged)
        poison(codec)
        assert np.array_equal(codec.decompress(stream, output="numpy"), pixels)
    assert len(recordings_of(codec)._idle) == 1


def test_a_codec_that_is_dropped_is_gone() -> None:
    codec = load(lively_model(BLOCKS), device="cpu", engine="cpu")
    recorded(codec, picture(64, 64))
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
    expected = [recorded(codec, image)[0] for image in (small, large)]
    (lane,) = recordings_of(codec)._idle
    limit = lane.memory.bytes // 4
    recordings = Recordings()
    monkeypatch.setattr(codec._engine, "_recordings", recordings)
    monkeypatch.setattr(recording, "KEPT_BYTES", limit)
    assert recorded(codec, small)[0] == expected[0]
    assert len(recordings._idle) == 1
    assert recorded(codec, large)[0] == expected[1]
    assert recordings._most_pixels == 256 * 256 - 1
    with monkeypatch.context() as patch:
        patch.setattr(recording, "_Lane", None)  # large pictures are not recorded again
        assert coded(codec, large)[0] == expected[1]
    assert coded(codec, small)[0] == expected[0]
    (lane,) = recordings._idle
    assert lane.memory.bytes <= limit and lane.pixels == {64 * 64}


def test_gaps_of_other_sizes_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory that is too large for what several sizes need may fit each of them."""
    lane, recordings = recording._Lane(), Recordings()
    monkeypatch.setattr(recording, "KEPT_BYTES", 1000)
    exact.Recording(lane.memory).room((2000,), np.dtype(np.uint8))
    lane.pixels = {64 * 64, 128 * 128}
    recordings._keep(lane)
    assert recordings._idle == [] and recordings._most_pixels == recording.RECORDED_PIXELS


def test_where_memory_is_short_none_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = load(lively_model(BLOCKS), device="cpu", engine="cpu")
    image, other = picture(64, 64), picture(130, 70)
    expected = [recorded(codec, each)[0] for each in (image, other)]

    def fail(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    for where in ("space_to_depth", "symbols"):
        recordings_of(codec).clear()
        recorded(codec, other)
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(CpuOps, where, fail)
            codec.compress(image)
        assert recordings_of(codec)._idle == []
        assert [coded(codec, each)[0] for each in (image, other)] == expected


def test_few_recordings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_RECORDINGS", 5)
    codec = load(lively_model(BLOCKS), device="cpu", engine="cpu")
    for side in (64, 128, 192, 64):
        recorded(codec, picture(side, side))
    (lane,) = recordings_of(codec)._idle
    assert len(lane.works) == 5
    monkeypatch.setattr(recording, "_REMEMBERED", 3)
    for side in range(64, 64 * 9, 64):
        coded(codec, picture(64, side))
    assert len(recordings_of(codec)._seen) <= 12


def test_interrupts_and_signal_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt ends a recording or a replay; a handler may use the codec meanwhile."""
    codec = load(lively_model(BLOCKS), device="cpu", engine="cpu")
    image, other = picture(130, 70), picture(64, 64)
    expected, meanwhile = (recorded(codec, each) for each in (image, other))
    found: list[bytes] = []

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    def handler(*args: Any) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        found.append(codec.compress(other))
        signal.signal(signal.SIGUSR1, handler)

    for what in (interrupt, handler):
        before = signal.signal(signal.SIGUSR1, what)
        digest = CpuOps.digest

        def signalled(ops: CpuOps, y: Any, first: int = 0) -> int:
            signal.raise_signal(signal.SIGUSR1)
            return digest(ops, y, first)  # noqa: B023

        def room(shape: Any, dtype: Any) -> Any:
            signal.raise_signal(signal.SIGUSR1)
            return exact.Recording.current().room(shape, np.dtype(dtype))

        try:
            for owner, name, does in ((CpuOps, "digest", signalled), (cpu_kernels, "room", room)):
                recordings_of(codec).clear()
                with monkeypatch.context() as patch:
                    patch.setattr(owner, name, does)
                    if what is interrupt:
                        with pytest.raises(KeyboardInterrupt):
                            codec.compress(image)
                    elif name == "digest":
                        assert codec.compress(image) == expected[0]
                assert exact.Recording.current() is None
                again = recorded(codec, image)
                assert again[0] == expected[0] and np.array_equal(again[1], expected[1])
        finally:
            signal.signal(signal.SIGUSR1, before)
    assert found and set(found) == {meanwhile[0]}


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

    def gives(client: Client, arrays: list[Any]) -> list[np.ndarray]:
        return [arrays[0] + 1]

    def digests(client: Client, arrays: list[Any]) -> list[np.ndarray]:
        kernels.digest(arrays[0], 0)
        return []

    for work in (reads, writes, gives, digests):
        with pytest.raises((RuntimeError, ValueError), match="recorded"):
            RecordedWork([elsewhere], exact.Memory()).run(work, Client(), [elsewhere])
        assert exact.Recording.current() is None
    first, second = exact.Recording(exact.Memory()), exact.Recording(exact.Memory())
    twos = np.full(16, 2, np.float32)

    def scales(client: Client, arrays: list[Any]) -> list[np.ndarray]:
        out = recording.room(elsewhere.shape, np.float32)
        kernels.scale(arrays[0], twos[::2].copy(), out)  # constants are kept, copies too
        return [out]

    recorded_work = RecordedWork([elsewhere], exact.Memory())
    for value in range(3):
        elsewhere[:] = value
        (scaled,) = recorded_work.run(scales, Client(), [elsewhere])
        taken = [np.full(8, 9, np.float32) for _ in range(100)]
        assert np.array_equal(scaled, 2 * elsewhere), taken
    with pytest.raises(RuntimeError, match="already"):
        first.during(lambda: second.during(list))


@given(st.lists(st.tuples(st.integers(0, 2000), st.booleans()), max_size=60))
def test_places(steps: list[tuple[int, bool]]) -> None:
    """No two arrays that live at the same time have a byte in common."""
    memory = exact.Memory()
    exact.Recording(memory).room((3000,), np.dtype(np.uint8))  # a chunk, which is free again
    made = exact.Recording(memory)
    arrays: list[np.ndarray] = []
    for number, (count, dies) in enumerate(steps):
        if dies and arrays:
            arrays.pop(number % len(arrays))
        arrays.append(made.room((count, 2), np.dtype(np.int16)))
        assert arrays[-1].shape == (count, 2) and arrays[-1].ctypes.data % 64 == 0
        arrays[-1][...] = number
        spans = sorted((each.ctypes.data, each.nbytes) for each in arrays)
        assert all(at + size <= other for (at, size), (other, _) in pairwise(spans))
        for at, size in spans:
            assert any(at >= begin and at + size <= begin + n for begin, n in memory.chunks.items())
    arrays.clear()
    whole = [made.room((size,), np.dtype(np.uint8)) for size in memory.chunks.values()]
    assert memory.bytes == sum(each.nbytes for each in whole)  # all was free, in one piece each
