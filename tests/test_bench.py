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
from mlic_fast.benchmark import compare as module
from mlic_fast.benchmark.compare import WrongResultError, compare
from mlic_fast.benchmark.models import trained_like_model
from mlic_fast.benchmark.operations import count_entropy_path, count_transforms
from mlic_fast.benchmark.pictures import synthetic_photograph
from mlic_fast.benchmark.stages import Stopwatch, watched
from mlic_fast.cli import main
from mlic_fast.codec import Codec
from mlic_fast.engine import exact
from mlic_fast.engine.arithmetic import SpecOps
from mlic_fast.engine.pack import pack
from mlic_fast.models import MlicModel, reference, save_checkpoint
from mlic_fast.models.mlic import TrainingQuantiser


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "matrix_peak", lambda dtype: 1e9)
    monkeypatch.setattr(module, "integer_peak", lambda isa, threads: 1e9)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(lively_model(SMALL["mlic"]), tmp_path / "model.safetensors")
    arguments = ["bench", "--model", str(tmp_path / "model.safetensors"), "--size", "70x33"]
    arguments += ["--size", "1x1", "--runs", "2", "--against", "reference"]
    assert main([*arguments, "--json", str(tmp_path / "result.json")]) == 0
    text = capsys.readouterr().out
    document = json.loads((tmp_path / "result.json").read_text())
    assert {"cpu", "cores", "instruction_sets", "torch", "commit"} <= document["machine"].keys()
    first, second = document["results"]
    assert (first["width"], first["height"], second["width"]) == (70, 33, 1)
    assert list(first["engines"]) == ["cpu", "reference"]
    for way, transform in (("encode", "g_a + h_a"), ("decode", "g_s")):
        stages = {"entropy path", "range coder", transform, "other"}
        ours, theirs = (engine[way] for engine in first["engines"].values())
        assert first["ratio"][way] == theirs["median_ms"] / ours["median_ms"]
        assert set(ours["stages"]) == set(theirs["stages"]) == stages
        assert ours["floor_ms"] > 0 and "floor_ms" not in theirs
        assert ours["p10_ms"] <= ours["median_ms"] <= ours["p90_ms"]
    assert "entropy path" in text and "times as fast" in text
    assert main([*arguments[:5], "--against", "cpu"]) == 2


def test_a_stopwatch_counts_every_moment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Stopwatch()

    def spend(seconds: float) -> None:
        now[0] += seconds

    coder = watch.wrap("range coder", spend)

    def path() -> None:
        spend(1)
        coder(4)
        coder(8)

    inner = watch.wrap("entropy path", path)
    seconds = watch.time(lambda: (inner(), spend(16)))
    assert seconds == {"total": 29, "entropy path": 1, "range coder": 12, "other": 16}


@pytest.mark.parametrize("engine", ["spec", "reference"])
def test_nothing_stays_wrapped(engine: str) -> None:
    codec = mlic_fast.load(lively_model(SMALL["mlic"]), engine=engine)
    owners = (exact, reference, vars(codec._engine).get("_transforms", codec.model), codec.model)
    before = [dict(vars(owner)) for owner in owners]
    with watched(codec) as watch:
        assert watch.time(lambda: codec.compress(synthetic_photograph(64, 64)))["total"] > 0
        assert [dict(vars(owner)) for owner in owners] != before
    assert [dict(vars(owner)) for owner in owners] == before


def test_a_wrong_engine_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively_model(SMALL["mlic"])
    codecs = [mlic_fast.load(model, engine=engine) for engine in ("cpu", "spec")]
    original = Codec.decode_latents

    def decode_latents(self: Codec, data: bytes) -> torch.Tensor:
        y_hat = original(self, data)
        return y_hat + 1 if self.engine == "spec" else y_hat

    image = synthetic_photograph(64, 64)
    assert compare(codecs, image, 1)["engines"].keys() == {"cpu", "spec"}
    monkeypatch.setattr(Codec, "decode_latents", decode_latents)
    with pytest.raises(WrongResultError, match="different latents"):
        compare(codecs, image, 1)


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
    exact.code_latents(SpecOps(packed), z, lambda i, p, s, m, _: np.zeros(m.shape, np.int32))
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
