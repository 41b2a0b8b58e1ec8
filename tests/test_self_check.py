"""``device="auto"``: the GPU where a golden stream comes out right, else the CPU and a warning.

A codec of the CPU engine stands for the one on a GPU.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lively import SMALL, lively_model

import mlic_fast
from mlic_fast import codec as module
from mlic_fast import self_check
from mlic_fast.cli import main
from mlic_fast.codec import Codec
from mlic_fast.errors import DeviceMemoryError, EngineError

SMALL_MODEL = lively_model(SMALL["mlic"])


class FakeGpu:
    """``made``: devices that codecs were asked for; ``checks``: what was checked."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.checks: list[str] = []
        self.driver = "580.1"
        self.problem: str | None = None


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpu:
    fake = FakeGpu()
    right_check = self_check.check

    def device(name: str, engine: str) -> torch.device:
        fake.made.append(name)
        return torch.device("cpu")

    def check(codec: Codec) -> str | None:
        fake.checks.append(fake.driver)
        return right_check(codec)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "gpu_problem", lambda: fake.problem)
    monkeypatch.setattr(module, "resolve_device", device)
    monkeypatch.setattr(self_check, "check", check)
    monkeypatch.setattr(self_check, "_key", lambda device: f"H200, driver {fake.driver}")
    return fake


def silently(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mlic_fast.load(model)


def test_a_sound_gpu_is_checked_once_for_a_driver(gpu: FakeGpu, tmp_path: Path) -> None:
    silently("photo")
    silently(SMALL_MODEL)
    assert gpu.made == ["cuda"] * 2 and gpu.checks == ["580.1"]
    gpu.driver = "590.2"
    silently(SMALL_MODEL)  # loads the model of the golden stream
    assert gpu.checks == ["580.1", "590.2"]
    kept = json.loads((tmp_path / "mlic_fast" / "self-check.json").read_text())
    assert kept == {"H200, driver 580.1": None, "H200, driver 590.2": None}


def test_a_wrong_bit_is_named(gpu: FakeGpu, wrong_bit: None) -> None:
    for model in ("photo", SMALL_MODEL):  # the second one knows it from the first
        with pytest.warns(RuntimeWarning, match=r"slice 1, anchors\) means are wrong.*doctor"):
            assert mlic_fast.load(model).engine == "cpu"
    assert gpu.checks == ["580.1"]


def test_what_is_raised_is_not_kept(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(codec: Codec, stream: bytes, expected: object) -> None:
        raise DeviceMemoryError("all is taken")

    with monkeypatch.context() as patch:
        patch.setattr(self_check, "_problem", busy)
        for _ in range(2):
            with pytest.warns(RuntimeWarning, match="DeviceMemoryError: all is taken"):
                mlic_fast.load(SMALL_MODEL)
    assert len(gpu.checks) == 2
    gpu.problem = "Triton is not installed"
    with pytest.warns(RuntimeWarning, match="Triton is not installed"):
        mlic_fast.load(SMALL_MODEL)
    assert len(gpu.checks) == 2


def test_a_choice_is_not_checked(gpu: FakeGpu) -> None:
    gpu.problem = "none of its business"
    mlic_fast.load(SMALL_MODEL, device="cuda")
    mlic_fast.load(SMALL_MODEL, engine="cpu")
    assert gpu.checks == []


def test_a_damaged_cache_is_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "mlic_fast"
    self_check._remember("a", None)
    assert self_check._known() == {"a": None}
    for text in ("", "[1]", "{"):
        (folder / "self-check.json").write_text(text)
        assert self_check._known() == {}
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "self-check.json"))  # which is no folder
    self_check._remember("a", None)
    assert self_check._known() == {}


def test_devices_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert module.resolve_device("cuda:0", "auto") == "cuda:0"
    assert module.resolve_device("cuda", "auto") == "cuda:1"  # it stays that one
    with pytest.raises(EngineError, match="'cuda:2': 2 CUDA devices"):
        mlic_fast.load(SMALL_MODEL, device="cuda:2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_doctor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["auto"] == {
        "device": "cpu",
        "engine": "cpu",
        "why": "PyTorch finds no CUDA device here",
    }
    assert [(c["device"], c["problem"]) for c in found["self_checks"]] == [("cpu", None)]
    assert found["caches"]["mlic_fast"] == str(tmp_path / "mlic_fast")
    monkeypatch.setattr(self_check, "check", lambda codec: "pixels are wrong")
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("self-check on cpu: FAILED: pixels are wrong") for line in lines)
    assert lines[-1] == "auto takes cpu, engine cpu: PyTorch finds no CUDA device here"


@pytest.mark.gpu
def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    silently("photo")
    assert mlic_fast.load("photo").engine == "gpu"


@pytest.mark.gpu
def test_several_devices_in_one_process() -> None:
    """Each device on its own, whichever is the current one."""
    names = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    codecs = [mlic_fast.load("photo", device=name) for name in [*names, "cpu"]]
    image = (torch.rand(3, 70, 130) * 255).to(torch.uint8)
    streams = {codec.compress(image) for codec in codecs for _ in range(3)}
    assert len(streams) == 1
    for codec in codecs:
        (stream,) = streams
        assert codec.decompress(stream).device == codec.device
