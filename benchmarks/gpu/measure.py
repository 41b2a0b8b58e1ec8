"""How fast the GPU engine is here: constants of the card, the codec and its parts, the range coder.

    python benchmarks/gpu/measure.py FOLDER [--seconds 120] [--rehearse]

Streams are compared before anything is timed, with the CPU engine and from run to run.
``benchmarks/results.py`` files ``FOLDER/measure.json``, and ``FOLDER/bench-*.json``, in which the
reference engine takes turns.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from card import Card

card = Card(__doc__, 120)

import numpy as np
import torch
import triton
import triton.language as tl

import mlic_fast
from mlic_fast.codec import Codec
from mlic_fast.coder import SCALES, gaussian_tables
from mlic_fast.coder.gpu_coder import DeviceDecoder, DeviceEncoder, DeviceTables
from mlic_fast.engine.gpu.gpu_engine import compile_path, device_transforms
from mlic_fast.engine.gpu.gpu_operations import GpuOps
from mlic_fast.engine.packing.packer import pack
from mlic_fast.engine.path import code_latents
from mlic_fast.kernels.functions import compile_only
from mlic_fast.profiling.codecs import load_codecs
from mlic_fast.profiling.pictures import synthetic_photograph
from mlic_fast.profiling.preset_models import trained_like_model
from mlic_fast.profiling.side_by_side import compare

found: dict[str, Any] = {"constants": {}, "codec": [], "kernels": [], "coder": []}
#: Model -> engine gpu and engine reference, packed once.
codecs: dict[str, tuple[Codec, Codec]] = {}


@triton.jit
def _add_one(x, n, PDL: tl.constexpr):
    i = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    if PDL:
        tl.extra.cuda.gdc_wait()
    v = tl.load(x + i, mask=i < n)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(x + i, v + 1, mask=i < n)


def constants() -> None:
    us = found["constants"]
    for programs in (12, 48, 132):
        x = torch.zeros(1024 * programs, device=card.device)

        def launch(pdl: bool, x: torch.Tensor = x, programs: int = programs) -> None:
            _add_one[(programs,)](x, x.numel(), pdl, launch_pdl=pdl)

        name = f"a node that waits for the one before, {programs} programs"
        us[name] = card.launch_us(lambda launch=launch: launch(False), 200)
        name = f"the same by programmatic dependent launch, {programs} programs"
        us[name] = card.launch_us(lambda launch=launch: launch(True), 200)
    us["synchronise alone"] = 1e3 * card.milliseconds(lambda: None, 300)[0]
    for size in (60_000, 1_200_000):
        paged, there = (
            torch.zeros(size, dtype=torch.uint8, device=device) for device in ("cpu", card.device)
        )
        pinned = paged if card.rehearses else paged.pin_memory()
        for name, to, source in (
            ("pinned to device", there, pinned),
            ("device to pinned", pinned, there),
            ("pageable to device", there, paged),
            ("device to pageable", paged, there),
        ):
            copy = _copy(to, source, "pinned" in name)
            us[f"{size} bytes {name}"] = 1e3 * card.milliseconds(copy, 100)[0]


def _copy(to: torch.Tensor, source: torch.Tensor, unwaited: bool) -> Callable[[], object]:
    return lambda: to.copy_(source, non_blocking=unwaited)


def prepare(name: str) -> None:
    """Load a model. In a rehearsal launch its kernels, which is as far as that goes."""
    if not card.rehearses:
        gpu, reference = load_codecs(name, "cuda", "gpu", "reference")
        codecs[name] = gpu, reference
        return
    if name == "photo":
        codec = mlic_fast.load("photo", device="cpu")
        model, packed = codec.model, codec.packed
    else:
        model = trained_like_model(name).requires_grad_(False)
        packed = pack(model)
    ops, transforms = (
        GpuOps(packed, card.device),
        device_transforms(model, torch.bfloat16, card.device),
    )
    for encoding in (True, False):

        def path(encoding: bool = encoding) -> None:
            compile_path(ops, transforms, card.device, 1, 1, 2, encoding)

        compile_only(path, 2)
        path()
    print(f"{name}: {card.launches()}; what they compute only a GPU can say", flush=True)


def codec_row(name: str, width: int, height: int, batch: int = 1, runs: int = 30) -> None:
    codec, small = codecs[name][0], batch == 1 and width * height <= 500_000
    row: dict[str, Any] = {"model": name, "width": width, "height": height, "batch": batch}
    images = torch.stack([synthetic_photograph(width, height, n) for n in range(batch)])
    images = images.to(card.device)
    torch.cuda.reset_peak_memory_stats()
    clock = _Seconds(row)
    streams = clock("first_encode_s", lambda: codec.compress(images))
    pixels = clock("first_decode_s", lambda: codec.decompress(streams))
    again = clock("capture_encode_s", lambda: codec.compress(images))
    clock("capture_decode_s", lambda: codec.decompress(streams))
    row["bytes"] = sum(map(len, streams))
    row["right"] = again == streams and all(
        codec.compress(images) == streams
        and all(map(torch.equal, codec.decompress(streams), pixels))
        for _ in range(5)
    )
    if small:
        cpu = mlic_fast.load(_source(name), device="cpu")
        there = codec.decode_latents(streams[0]).cpu()
        row["right"] &= bool(torch.equal(cpu.decode_latents(streams[0]), there))
    card.spin(0.5)
    row["encode_ms"] = card.milliseconds(lambda: codec.compress(images), runs)
    row["decode_ms"] = card.milliseconds(lambda: codec.decompress(streams), runs)
    engine: Any = codec._engine
    for way, pool in (("encode", engine._encodes), ("decode", engine._decodes)):
        graph = next(job._recording._graph[0] for _, job in reversed(pool._free.values()))
        row[f"{way}_graph_ms"] = card.replay_us(graph) / 1e3
        if small:
            found["kernels"].append(
                {"model": name, "width": width, "height": height, "way": way, "note": ""}
                | {"kernels": _kernels(graph)}
            )
    if small:
        row["parts_ms"] = _parts(codec, images, width, height)
    row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    found["codec"].append(row)
    print(json.dumps(row), flush=True)


def _source(name: str) -> Any:
    return "photo" if name == "photo" else trained_like_model(name)


class _Seconds:
    def __init__(self, row: dict[str, Any]) -> None:
        self._row = row

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = work()
        torch.cuda.synchronize()
        self._row[name] = round(time.perf_counter() - start, 4)
        return result


def _parts(codec: Codec, images: torch.Tensor, width: int, height: int) -> dict[str, float]:
    """Milliseconds of each in a graph of its own."""
    engine: Any = codec._engine
    config, device = codec.packed.config, card.device
    rate = torch.zeros(1, device=device) if config.rates else None
    h, w = height // 16, width // 16
    y = torch.randn(1, h, w, config.M, device=device).permute(0, 3, 1, 2)
    z = torch.zeros((1, h // 4, w // 4, config.N), dtype=torch.int32, device=device)
    half = (1, h, w // 2, config.slice_channels)
    symbols = torch.zeros(half, dtype=torch.int32, device=device)
    works: dict[str, Callable[[], object]] = {
        "g_a, h_a": lambda: engine._transforms.analyse(images, rate),
        "path": lambda: code_latents(engine._ops, z, lambda *_: symbols),
        "g_s": lambda: engine._transforms.synthesise(y, rate),
    }
    return {name: round(card.launch_us(work, 3) / 1e3, 4) for name, work in works.items()}


def _kernels(graph: torch.cuda.CUDAGraph, runs: int = 3) -> dict[str, list[float]]:
    """Name -> launches and microseconds of a replay, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    graph.replay()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(runs):
            graph.replay()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and event.get("ph") == "X":
            entry = sums[event["name"].split("(")[0].removeprefix("void ")[:58]]
            entry[0] += 1 / runs
            entry[1] += event["dur"] / runs
    ordered = sorted(sums.items(), key=lambda item: -item[1][1])
    return {name: [round(count, 2), round(us, 1)] for name, (count, us) in ordered}


def coder_rows() -> None:
    """20 passes of 24,576 symbols, 68 % of them in the lowest table; on the CPU in a rehearsal."""
    random = np.random.default_rng(0)
    tables = DeviceTables(gaussian_tables(), card.device)
    passes = []
    for _ in range(20):
        shape = (1, 32, 24, 32)
        index = np.where(random.random(shape) < 0.68, 0, random.integers(1, 40, shape))
        symbols = np.rint(random.standard_normal(shape) * np.asarray(SCALES)[index])
        symbols[index == 0] = 0
        arrays = symbols.astype(np.int32), index.astype(np.uint8)
        passes.append([torch.from_numpy(array).to(card.device) for array in arrays])
    for lanes in (16, 32, 64, 128, 256, 512):
        encoder = DeviceEncoder(tables, batch=1, capacity=1 << 20, symbols=20 * 24576, lanes=lanes)

        def encode(encoder: DeviceEncoder = encoder) -> None:
            encoder.begin()
            for symbols, index in passes:
                encoder.record(symbols, index)
            encoder.finish()

        encode()
        ((payload, used),) = encoder.payloads()
        row = {"lanes": lanes, "bytes": len(payload), "right": True}
        row |= {"encode_ms": card.launch_us(encode, 1) / 1e3}
        # A cluster of blocks against one.
        for blocks, name in ((None, "decode_ms"), (1, "decode_ms_one_block")):
            decoder = DeviceDecoder(tables, batch=1, capacity=1 << 20, symbols=24576, blocks=blocks)
            decoder.load([payload], [used])

            def decode(decoder: DeviceDecoder = decoder) -> list[torch.Tensor]:
                decoder.begin()
                decoded = [decoder.decode(index) for _, index in passes]
                decoder.finish()
                return decoded

            row["right"] &= all(map(torch.equal, decode(), (symbols for symbols, _ in passes)))
            row[name] = card.launch_us(decode, 1) / 1e3
        found["coder"].append(row)
        if card.rehearses:
            assert row["right"]
            return


def against_reference(name: str) -> None:
    """Engines in turns, as ``mlic-fast bench`` has them; a document of its own."""
    gpu = codecs[name][0]
    result = compare(codecs[name], synthetic_photograph(768, 512)[None], 7)
    document = {"model": name, "model_id": gpu.model_id.hex(), "machine": card.machine()}
    card.write(f"bench-{name}", {**document, "results": [{"image": "synthetic", **result}]})


def part(section: str, work: Callable[[], object], least: float) -> None:
    card.do(section, work, least)
    card.save(found)


if not card.rehearses:
    card.spin()
part("constants", constants, 8)
for name in ("photo", "mlic_plus_plus"):
    part(f"{name}, load", lambda name=name: prepare(name), 15)
    if name in codecs:
        part(f"{name}, 768x512", lambda name=name: codec_row(name, 768, 512), 10)
part("range coder", coder_rows, 5)
for name, (width, height), batch, seconds in (
    ("photo", (768, 512), 8, 5),
    ("photo", (1920, 1080), 1, 5),
    ("mlic_plus_plus", (1920, 1080), 1, 8),
    ("mlic_plus_plus", (768, 512), 8, 8),
    ("mlic_plus_plus", (3840, 2160), 1, 12),
):
    if name in codecs:
        title = f"{name}, {width}x{height}, batch of {batch}"
        work = lambda n=name, w=width, h=height, b=batch: codec_row(n, w, h, b, 10)  # noqa: E731
        part(title, work, seconds)
for name in codecs:
    part(f"{name} against the reference", lambda name=name: against_reference(name), 20)
print(card.launches())
