"""Golden streams, on every engine and instruction set; and that a deviation is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lively import SMALL, lively_model

import mlic_fast
from mlic_fast.cli import main
from mlic_fast.conformance import engines, golden_files
from mlic_fast.conformance.engines import backends, codec_on, create_ops
from mlic_fast.conformance.golden import read_golden, write_golden
from mlic_fast.conformance.recorder import Recorder
from mlic_fast.conformance.verification import record, verify_golden
from mlic_fast.engine.cpu import cpu_operations
from mlic_fast.engine.packing.packer import load_packed
from mlic_fast.models import save_checkpoint

VARIANTS = {"mlic", "mlic_plus", "mlic_plus_plus"}


def test_there_are_golden_files_of_every_variant() -> None:
    configs = [read_golden(path).packed.config for path in golden_files()]
    assert {config.variant for config in configs} == VARIANTS
    assert {config.weight_family for config in configs} == {"current", "2023"}
    assert {config.transforms for config in configs} == {"residual", "blocks"}
    assert any(config.rates for config in configs)
    assert any(read_golden(path).shipped for path in golden_files())


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("path", golden_files(), ids=lambda path: path.stem)
def test_golden_streams(path: Path, backend: str) -> None:
    problems = [(c.stream, c.problem) for c in verify_golden(path, [backend]) if c.problem]
    assert problems == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the backend gpu is one of all")
@pytest.mark.parametrize("name", ["2023", "blocks"])
def test_a_golden_stream_on_the_gpu_kernels(name: str) -> None:
    """In the interpreter: one stream, of the weight family that no other test runs there; and one
    with exact pixels.
    """
    pytest.importorskip("triton", reason="triton is not installed")
    from mlic_fast.engine.gpu.gpu_operations import GpuOps

    (path,) = [path for path in golden_files() if name in path.stem]
    golden = read_golden(path)
    recorder = Recorder(GpuOps(golden.packed, torch.device("cpu")))
    codec = codec_on(recorder, golden.model, golden.packed)
    found = record(codec, recorder, golden.streams["one_pixel"])
    assert found == golden.expected["one_pixel"]


def test_the_latest_coding_is_recorded() -> None:
    golden = read_golden(golden_files()[0])
    ops = create_ops("cpu:scalar", golden.packed)
    recorder = Recorder(ops)
    codec = codec_on(recorder, golden.model, golden.packed)
    for stream in ("odd", "one_pixel"):
        codec.decode_latents(golden.streams[stream])
        assert len(recorder.symbols) == 1 + len(recorder.indexes)
    alone = Recorder(ops)
    codec_on(alone, golden.model, golden.packed).decode_latents(golden.streams["one_pixel"])
    assert recorder.hashes == alone.hashes
    assert all(map(np.array_equal, recorder.symbols, alone.symbols))


def test_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    class SeveralThreads(cpu_operations.CpuOps):
        def __init__(self, packed: object, *, isa: str | None = None) -> None:
            super().__init__(packed, isa=isa, threads=counts[-1])

    monkeypatch.setattr(engines, "CpuOps", SeveralThreads)
    for threads in (1, 3, 7):
        counts.append(threads)
        assert create_ops("cpu:scalar", read_golden(golden_files()[0]).packed).threads == threads
        checks = list(verify_golden(golden_files()[0], ["cpu"]))
        assert checks and not [check for check in checks if check.problem]


def test_a_deviation_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = read_golden(golden_files()[0])
    golden.expected["odd"]["pass 1 (slice 0, non-anchors) means"] = "0" * 64
    altered = bytearray(golden.streams["extreme"])
    altered[-1] ^= 1
    golden.streams["extreme"] = bytes(altered)
    path = tmp_path / "altered.zip"
    write_golden(golden, path)
    assert main(["verify", str(path), "--engine", "cpu:scalar"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "one_pixel" in line] == [f"{path}  one_pixel  cpu:scalar  ok"]
    assert any(
        "odd" in line and "FAILED: pass 1 (slice 0, non-anchors) means" in line for line in lines
    )
    assert any("extreme" in line and "FAILED: " in line for line in lines)
    assert lines[-1] == "4 checks, 2 failed"


def test_a_wrong_bit_in_a_kernel_is_found(wrong_bit: None) -> None:
    problems = {c.stream: c.problem for c in verify_golden(golden_files()[0], ["cpu:scalar"])}
    assert all(problems.values())


def test_golden_files_are_written_alike(tmp_path: Path) -> None:
    source = golden_files()[0]
    write_golden(read_golden(source), tmp_path / "again.zip")
    first, second = read_golden(source), read_golden(tmp_path / "again.zip")
    assert first.packed.digest() == second.packed.digest()
    assert first.streams == second.streams and first.expected == second.expected
    write_golden(second, tmp_path / "third.zip")
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "third.zip").read_bytes()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_checkpoint(lively_model(SMALL["mlic"]), path)
    return path


def test_packed_files_are_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    """In other processes, with another seed of hashes and another number of threads."""
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-m", "mlic_fast.cli", "pack", checkpoint, tmp_path / seed],
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": seed, "PATH": ""},
            check=True,
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_packed_file_and_its_checkpoint_are_one_model(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "packed.safetensors"
    assert main(["pack", str(checkpoint), str(packed)]) == 0
    assert load_packed(packed) is not None
    image = torch.randint(0, 256, (3, 70, 33), dtype=torch.uint8)
    data = mlic_fast.load(str(checkpoint), engine="spec").compress(image)
    codec = mlic_fast.load(str(packed))
    assert codec.model_id.hex() in capsys.readouterr().out
    assert codec.decompress(data).shape == image.shape
    stream = tmp_path / "image.mlic"
    stream.write_bytes(data)
    arguments = ["verify", str(stream), "--model", str(packed), "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert [check["backend"] for check in document["checks"]] == backends()
    stream.write_bytes(stream.read_bytes()[:-3])
    assert main(arguments) == 1


def test_usage(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "there"
    output.write_bytes(b"")
    assert main(["pack", str(checkpoint), str(output)]) == 2
    assert main(["pack", str(checkpoint), str(output), "--force"]) == 0
    assert main(["pack", str(output), str(tmp_path / "new")]) == 2
    assert main(["pack", str(tmp_path / "missing"), str(tmp_path / "new")]) == 1
    assert main(["verify", str(tmp_path / "missing.mlic")]) == 2
    assert main(["verify", "--engine", "abacus"]) == 1
    assert "abacus" in capsys.readouterr().err
