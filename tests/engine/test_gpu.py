"""The GPU engine: the same latents and bytes as the CPU engine, whatever the batch.

Without a GPU its kernels run in Triton's interpreter and its range coder compiled for the host.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from lively import BLOCKS, SMALL, lively_model, photograph

import mlic_fast
from mlic_fast.codec import Codec
from mlic_fast.engine.cpu.cpu_operations import CpuOps
from mlic_fast.engine.exact_engine import ExactEngine, cpu_transforms
from mlic_fast.engine.gpu.graphs import Gate, Pool, Recording
from mlic_fast.engine.packing.packer import pack
from mlic_fast.errors import (
    CorruptStreamError,
    DeviceMemoryError,
    EngineError,
    KernelResourcesError,
)
from mlic_fast.models import MlicConfig
from mlic_fast.models.config import PRESETS

pytest.importorskip("triton", reason="triton is not installed")

#: Two slices, for tests of the engine rather than of the path.
SHORT = replace(SMALL["mlic_plus_plus"], M=64, slices=2)


class OnArrays:
    """Transforms of the GPU engine for that of the CPU."""

    def __init__(self, transforms: Any) -> None:
        self._transforms = transforms

    def scales(self, rate: None) -> tuple[None, None]:
        return None, None

    def analysis(self, images: Any) -> Any:
        return self._transforms.analyse(torch.from_numpy(images), None)

    def at_rate(self, latents: Any, factors: None) -> Any:
        return tuple(each.permute(0, 2, 3, 1).contiguous().numpy() for each in latents)

    def synthesis(self, y: Any, factors: None) -> Any:
        y_hat = torch.from_numpy(y).permute(0, 3, 1, 2)
        return self._transforms.synthesise(y_hat, None).numpy()


def codecs(config: MlicConfig, device: torch.device) -> tuple[Codec, Codec]:
    """The same model on the CPU and on the device of the kernels, transforms in float32.

    Residual transforms are free arithmetic: without a GPU both codecs have those of the GPU engine,
    so that their bytes and pixels can be compared. Block transforms need nothing of the kind.
    """
    from mlic_fast.engine.gpu.gpu_engine import GpuEngine

    model = lively_model(config).eval()
    packed = pack(model)
    transforms = cpu_transforms(model, CpuOps)
    cpu = ExactEngine(transforms, packed, CpuOps(packed), "cpu")
    there = lively_model(config).eval().to(device)
    gpu = GpuEngine(there, packed, device, dtype=torch.float32)
    if device.type == "cpu" and config.transforms == "residual":
        cpu._transforms = OnArrays(gpu._transforms)  # type: ignore[assignment]
    return Codec(model, packed, torch.device("cpu"), cpu), Codec(there, packed, device, gpu)


def pixels(height: int, width: int, batch: int) -> torch.Tensor:
    return (photograph(height, width, batch=batch) * 255).round().to(torch.uint8)


def same_latents(stream: bytes, cpu: Codec, gpu: Codec) -> bool:
    mine, theirs = (codec.decode_latents(stream).cpu() for codec in (gpu, cpu))
    return torch.equal(mine.view(torch.int32), theirs.view(torch.int32))


@pytest.mark.parametrize("name", [*SMALL, "blocks"])
def test_both_engines_make_one_stream(device: torch.device, name: str) -> None:
    cpu, gpu = codecs({**SMALL, "blocks": BLOCKS}[name], device)
    image = pixels(64, 128, 1)[0]
    stream = gpu.compress(image)
    if device.type == "cpu" or name == "blocks":  # the same bytes and pixels
        assert stream == cpu.compress(image)
        assert torch.equal(gpu.decompress(stream).cpu(), cpu.decompress(stream))
    else:
        assert same_latents(stream, cpu, gpu)
        assert same_latents(cpu.compress(image), cpu, gpu)


def test_batches_and_mixed_sizes(device: torch.device) -> None:
    """Odd sizes; streams of two sizes decode in one call, those of one size together.

    With block transforms, as residual ones of a batch are not those of its images to the bit.
    """
    cpu, gpu = codecs(BLOCKS, device)
    pair, single = pixels(40, 61, 2), pixels(64, 65, 1)[0]
    streams = [*gpu.compress(pair), gpu.compress(single)]
    assert streams == [*cpu.compress(pair), cpu.compress(single)]
    order = [streams[0], streams[2], streams[1]]
    decoded = [image.cpu() for image in gpu.decompress(order)]
    assert [tuple(image.shape) for image in decoded] == [(3, 40, 61), (3, 64, 65), (3, 40, 61)]
    assert all(map(torch.equal, decoded, cpu.decompress(order)))


def test_damage_is_found_and_does_no_harm(device: torch.device) -> None:
    """What the container cannot see: another payload under the right checksum."""
    from mlic_fast import bitstream

    cpu, gpu = codecs(SHORT, device)
    stream = cpu.compress(pixels(64, 64, 1)[0])
    header, payload = bitstream.read(stream)
    for damaged in (payload[:-2], payload[:40] + bytes(len(payload) - 40), payload + b"\0\0"):
        errors = []
        for codec in (gpu, cpu):
            with pytest.raises(CorruptStreamError) as caught:
                codec.decompress(bitstream.write(header, damaged))
            errors.append(str(caught.value))
        assert errors[0] == errors[1]
    assert same_latents(stream, cpu, gpu)


def test_out_of_memory(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is given back and the work done again; then it is an error, and no harm done."""
    codec = codecs(SHORT, device)[1]
    engine: Any = codec._engine
    transforms, image = engine._transforms, pixels(64, 64, 1)[0]
    stream = codec.compress(image)
    decoded = codec.decompress(stream)
    left = 0

    def short_of_memory(name: str) -> None:
        right = getattr(transforms, name)

        def work(*args: Any) -> Any:
            nonlocal left
            if left:
                left -= 1
                raise torch.OutOfMemoryError("a fake")
            return right(*args)

        monkeypatch.setattr(transforms, name, work)

    short_of_memory("analyse")
    short_of_memory("synthesise")
    kept = len(engine._encodes._free), len(engine._decodes._free)
    assert kept == (1, 1)
    left = 1
    assert codec.compress(image) == stream and left == 0
    assert not engine._decodes._free and len(engine._encodes._free) == 1
    left = 2
    with pytest.raises(DeviceMemoryError, match=r"an image of 64x64 pixels.*device='cpu'") as error:
        codec.decompress(stream)
    assert error.value.__context__ is None  # which would hold on to the arrays
    assert not engine._encodes._free and not engine._decodes._free
    left = 2
    with pytest.raises(DeviceMemoryError, match=r"for 2 images of 64x64 pixels.*fewer"):
        codec.compress(pixels(64, 64, 2))
    assert codec.compress(image) == stream
    assert torch.equal(codec.decompress(stream), decoded)


@pytest.mark.gpu
def test_out_of_memory_while_capturing(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a branch of the graph, the second time a size comes."""
    codec = codecs(SHORT, device)[1]
    image, ops = pixels(64, 64, 1)[0], codec._engine._ops  # type: ignore[attr-defined]
    stream = codec.compress(image)
    right, left = ops.inter_context, 1

    def inter_context(*args: Any) -> Any:
        nonlocal left
        if left and torch.cuda.is_current_stream_capturing():
            left -= 1
            raise torch.OutOfMemoryError("a fake")
        return right(*args)

    monkeypatch.setattr(ops, "inter_context", inter_context)
    assert [codec.compress(image) for _ in range(3)] == [stream] * 3
    assert not left


def test_kernels_that_do_not_fit(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import OutOfResources

    codec = codecs(SHORT, device)[1]

    def analyse(*_: Any) -> Any:
        raise OutOfResources(262144, 232448, "shared memory")

    monkeypatch.setattr(codec._engine._transforms, "analyse", analyse)  # type: ignore[attr-defined]
    with pytest.raises(KernelResourcesError, match=r"262144 bytes of shared memory.*232448"):
        codec.compress(pixels(64, 64, 1)[0])


def test_workspace() -> None:
    from mlic_fast.engine.gpu.gpu_engine import workspace

    config = PRESETS["mlic_plus_plus"]
    assert f"{workspace(config, 1, 2176, 3840) / 2**30:.1f}" == "3.5"  # docs/architecture.md
    assert f"{workspace(config, 1, 4352, 7680) / 2**30:.1f}" == "14.0"
    assert workspace(PRESETS["photo"], 1, 2176, 3840) < workspace(config, 1, 2176, 3840)
    assert workspace(config, 3, 64, 128) == 6 * workspace(config, 1, 64, 64)


@pytest.mark.gpu
def test_replays_are_what_the_first_run_was(device: torch.device) -> None:
    """The first run launches, the second captures, later ones replay; other sizes between."""
    cpu, gpu = codecs(SHORT, device)
    images = [pixels(64 * (1 + i % 3), 128, 2) for i in range(9)]
    for image in images:
        streams = gpu.compress(image)
        assert streams == gpu.compress(image)
        assert all(same_latents(stream, cpu, gpu) for stream in streams)


@pytest.mark.gpu
def test_threads(device: torch.device) -> None:
    cpu, gpu = codecs(SHORT, device)
    images = [pixels(64 + 64 * (i % 2), 64, 1)[0] for i in range(24)]
    expected = [gpu.compress(image) for image in images]

    def work(number: int) -> tuple[bytes, torch.Tensor]:
        with torch.cuda.stream(torch.cuda.Stream()):
            stream = gpu.compress(images[number])
            return stream, gpu.decode_latents(stream).cpu()

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, list(range(24)) * 4))
    for number, (stream, y_hat) in enumerate(results):
        assert stream == expected[number % 24]
        assert torch.equal(y_hat, cpu.decode_latents(stream))


@pytest.mark.gpu
def test_full_size_follows_the_cpu_engine(device: torch.device) -> None:
    """A full-size model of seeded weights: streams of the GPU decode on the CPU, bit for bit."""
    from mlic_fast.profiling.preset_models import trained_like_model

    for variant in ("mlic", "mlic_plus", "mlic_plus_plus"):
        model = trained_like_model(variant)
        cpu = mlic_fast.load(model, device="cpu")
        gpu = mlic_fast.load(model, device="cuda", engine="gpu")
        streams = gpu.compress(pixels(512, 768, 2))
        assert all(same_latents(stream, cpu, gpu) for stream in streams)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(EngineError, match="no CUDA device"):
        mlic_fast.load("photo", engine="gpu")
    assert mlic_fast.load("photo").engine == "cpu"


@dataclass(eq=False)
class Thing:
    nbytes: int


def test_pool_keeps_the_most_recent_within_its_limit() -> None:
    pool: Pool[Thing] = Pool(100)
    things = {key: pool.take(key, lambda: Thing(40)) for key in "abc"}
    for key, thing in things.items():
        pool.give(key, thing)
    assert pool.take("a", lambda: Thing(1)).nbytes == 1  # the oldest of 120 bytes is gone
    assert pool.take("b", lambda: Thing(1)) is things["b"]
    again = pool.take("b", lambda: Thing(2))  # it is in use
    assert again.nbytes == 2
    large = Thing(1000)
    pool.give("large", large)
    assert pool.take("c", lambda: Thing(1)).nbytes == 1
    assert pool.take("large", lambda: Thing(1)) is large  # the last one stays, whatever its size


def test_pool_takes_back_what_is_done_with() -> None:
    """After an error that is not ours, kernels may still write to the item."""
    pool: Pool[Thing] = Pool(100)
    thing = Thing(1)
    with pool.lent("a", lambda: thing):
        pass
    with pytest.raises(CorruptStreamError), pool.lent("a", lambda: Thing(2)) as lent:
        assert lent is thing
        raise CorruptStreamError
    with pytest.raises(RuntimeError), pool.lent("a", lambda: Thing(2)) as lent:
        assert lent is thing
        raise RuntimeError
    with pool.lent("a", lambda: Thing(2)) as lent:
        assert lent is not thing


def test_recording_runs_every_time_on_a_cpu() -> None:
    done: list[int] = []
    recording = Recording(lambda: done.append(1), torch.device("cpu"))
    for _ in range(3):
        recording()
    assert len(done) == 3 and recording.nbytes == 0


def test_a_capture_is_alone() -> None:
    """Many threads work and capture by turns: no capture overlaps, and none waits forever."""
    gate, lock = Gate(), threading.Lock()
    active, wrong = {"working": 0, "capturing": 0}, []

    def enter(kind: str, change: int) -> None:
        with lock:
            active[kind] += change
            if active["capturing"] > 1 or (active["capturing"] and active["working"]):
                wrong.append(dict(active))

    def work(number: int) -> None:
        for step in range(50):
            with gate.working():
                enter("working", 1)
                if (number + step) % 3 == 0:
                    enter("working", -1)
                    with gate.capturing():
                        enter("capturing", 1)
                        enter("capturing", -1)
                    enter("working", 1)
                enter("working", -1)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
