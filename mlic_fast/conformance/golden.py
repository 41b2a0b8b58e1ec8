"""Reading and writing golden files."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from mlic_fast.atomic_files import write_atomically
from mlic_fast.engine.packing.packed import PackedModel
from mlic_fast.engine.packing.packer import load_packed, pack, save_packed
from mlic_fast.errors import CheckpointError
from mlic_fast.model_sources import WEIGHTS
from mlic_fast.models.checkpoints import load_checkpoint
from mlic_fast.models.mlic import Transforms

_MODEL = "model.safetensors"
_EXPECTED = "expected.json"
_SUFFIX = ".mlic"

#: What is hashed, by name in coding order, and ``digest``.
Expected = dict[str, str]


@dataclass(frozen=True)
class Golden:
    """A packed model, its transforms, its streams by name and what they decode to.

    A golden file of the shipped model does not hold it: ``shipped`` is true then.
    """

    model: Transforms
    packed: PackedModel
    streams: dict[str, bytes]
    expected: dict[str, Expected]
    shipped: bool = False


def is_golden(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a zip archive, as golden files are."""
    return zipfile.is_zipfile(path)


def read_golden(path: str | os.PathLike[str]) -> Golden:
    """Raises CheckpointError for a file that is no golden file or is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        expected = json.loads(members[_EXPECTED])
        streams = {name: members[name + _SUFFIX] for name in expected}
        shipped = _MODEL not in members
        loaded = _load_shipped() if shipped else _load(members[_MODEL])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not a sound golden file: {error}") from error
    if loaded is None:
        raise CheckpointError(f"{path} is not a sound golden file: it holds no packed model")
    return Golden(*loaded, streams, expected, shipped)


def _load_shipped() -> tuple[Transforms, PackedModel]:
    model = load_checkpoint(WEIGHTS / "photo.safetensors").eval().requires_grad_(False)
    return model, pack(model)


def _load(data: bytes) -> tuple[Transforms, PackedModel] | None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / _MODEL
        file.write_bytes(data)
        return load_packed(file)


def write_golden(golden: Golden, path: str | os.PathLike[str]) -> None:
    """The same content gives the same bytes."""
    members = {}
    if not golden.shipped:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / _MODEL
            save_packed(golden.model, golden.packed, file)
            members[_MODEL] = file.read_bytes()
    members |= {name + _SUFFIX: data for name, data in golden.streams.items()}
    members[_EXPECTED] = (json.dumps(golden.expected, indent=1) + "\n").encode()
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)  # dated 1980
            info.external_attr = 0o644 << 16
            archive.writestr(info, data, zipfile.ZIP_DEFLATED, 9)
    write_atomically(path, buffer.getvalue())
