"""What ``mlic-fast profile`` counts and finds. Nothing here depends on time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lively import BLOCKS, SMALL, lively_model

import mlic_fast
from mlic_fast._C import exact
from mlic_fast.cli import main
from mlic_fast.cli.profile import _print_changes as print_changes
from mlic_fast.codec import Codec
from mlic_fast.engine import path, reference_engine
from mlic_fast.engine.cpu.cpu_operations import CpuOps
from mlic_fast.engine.packing.pack_transforms import pack_transforms
from mlic_fast.engine.packing.packer import pack
from mlic_fast.errors import EngineError
from mlic_fast.models import MlicConfig, MlicModel, save_checkpoint
from mlic_fast.profiling import breakdown as module
from mlic_fast.profiling.breakdown import Peaks, Profile, describe, profile
from mlic_fast.profiling.counting import (
    count_entropy_path,
    count_exact_transforms,
    count_transforms,
)
from mlic_fast.profiling.kernel_spans import KERNEL, watched_kernels
from mlic_fast.profiling.pictures import synthetic_photograph
from mlic_fast.profiling.stages import seconds_by_stage

PEAKS = Peaks(matrix=1e12, integer=1e11, bandwidth=1e10)
IMAGE = synthetic_photograph(128, 64)


class Ticks:
    """A clock that goes on by a millisecond whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-3
        return self.now


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    clock = Ticks()
    monkeypatch.setattr("time.perf_counter", clock)
    monkeypatch.setattr("time.process_time", clock)
    return clock


def profiles(model: MlicModel, way: str) -> list[Profile]:
    codecs = [mlic_fast.load(model, engine=engine) for engine in ("cpu", "reference")]
    return profile(codecs, way, IMAGE, 1, PEAKS)


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_every_product_is_counted(model: MlicModel, way: str) -> None:
    ours, _ = profiles(model, way)
    counted: Counter[str] = Counter()
    for kernel in ours.kernels:
        counted[kernel.stage] += kernel.products
    packed = mlic_fast.load(model).packed
    transforms = count_exact_transforms(pack_transforms(model), 128, 64)
    assert counted["entropy path"] == count_entropy_path(packed, 128, 64)
    stage = "g_a + h_a" if way == "encode" else "g_s"
    assert counted[stage] == transforms[stage]


def test_a_network_multiplies_what_its_operations_do(model: MlicModel) -> None:
    """So that a backend may fuse it."""
    codec = mlic_fast.load(model)
    with watched_kernels(codec) as tracer:
        spans = tracer.record(lambda: codec.compress(IMAGE), detailed=True)
    inside: Counter[Any] = Counter()
    for span in spans:
        if span.kind == KERNEL and span.parent is not None:
            inside[span.parent] += span.details["products"]
    networks = [span for span in inside if span.kind == KERNEL and span.details["products"]]
    assert {"entropy_parameters", "predict_residual"} < {span.name for span in networks}
    assert all(span.details["products"] == inside[span] for span in networks)


@pytest.mark.parametrize("config", [SMALL["mlic_plus_plus"], BLOCKS], ids=["residual", "blocks"])
def test_the_gpu_engine_is_taken_apart(device: torch.device, config: MlicConfig) -> None:
    """Its stages, and the products of its fused kernels."""
    pytest.importorskip("triton", reason="triton is not installed")
    from mlic_fast.engine.gpu.gpu_engine import GpuEngine

    model = lively_model(config).eval().to(device)
    packed = pack(model)
    codec = Codec(model, packed, device, GpuEngine(model, packed, device, dtype=torch.float32))
    stream = mlic_fast.load(model.cpu()).compress(synthetic_photograph(64, 64))
    codec.decompress(stream)  # a first one compiles by running the path
    with watched_kernels(codec) as tracer:
        spans = tracer.record(lambda: codec.decompress(stream), detailed=True)
    stages = seconds_by_stage(spans)
    assert stages.keys() == {"total", "entropy path", "range coder", "g_s", "other"}
    callers = {span.parent for span in spans if span.kind == KERNEL}
    counted: Counter[str] = Counter()
    for span in spans:
        if span.kind == KERNEL and span not in callers:
            stage = span.within("stage")
            counted[stage.name if stage else "other"] += span.details["products"]
    assert counted["entropy path"] == count_entropy_path(packed, 64, 64)
    if config is BLOCKS:
        exact = count_exact_transforms(pack_transforms(model), 64, 64)
        assert counted["g_s"] == exact["g_s"]
    else:
        # The taps of the last layer are padded with zeros.
        from mlic_fast.kernels.epilogues import TAP_OUTPUTS

        taps = 3 * 4 * 9
        padding = (TAP_OUTPUTS - taps) * config.stage_channels[0] * 32 * 32
        assert counted["g_s"] == count_transforms(model, 64, 64)["g_s"] + padding


def test_bytes_of_a_kernel() -> None:
    ours, _ = profiles(lively_model(SMALL["mlic"]), "encode")
    config = SMALL["mlic"]
    z = 1 * 2 * config.N  # latents of 128 x 64 are 8 x 4
    first = next(kernel for kernel in ours.kernels if kernel.layer == "h_s.increase.0")
    weights = (
        mlic_fast.load(lively_model(config)).packed.layers["h_s.increase.0"].segments[0].weight
    )
    outputs = z // config.N * len(weights)
    assert first.bytes == 2 * z + 2 * outputs + weights.nbytes
    assert first.floor == max(first.products / PEAKS.integer, first.bytes / PEAKS.bandwidth)
    assert all(k.bytes == 0 for k in ours.kernels if k.operation in ("channels", "view"))


def test_networks_and_passes_stand_beside_the_baselines(model: MlicModel) -> None:
    document = describe(profiles(model, "decode"), PEAKS)
    passes = [row["pass"] for row in document["passes"]]
    slices = [f"slice {i}, {colour}" for i in range(3) for colour in ("anchors", "non-anchors")]
    assert passes == ["before the passes", *slices]
    assert all("ratio" in row for row in [*document["passes"], *document["stages"]])
    networks = {row["network"]: row for row in document["networks"]}
    shared = {"h_s", "g_s", "entropy parameters", "local context", "global intra context"}
    assert all("ratio" in networks[name] for name in shared)
    assert ("global inter context" in networks) == (model.config.variant != "mlic")
    inside, stages = (sum(row["ms"] for row in document[table]) for table in ("networks", "stages"))
    watching = max(0.0, document["total_ms"] - document["unwatched_ms"])
    assert stages - watching - 1e-6 <= inside <= stages + 1e-6


def test_a_slow_kernel_is_found(ticks: Ticks, monkeypatch: pytest.MonkeyPatch) -> None:
    original = CpuOps.layer_norm

    def slow(self: CpuOps, layer: str, x: Any, out: str) -> Any:
        ticks.now += 5.0 if layer == "local_context.1.norm2" else 1.0
        return original(self, layer, x, out)

    monkeypatch.setattr(CpuOps, "layer_norm", slow)
    document = describe(profiles(lively_model(SMALL["mlic_plus_plus"]), "encode"), PEAKS)
    first = document["kernels"][0]
    assert (first["network"], first["operation"]) == ("local context", "layer_norm")
    assert first["calls"] == 6 and first["ms"] == pytest.approx(10e3, rel=0.01)
    assert document["layers"][0]["layer"] == "local_context.1.norm2"
    slowest = max(document["passes"], key=lambda row: row["ms"])
    assert slowest["pass"] == "slice 1, non-anchors"


def test_what_threads_do_is_counted() -> None:
    kernels = exact.Kernels("scalar", 2)
    x = np.ones((1, 64, 64, 8), np.int16)

    def norm() -> None:
        ones = np.ones(8, np.float32)
        kernels.layer_norm(x, ones, ones, epsilon=1.0, out=np.empty_like(x), out_scale=1.0)

    exact.measure(True)
    norm()
    calls, results, layouts = exact.measured()
    assert calls > 0 and results > 0 and layouts == 0
    kernels.colour(x, 0, out=np.empty((1, 64, 32, 8), np.int16))
    more = exact.measured()
    assert more[0] > calls and more[1] == results and more[2] > 0
    exact.measure(False)
    norm()
    assert exact.measured() == (0, 0, 0)


def test_losses_are_part_of_a_kernel() -> None:
    ours, _ = profiles(lively_model(BLOCKS), "decode")
    assert all(k.lost is not None for k in ours.kernels if k.products)
    for kernel in ours.kernels:
        if kernel.lost is not None:
            assert 0 <= kernel.lost.serial <= kernel.seconds
            assert kernel.lost.waiting >= 0 and kernel.lost.layout >= 0
    moved = [k.lost for k in ours.kernels if k.operation in ("squeeze", "keep")]
    assert moved and all(lost is not None and lost.layout > 0 for lost in moved)


def test_nothing_stays_wrapped() -> None:
    for engine in ("cpu", "reference"):
        codec = mlic_fast.load(lively_model(SMALL["mlic"]), engine=engine)
        modules = list(codec.model.modules())
        owners = (path._Passes, reference_engine, codec._engine, *modules)
        before = [dict(vars(owner)) for owner in owners]
        stream = codec.compress(IMAGE)
        with watched_kernels(codec) as tracer:
            spans = tracer.record(lambda c=codec: c.compress(IMAGE))
            assert len(spans) > 20
        assert [dict(vars(owner)) for owner in owners] == before
        assert codec.compress(IMAGE) == stream


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "matrix_peak", lambda dtype, device: 1e9)
    monkeypatch.setattr(module, "integer_peak", lambda device: 1e9)
    monkeypatch.setattr(module, "bandwidth", lambda device: 1e9)
    save_checkpoint(lively_model(SMALL["mlic_plus"]), tmp_path / "model.safetensors")
    arguments = ["profile", "--model", str(tmp_path / "model.safetensors"), "--size", "70x33"]
    arguments += ["--runs", "2", "--against", "reference", "--decode"]
    trace, table = tmp_path / "trace.json", tmp_path / "table.json"
    assert main([*arguments, "--trace", str(trace), "--json", str(table)]) == 0
    text = capsys.readouterr().out
    document = json.loads(table.read_text())
    assert f"Next: {document['kernels'][0]['network']}" in text
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {1, 2}
    calls = [event for event in events if event["ph"] == "X" and event["pid"] == 1]
    assert {"stage", "kernel", "pass", "slice"} <= {event["cat"] for event in calls}
    whole = next(event for event in calls if event["name"] == "total")
    assert all(event["ts"] >= -1 and event["dur"] >= 0 for event in calls)
    assert all(event["ts"] + event["dur"] <= whole["dur"] + 1 for event in calls)


@pytest.mark.gpu
@pytest.mark.parametrize("command", [["bench"], ["profile"], ["profile", "--decode"]])
def test_commands_on_a_gpu(tmp_path: Path, command: list[str]) -> None:
    save_checkpoint(lively_model(SMALL["mlic_plus_plus"]), tmp_path / "model.safetensors")
    result = tmp_path / "result.json"
    arguments = ["--model", str(tmp_path / "model.safetensors"), "--device", "cuda"]
    arguments += ["--size", "128x64", "--runs", "2", "--against", "reference"]
    assert main([*command, *arguments, "--json", str(result)]) == 0
    document = json.loads(result.read_text())
    assert document["machine"]["gpu"]["driver_version"]
    if command == ["bench"]:
        ours = document["results"][0]["engines"]["gpu"]["encode"]
        assert set(ours["stages"]) == {"g_a + h_a", "entropy path", "range coder", "other"}
    else:
        assert sum(row["launches"] for row in document["device_kernels"]) > 50


def test_what_got_slower(capsys: pytest.CaptureFixture[str]) -> None:
    def document(**ms: float) -> dict[str, Any]:
        rows = [{"network": "h_s", "operation": name, "ms": each} for name, each in ms.items()]
        return {"kernels": rows}

    before = document(conv=10.0, norm=2.0, gone=1.0, same=3.0)
    print_changes(before, document(conv=10.5, norm=6.0, new=9.0, same=3.0), 5)
    _, _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["h_s:", "norm", "6.00", "2.00", "3.00"],
        ["h_s:", "conv", "10.50", "10.00", "1.05"],
    ]


def test_the_reference_engine_has_no_kernels() -> None:
    codec = mlic_fast.load(lively_model(SMALL["mlic"]), engine="reference")
    with pytest.raises(EngineError, match="--against"):
        module.measure_peaks(codec)
    assert module.device_kernels(codec, "encode", torch.zeros(3, 1, 1, dtype=torch.uint8)) == []
