"""The benchmark's bookkeeping. Nothing here depends on time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lively import SMALL, lively_model

import mlic_fast
from mlic_fast.cli import main
from mlic_fast.codec import Codec
from mlic_fast.engine import exact_engine
from mlic_fast.engine.arithmetic import SpecOps
from mlic_fast.engine.cpu.cpu_operations import CpuOps
from mlic_fast.engine.packing.packer import pack
from mlic_fast.models import MlicModel, reference, save_checkpoint
from mlic_fast.models.mlic import TrainingQuantiser
from mlic_fast.profiling import floors
from mlic_fast.profiling.counting import count_entropy_path, count_transforms
from mlic_fast.profiling.machine import describe_machine, machine_name
from mlic_fast.profiling.memory import peak_memory
from mlic_fast.profiling.pictures import synthetic_photograph
from mlic_fast.profiling.preset_models import trained_like_model
from mlic_fast.profiling.side_by_side import WrongResultError, check_arithmetic, compare, spread
from mlic_fast.profiling.spans import Tracer
from mlic_fast.profiling.stages import seconds_by_stage, watched


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "matrix_peak", lambda dtype, device: 1e9)
    monkeypatch.setattr(floors, "integer_peak", lambda device: 1e9)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(lively_model(SMALL["mlic"]), tmp_path / "model.safetensors")
    arguments = ["bench", "--model", str(tmp_path / "model.safetensors"), "--size", "70x33"]
    arguments += ["--size", "1x1", "--runs", "2", "--against", "reference", "--batch", "2"]
    files = ["--json", str(tmp_path / "result.json"), "--plot", str(tmp_path / "result.svg")]
    assert main([*arguments, *files]) == 0
    text = capsys.readouterr().out
    document = json.loads((tmp_path / "result.json").read_text())
    known = {"name", "cpu", "cores", "cpu_mhz", "load", "instruction_sets", "torch", "commit"}
    assert known <= document["machine"].keys()
    first, second = document["results"]
    assert (first["width"], first["height"], first["batch"], second["width"]) == (70, 33, 2, 1)
    assert list(first["engines"]) == ["cpu", "reference"]
    for way, transform in (("encode", "g_a + h_a"), ("decode", "g_s")):
        stages = {"entropy path", "range coder", transform, "other"}
        ours, theirs = (engine[way] for engine in first["engines"].values())
        ratio = first["ratio"][way]
        assert 0 < ratio["p10"] <= ratio["median"] <= ratio["p90"]
        assert set(ours["stages"]) == set(theirs["stages"]) == stages
        assert ours["floor_ms"] > 0 and "floor_ms" not in theirs
        assert ours["p10_ms"] <= ours["median_ms"] <= ours["p90_ms"]
        assert ours["images_per_second"] == 2 / (ours["median_ms"] / 1e3)
        pixels = 70 * 33 * ours["images_per_second"]
        assert ours["megapixels_per_second"] == pytest.approx(pixels / 1e6)
    assert "entropy path" in text and "times as fast" in text and "images/s" in text
    drawn = (tmp_path / "result.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in ("range coder", "floor, encode"))
    assert main([*arguments[:5], "--against", "cpu"]) == 2


def test_one_thread_is_timed_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = mlic_fast.load(lively_model(SMALL["mlic"]))
    for threads, clock in ((1, "processor"), (2, "wall")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        result = compare([codec], synthetic_photograph(64, 64)[None], 1)
        encode = result["engines"]["cpu"]["encode"]
        assert result["clock"] == clock and encode["median_ms"] == encode[f"{clock}_ms"]
        stages = sum(stage["median_ms"] for stage in encode["stages"].values())
        assert stages == pytest.approx(encode["median_ms"])


def test_every_moment_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    tracer = Tracer()

    def spend(seconds: float) -> float:
        now[0] += seconds
        return seconds

    coder = tracer.wrap("stage", "range coder", spend)
    kernel = tracer.wrap("kernel", "conv", spend, lambda result, seconds: {"given": result})

    def path() -> None:
        spend(1)
        coder(4)
        kernel(32)
        coder(8)

    inner = tracer.wrap("stage", "entropy path", path)
    spans = tracer.record(lambda: (inner(), spend(16)), detailed=True)
    seconds = {"total": 61, "entropy path": 33, "range coder": 12, "other": 16}
    assert seconds_by_stage(spans) == seconds
    assert [(span.name, span.start, span.end) for span in spans] == [
        ("total", 0, 61),
        ("entropy path", 0, 45),
        ("range coder", 1, 5),
        ("conv", 5, 37),
        ("range coder", 37, 45),
    ]
    assert spans[3].details == {"given": 32}
    coder(1)  # outside of a recording nothing is kept
    assert len(tracer.record(lambda: None)) == 1


def test_spread() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2, "p10": pytest.approx(1.2), "p90": 2.8}


def test_peak_memory() -> None:
    def work() -> None:
        torch.ones(40_000_000, dtype=torch.uint8)

    peak = peak_memory(work, torch.device("cpu"))
    assert peak is None or 35e6 < peak < 60e6


def test_machines_have_names() -> None:
    assert machine_name(describe_machine()) == describe_machine()["name"] != ""
    intel = {
        "cpu": "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz",
        "cores": 8,
        "instruction_sets": ["avx2", "scalar"],
        "gpu": None,
    }
    assert machine_name(intel) == "intel-xeon-cpu-e5-2680-v4-avx2-8-cores"
    assert machine_name({**intel, "gpu": {"name": "NVIDIA H200"}}) == "nvidia-h200"


@pytest.mark.parametrize("engine", ["spec", "reference"])
def test_nothing_stays_wrapped(engine: str) -> None:
    codec = mlic_fast.load(lively_model(SMALL["mlic"]), engine=engine)
    owners = (
        exact_engine,
        reference,
        vars(codec._engine).get("_transforms", codec.model),
        codec.model,
    )
    before = [dict(vars(owner)) for owner in owners]
    with watched(codec) as tracer:
        spans = tracer.record(lambda: codec.compress(synthetic_photograph(64, 64)))
        assert {"g_a + h_a", "entropy path", "range coder"} < {span.name for span in spans}
        assert [dict(vars(owner)) for owner in owners] != before
    assert [dict(vars(owner)) for owner in owners] == before


def test_a_wrong_engine_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively_model(SMALL["mlic"])
    codecs = [mlic_fast.load(model, engine=engine) for engine in ("cpu", "spec")]
    original = Codec.decode_latents

    def decode_latents(self: Codec, data: bytes) -> torch.Tensor:
        y_hat = original(self, data)
        return y_hat + 1 if self.engine == "spec" else y_hat

    images = synthetic_photograph(64, 64)[None]
    assert compare(codecs, images, 1)["engines"].keys() == {"cpu", "spec"}
    check_arithmetic(codecs)
    monkeypatch.setattr(Codec, "decode_latents", decode_latents)
    with pytest.raises(WrongResultError, match="different latents"):
        compare(codecs, images, 1)


def test_an_engine_that_agrees_with_itself_alone_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codec = mlic_fast.load(lively_model(SMALL["mlic"]))
    original = CpuOps.add_residual

    def add_residual(self: Any, y: Any, r: Any, parity: Any) -> Any:
        return original(self, y, 2 * r, parity)

    monkeypatch.setattr(CpuOps, "add_residual", add_residual)
    assert codec.decompress(codec.compress(synthetic_photograph(64, 64))).shape == (3, 64, 64)
    with pytest.raises(WrongResultError):
        check_arithmetic([codec])


def test_operations_are_those_of_the_specification(
    model: MlicModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dry run counts what the specification's products really do."""
    packed = pack(model)
    done = [0]

    def product(x: Any, weight: Any) -> Any:
        done[0] += int(np.prod(x.shape[:3])) * weight.size
        return original(x, weight)

    from mlic_fast.engine import arithmetic

    original = arithmetic.product
    monkeypatch.setattr(arithmetic, "product", product)
    counted = count_entropy_path(packed, 128, 64)
    assert done[0] == 0
    z = np.zeros((1, 1, 2, packed.config.N), np.int32)
    exact_engine.code_latents(SpecOps(packed), z, lambda i, p, s, m, _: np.zeros(m.shape, np.int32))
    # Half of the layers that are asked for one colour, and the attention, make the difference.
    assert 0.5 * done[0] < counted < 1.2 * done[0]


def test_operations_of_the_transforms() -> None:
    model = lively_model(SMALL["mlic"])
    small, large = count_transforms(model, 64, 64), count_transforms(model, 128, 64)
    assert {name: 2 * count for name, count in small.items()} == large
    # The last layer of g_s alone: 3x3, 8 to 12 channels at half the size.
    assert small["g_s"] > 9 * 8 * 12 * 32 * 32


def test_models_like_trained_ones() -> None:
    """Bits a pixel and scales of the table, on a picture that the model was not made with."""
    model = trained_like_model(SMALL["mlic_plus_plus"])
    x = synthetic_photograph(192, 128, seed=3)[None].float() / 255
    with torch.inference_mode():
        y = model.analyse(x)
        quantiser = TrainingQuantiser(y, model.config.slices)
        model.code_latents(model.h_s(torch.round(model.h_a(y))), quantiser)
        scales = torch.cat(quantiser.scales, dim=1)
    assert 0.5 < float((scales <= 0.11).float().mean()) < 0.85
    again = trained_like_model(SMALL["mlic_plus_plus"]).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    stream = mlic_fast.load(model).compress(synthetic_photograph(192, 128, seed=3))
    assert 0.1 < 8 * len(stream) / (192 * 128) < 0.9
