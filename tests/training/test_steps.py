"""Steps, runs that are stopped and resumed, precisions."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lively import TINY
from small_runs import assert_equal, everything, movements, options, rows, smooth
from torch import Tensor

from mlic_fast.images import save_image
from mlic_fast.models import create_model, load_checkpoint
from mlic_fast.training import TrainConfig, Trainer, TrainingError, load_state, train
from mlic_fast.training import trainer as trainer_module
from mlic_fast.training.flat import PARTS
from mlic_fast.training.graphics import make_graphics
from mlic_fast.training.log import Logs
from mlic_fast.training.patches import Patches, Pool
from mlic_fast.training.step import Controls, Step
from mlic_fast.training.validation import disorder


def test_loss_falls_on_one_image(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    image = smooth(5, 64, 64)
    save_image(image, folder / "a.png")
    config = options(folder, tmp_path, steps=90, lr=4e-3, validation=str(folder))
    trainer = Trainer(config)
    # One symmetry.
    patches = trainer.patches(64)
    patches.draw = lambda: (image[None].float() / 255).repeat(2, 1, 1, 1)  # type: ignore[method-assign]
    trainer._runners[64] = lambda: trainer.machine(patches)
    assert trainer.run()
    log = [float(row["loss"]) for row in rows(tmp_path / "run" / "log.csv")]
    assert len(log) == 90 and np.mean(log[-5:]) < 0.1 * np.mean(log[:5])
    validation = rows(tmp_path / "run" / "validation.csv")
    assert [row["step"] for row in validation] == ["90"]
    assert float(validation[0]["psnr"]) > 18
    assert validation[0]["ms_ssim"] == "nan"  # 64 pixels are too few
    model = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert model.config == TINY


@pytest.mark.parametrize(
    ("lmbda", "optimizer", "start"),
    [
        ((0.0130,), "adam", "random"),
        ((0.0018, 0.0130, 0.0483), "muon", "random"),
        ((0.0018, 0.0130, 0.0483), "muon", "klt"),
    ],
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    photographs: Path,
    tmp_path: Path,
    lmbda: tuple[float, ...],
    optimizer: str,
    start: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"lmbda": lmbda, "optimizer": optimizer, "start": start, "ema": 0.9}
    save_image(smooth(8, 131, 150), photographs / "larger.png")
    changes |= {"transforms_lr": 0.25, "schedule": "linear", "reduced": 0.5, "graphics": True}
    changes |= {"late_patch_size": 128, "z_free": 0.3, "batch_size": 5}
    whole = options(photographs, tmp_path, output=str(tmp_path / "whole"), **changes)
    assert train(whole)

    parts = options(photographs, tmp_path, output=str(tmp_path / "parts"), **changes)
    with monkeypatch.context() as patch:
        patch.setattr(Logs, "advance", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        assert not train(parts)
    assert load_state(tmp_path / "parts")["step"] == 1
    torch.manual_seed(123)  # nothing may hang on the state of the generator
    assert train(parts, load_state(tmp_path / "parts"))

    first, second = (load_state(tmp_path / name) for name in ("whole", "parts"))
    first["options"]["output"] = second["options"]["output"]
    del first["seconds"], second["seconds"]
    assert_equal(first, second)
    logs = [rows(tmp_path / name / "log.csv") for name in ("whole", "parts")]
    assert len(logs[0]) == 4
    for row in logs[0] + logs[1]:
        del row["images_per_second"]
    assert logs[0] == logs[1]


def test_quantiles_have_their_own_optimiser(photographs: Path, tmp_path: Path) -> None:
    trainer = Trainer(options(photographs, tmp_path, lr=1e-30, aux_lr=0.1))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.run()
    after = dict(trainer.model.named_parameters())
    moved = {name for name in after if (after[name] - before[name]).abs().max() > 1e-20}
    assert moved == {"entropy_bottleneck.quantiles"}


def test_parts_move_at_their_own_learning_rates(photographs: Path, tmp_path: Path) -> None:
    rates = {"lr": 1e-3, "transforms_lr": 0.25, "hyper_lr": 0.5, "residual_lr": 0.125}
    config = options(photographs, tmp_path, steps=1, warmup=0, clip=1e6, **rates)
    moves = movements(Trainer(replace(config, lmbda=(0.0018, 0.0483))))
    # Adam's first step is as long as the learning rate, unless the gradient is next to nothing.
    parts = {"g_a": 0.25, "g_s": 0.25, "h_a": 0.5, "h_s": 0.5, "lrp_anchor": 0.125, "gain": 1.0}
    for part, rate in parts.items():
        longest = max(move for name, move in moves.items() if name.startswith(f"{part}."))
        assert longest == pytest.approx(1e-3 * rate, rel=0.2)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_transforms_of_a_klt_begin_slowly(
    photographs: Path, tmp_path: Path, optimizer: str
) -> None:
    lmbda = (0.0018, 0.0483)
    config = options(photographs, tmp_path, start="klt", optimizer=optimizer, lmbda=lmbda)
    trainer = Trainer(config)
    steps = [movements(trainer, step) for step in range(2)]
    name = "g_a.analysis_transform.6.weight"
    assert steps[0]["gain.log_gain"] and not steps[0][name] and steps[1][name]


def test_a_step_whose_controls_are_zero_changes_nothing(photographs: Path, tmp_path: Path) -> None:
    """As the steps before the recording of a graph are."""
    trainer = Trainer(options(photographs, tmp_path, ema=0.9, optimizer="muon"))
    trainer._train_step(0.0)
    before = everything(trainer)
    trainer.machine.control(Controls([0.0] * len(PARTS), live=0.0))
    trainer._runners[64]()
    assert_equal(everything(trainer), before)
    assert trainer.machine.skipped.tolist() == [0, 0]


def test_a_klt_start_has_the_steps_of_either_metric(photographs: Path, tmp_path: Path) -> None:
    save_image(smooth(4, 200, 230), photographs / "large.png")
    common: dict[str, Any] = {"start": "klt", "patch_size": 192}
    squared = options(photographs, tmp_path, lmbda=(0.0018, 0.0483), **common)
    similar = replace(squared, metric="ms-ssim", lmbda=(1280 * 0.0018, 1280 * 0.0483))
    ours, theirs = (dict(Trainer(c).model.named_parameters()) for c in (squared, similar))
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-8), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_reads_nothing_back(precision: str) -> None:
    """Arrays without contents cannot be read: what runs on them can be recorded as a graph."""
    meta = torch.device("meta")
    model = create_model(replace(TINY, lambdas=(0.01, 0.02))).to(meta)
    config = TrainConfig(
        data="", output="", lmbda=(0.01, 0.02), optimizer="muon", ema=0.9, precision=precision
    )
    step = Step(model, config)
    pool = Pool(make_graphics(0, 128, 2), meta)
    step(Patches(pool, pool, 64, 10, reduced=0.3))
    assert step.totals.is_meta


def test_steps_with_infinite_gradients_are_skipped(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(options(photographs, tmp_path, ema=0.9, optimizer="muon", steps=5))
    trainer._train_step(0.0)
    criterion, before = trainer.machine.criterion.forward, everything(trainer)

    def broken(*args: Any) -> dict[str, Tensor]:
        return {k: v * (math.inf if k == "loss" else 1) for k, v in criterion(*args).items()}

    monkeypatch.setattr(trainer.machine.criterion, "forward", broken)
    trainer._train_step(0.0)
    assert_equal(everything(trainer), before)
    assert trainer.machine.skipped.tolist() == [1, 1]
    monkeypatch.setattr(trainer_module, "MOST_SKIPPED_IN_A_ROW", 3)
    with pytest.raises(TrainingError, match="3 gradients in a row were not finite at step 2"):
        trainer.run()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision(photographs: Path, tmp_path: Path, precision: str) -> None:
    def loss(precision: str) -> float:
        config = options(photographs, tmp_path, precision=precision, lmbda=(0.002, 0.02))
        trainer = Trainer(config)
        for _ in range(20):  # the scale of float16's loss has to fall first
            trainer._train_step(0.0)
            if trainer.machine.means():
                return trainer.machine.means()["loss"]
        raise AssertionError("no step was taken")

    assert loss(precision) == pytest.approx(loss("float32"), rel=0.02)


def test_a_run_lasts_minutes_without_its_pauses(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pause = tmp_path / "run" / "pause"

    def sleep(seconds: float) -> None:
        now[0] += 1000
        pause.unlink()

    def advance(logs: Logs) -> None:
        now[0] += 15
        if now[0] == 30:
            pause.touch()

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr(Logs, "advance", advance)
    assert train(options(photographs, tmp_path, minutes=1, steps=1, log_every=2))
    state = load_state(tmp_path / "run")
    assert (state["step"], state["seconds"], now[0]) == (4, 60, 1060)
    speeds = [float(row["images_per_second"]) for row in rows(tmp_path / "run" / "log.csv")]
    assert speeds == pytest.approx([4 / 30] * 2, rel=1e-4)


def test_what_does_not_rise_with_lambda_is_said() -> None:
    model = create_model(replace(TINY, lambdas=(0.01, 0.02, 0.04)))
    rising = [{"lmbda": 0.01 * i, "bpp": 0.1 * i, "psnr": 30.0 + i} for i in range(3)]
    assert disorder(model, rising) == []
    model.gain.log_gain.data[1, 5] = 9.0
    falling = [*rising[:2], rising[2] | {"psnr": 31.0}]
    assert disorder(model, falling) == [
        "psnr falls from lambda 0.01 to 0.02",
        "the gains of 1 of 64 channels fall somewhere",
    ]
