"""What tests of the trainer share: pictures, options, what a step changes."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlic_fast.training import TrainConfig, Trainer

CPU = torch.device("cpu")


def smooth(seed: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 5, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return (image.clamp(0, 1) * 255).to(torch.uint8)


def options(photographs: Path, tmp_path: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "data": str(photographs),
        "output": str(tmp_path / "run"),
        "model": "tiny",
        "steps": 4,
        "batch_size": 2,
        "patch_size": 64,
        "warmup": 2,
        "log_every": 1,
        "device": "cpu",
    }
    return TrainConfig(**(values | changes))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def movements(trainer: Trainer, step: int = 0) -> dict[str, float]:
    """By how much a step moves each parameter at most."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.step = step
    trainer._train_step(0.0)
    after = dict(trainer.model.named_parameters())
    return {name: (after[name] - before[name]).abs().max().item() for name in before}


def everything(trainer: Trainer) -> dict[str, Any]:
    """Copies of all that a step may change, but for its counts."""
    state = trainer.machine.state() | {"model": trainer.model.state_dict(), "skipped": None}
    return copy.deepcopy(state)


def assert_equal(a: Any, b: Any, path: str = "") -> None:
    assert type(a) is type(b), path
    if isinstance(a, Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}/{i}")
    else:
        assert a == b, path
