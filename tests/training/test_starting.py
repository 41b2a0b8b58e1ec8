"""Training from checkpoints, and options that cannot be."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lively import TINY
from small_runs import assert_equal, options

import mlic_fast
from mlic_fast.errors import CheckpointError
from mlic_fast.models import create_model, load_checkpoint, save_checkpoint
from mlic_fast.training import TrainConfig, Trainer, TrainingError, load_state, train
from mlic_fast.training import trainer as trainer_module
from mlic_fast.training.export import export


def test_model_and_warm_start_from_checkpoints(photographs: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = create_model(TINY)
    path = str(tmp_path / "trained.safetensors")
    save_checkpoint(trained, path)
    single = trainer_module.build_model(options(photographs, tmp_path, model=path))
    assert single.training
    assert_equal(dict(single.state_dict()), dict(trained.state_dict()))

    lmbda = (0.0018, 0.0130)
    config = options(photographs, tmp_path, warm_start=path, lmbda=lmbda)
    several = trainer_module.build_model(config).state_dict()
    assert "gain.log_gain" in several
    assert torch.equal(
        several["g_a.analysis_transform.6.weight"],
        trained.state_dict()["g_a.analysis_transform.6.weight"],
    )
    with pytest.raises(TrainingError, match="--warm-start"):
        trainer_module.build_model(options(photographs, tmp_path, model=path, lmbda=lmbda))
    for source in ({"model": path}, {"warm_start": path}):
        with pytest.raises(TrainingError, match="--start klt is for fresh networks"):
            trainer_module.build_model(options(photographs, tmp_path, start="klt", **source))


def test_gains_of_other_lambdas_are_interpolated(photographs: Path, tmp_path: Path) -> None:
    trained = create_model(replace(TINY, lambdas=(0.01, 0.04)))
    trained.gain.log_gain.data += torch.tensor([[0.5], [1.0]])
    path = str(tmp_path / "trained.safetensors")
    save_checkpoint(trained, path)
    lmbda = (0.0025, 0.01, 0.02, 0.04, 0.16)
    model = trainer_module.build_model(options(photographs, tmp_path, warm_start=path, lmbda=lmbda))
    table = trained.gain.log_gain
    root = math.log(4) / 2
    expected = [table[0] - root, table[0], table.mean(0), table[1], table[1] + root]
    assert torch.allclose(model.gain.log_gain, torch.stack(expected), atol=1e-6)
    ends = trained.gain.log_inverse_gain
    assert torch.allclose(model.gain.log_inverse_gain[0], ends[0] + root, atol=1e-6)


def test_training_goes_on_from_exported_weights(photographs: Path, tmp_path: Path) -> None:
    source, target = (str(tmp_path / f"{name}.safetensors") for name in ("source", "target"))
    trained = create_model(TINY)
    save_checkpoint(trained, source)
    identity = export(source, target)
    assert mlic_fast.load(target, device="cpu").model_id == identity[:4]
    assert Path(target).stat().st_size < 0.6 * Path(source).stat().st_size
    constants = dict(trained.named_buffers())
    assert constants["gaussian_conditional.likelihood_lower_bound.bound"] == torch.tensor([1e-9])
    assert_equal(dict(load_checkpoint(target).named_buffers()), constants)

    save_checkpoint(create_model(TINY).half(), target)
    model = trainer_module.build_model(options(photographs, tmp_path, model=target))
    assert_equal(dict(model.named_buffers()), constants)


def test_resuming_from_what_is_no_training_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_state(tmp_path)
    (tmp_path / "last.pt").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="not a training checkpoint"):
        load_state(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="--warm-start"):
        load_state(tmp_path)


def test_resuming_with_other_parameters(photographs: Path, tmp_path: Path) -> None:
    config = options(photographs, tmp_path, steps=1)
    train(config)
    state = load_state(tmp_path / "run")
    state["layout"].pop()
    with pytest.raises(CheckpointError, match=r"does not fit the run.*other parameters"):
        Trainer(config, state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 100}, "multiples of 64"),
        ({"lmbda": (0.2, 0.1)}, "ascending"),
        ({"metric": "ms-ssim", "patch_size": 128}, "192"),
        ({"late_patch_size": 100}, "multiples of 64"),
        ({"hyper_lr": 0.0}, "positive"),
        ({"minutes": 0.0}, "positive"),
        ({"reduced": 1.5}, "from 0 to 1"),
        ({"start": "zero"}, "random, klt"),
    ],
)
def test_wrong_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainConfig(**({"data": "", "output": ""} | changes))
