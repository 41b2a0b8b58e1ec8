"""What a codec is made of: a model that is given, or a file that holds one."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlic_fast.engine.packing.packed import PackedModel, PackedTransforms
from mlic_fast.engine.packing.stored import read_stored
from mlic_fast.engine.surroundings import surroundings
from mlic_fast.errors import CheckpointError, WrongModelError

if TYPE_CHECKING:
    from mlic_fast.models.mlic import MlicModel, Transforms

#: The files of the models that come with the package.
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ModelSource:
    """What a codec is made of: the float model, or packed transforms and an identity."""

    packed: PackedModel
    file: Path | None
    model: Transforms | None = None
    transforms: PackedTransforms | None = None
    identity: bytes | None = None


def read_packed_source(path: Path) -> ModelSource | None:
    """The source of a codec from results of packing, which needs no PyTorch; None without them.

    Only files that come with the package are trusted so far.
    """
    stored = read_stored(path) if path.parent == WEIGHTS else None
    if stored is None:
        return None
    return ModelSource(stored.packed, path, None, stored.transforms, stored.identity)


def read_source(model: Any, path: Path | None) -> ModelSource:
    """The source of a codec, from a model or from what a file holds."""
    from mlic_fast.engine.packing.packer import load_packed, pack
    from mlic_fast.models.checkpoints import load_checkpoint

    loaded = load_packed(path) if path is not None else None
    if loaded is None:
        # A copy of what is given: the caller may train on; a codec never changes.
        whole = copy.deepcopy(model).float() if path is None else load_checkpoint(path)
        loaded = whole, pack(whole)
    return ModelSource(loaded[1], path, model=loaded[0].eval().requires_grad_(False))


def path_of(model: Any) -> Path | None:
    """The path of a model file; None for a model. Raises CheckpointError for what is neither."""
    if isinstance(model, str) and model == "photo":
        return WEIGHTS / "photo.safetensors"
    if isinstance(model, (str, os.PathLike)):
        if not Path(model).exists():
            raise CheckpointError(f"no model called {os.fspath(model)!r}: give 'photo' or a file")
        return Path(model)
    from mlic_fast.models.mlic import MlicModel

    if isinstance(model, MlicModel):
        return None
    raise CheckpointError(
        f"cannot load a {type(model).__name__}: give 'photo', a checkpoint file or a model"
    )


def read_float_model(path: Path, identity: bytes) -> MlicModel:
    """The float model of a codec that was made without it.

    Raises WrongModelError if the file holds another one by now.
    """
    from mlic_fast.models.checkpoints import load_checkpoint

    stored = read_stored(path)
    if stored is None or stored.identity != identity:
        raise WrongModelError(f"{path} holds another model than when the codec was made")
    with surroundings():
        return load_checkpoint(path).requires_grad_(False)
