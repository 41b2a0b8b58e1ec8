"""Training checkpoints: everything that a run needs to go on as if it had never stopped.

Patches, rates and noise are pure functions of (seed, step, rank), so no random state is stored.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from mlic_fast.errors import CheckpointError

STATE_FILE = "last.pt"
_KEYS = frozenset({"options", "config", "step", "model", "optimizer", "layout", "average"})


def save_state(state: dict[str, Any], folder: Path) -> None:
    """Writes ``last.pt`` so that a reader, or a crash half-way, meets the old file or the new one
    and nothing else.
    """
    part = folder / (STATE_FILE + ".part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, folder / STATE_FILE)


def load_state(source: str | Path) -> dict[str, Any]:
    """Reads a training checkpoint, given as its file or its run folder; raises
    :class:`CheckpointError`.
    """
    path = Path(source)
    if path.is_dir():
        path = path / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give a run folder or its {STATE_FILE}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files of other kinds
        raise CheckpointError(f"{path} is not a training checkpoint: {error}") from error
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        raise CheckpointError(
            f"{path} holds no optimiser state: resume from {STATE_FILE}, or use --warm-start"
        )
    return state
