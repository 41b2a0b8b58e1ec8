"""``mlic-fast train``, and several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lively import TINY
from small_runs import rows

from mlic_fast.cli import main
from mlic_fast.models import create_model, save_checkpoint
from mlic_fast.training import load_state


def test_command_trains_and_resumes_with_its_options(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: object) -> int:
        return main(["train", *map(str, arguments)])

    run = tmp_path / "run"
    common = ("--batch-size", 1, "--patch-size", 64, "--log-every", 1, "--device", "cpu")
    common += ("--start", "klt", "--transforms-lr", 0.5)
    assert call(photographs, "--output", run, "--model", "tiny", "--steps", 1, *common) == 0
    assert load_state(run)["options"]["lmbda"] == (0.0130,)
    assert call("--resume", run, "--steps", 3) == 0
    state = load_state(run)
    assert state["step"] == 3 and state["options"]["batch_size"] == 1
    assert (state["options"]["start"], state["options"]["transforms_lr"]) == ("klt", 0.5)
    assert [row["step"] for row in rows(run / "log.csv")] == ["1", "2", "3"]
    assert call(photographs) == 2
    assert call(photographs, "--output", run, "--model", "missing.pth") == 1
    assert "--output RUNDIR" in (errors := capsys.readouterr().err) and "missing.pth" in errors


TWO_PROCESSES = """
import os, sys, torch
from torch import distributed as dist
from mlic_fast.models import PRESETS, load_checkpoint
from mlic_fast.training import TrainConfig, Trainer, trainer
data, output, model = sys.argv[1:]
PRESETS["tiny"] = load_checkpoint(model).config
trainer.START_PIXELS = 2**14
trainer = Trainer(TrainConfig(data=data, output=output, model="tiny", start="klt", steps=2,
                              batch_size=1, patch_size=64, warmup=0, log_every=1, device="cpu"))
trainer._seed_step()
patches = trainer.patches(64).draw()
trainer.run()
own = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
gathered = [torch.empty_like(own) for _ in range(2)]
dist.all_gather(gathered, own)
assert torch.equal(*gathered)
both = [torch.empty_like(patches) for _ in range(2)]
dist.all_gather(both, patches)
assert not torch.equal(*both)
dist.barrier()  # gloo aborts if one process leaves while the other still reads from it
dist.destroy_process_group()
os._exit(0)  # gloo's threads, where they still run on a busy machine, abort an ordinary exit
"""


def test_two_processes_share_one_model_and_see_different_patches(
    photographs: Path, tmp_path: Path
) -> None:
    script, model = tmp_path / "run.py", tmp_path / "tiny.safetensors"
    script.write_text(TWO_PROCESSES)
    save_checkpoint(create_model(TINY), model)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [str(script), str(photographs), str(tmp_path / "run"), str(model)]
    done = subprocess.run(
        launch + arguments, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(tmp_path / "run" / "log.csv")] == ["1", "2"]
