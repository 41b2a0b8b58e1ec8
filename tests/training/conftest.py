"""A preset that trains in milliseconds, and pictures to train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lively import TINY
from small_runs import smooth

from mlic_fast.images import save_image
from mlic_fast.models import PRESETS
from mlic_fast.training import trainer as trainer_module


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A preset that trains in milliseconds, on one thread: sums have one order."""
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setattr(trainer_module, "START_PIXELS", 2**16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three smooth images of odd sizes, one of them in a subfolder."""
    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    for i, (name, size) in enumerate({"a": (70, 91), "b": (128, 64), "more/c": (65, 200)}.items()):
        save_image(smooth(i, *size), folder / f"{name}.png")
    return folder
