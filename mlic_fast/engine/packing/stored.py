"""The results of packing, stored with the weights, so that loading has only to round.

A checkpoint file of a model with block transforms may hold, beside its weights, the scales of all
layers, the exponents of all activations, the probability tables and the model's identity. A digest
of the whole file guards them: if it does not fit, as after a change of a weight, none of them is
used. PyTorch is not needed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mlic_fast.coder import Tables
from mlic_fast.engine.packing.integer_weights import Array, path_layers
from mlic_fast.engine.packing.pack_transforms import transform_layers
from mlic_fast.engine.packing.packed import PackedModel, PackedTransforms
from mlic_fast.models.config import CONFIG_KEY, PACKING, MlicConfig

#: In the metadata: exponents; digest of the rest of the file; identity of the model.
EXPONENTS, DIGEST, IDENTITY = "mlic_fast.packing", "mlic_fast.digest", "identity"
#: Version of the packer; results of another version are not used.
VERSION = 1

_DTYPES = {"F16": "<f2", "F32": "<f4", "I32": "<i4", "I64": "<i8", "U16": "<u2", "U8": "u1"}

Header = dict[str, Any]


@dataclass(frozen=True)
class StoredModel:
    """All that a codec on exact transforms is made of."""

    packed: PackedModel
    transforms: PackedTransforms
    identity: bytes


def read_stored(path: str | os.PathLike[str]) -> StoredModel | None:
    """What a file holds; None if it holds no results of packing, or its digest does not fit."""
    try:
        data = np.memmap(path, np.uint8, mode="r")  # of which nothing is kept
        header, body = _split(data)
        sound = _digest(header, body) == header["__metadata__"][DIGEST]
    except (OSError, LookupError, ValueError, TypeError, AttributeError):
        return None
    if not sound or json.loads(header["__metadata__"][EXPONENTS])["version"] != VERSION:
        return None
    with np.errstate(all="ignore"):
        return _stored(header, body)


def with_packing(data: bytes, packed: PackedModel, transforms: PackedTransforms) -> bytes:
    """A checkpoint file, which names its model's identity, with what packing found out."""
    header, body = _split(np.frombuffer(data, np.uint8))
    exponents = {"version": VERSION, "path": packed.exponents, "transforms": transforms.exponents}
    metadata = header["__metadata__"]
    metadata[EXPONENTS] = json.dumps(exponents)
    parts, end = [body], len(body)
    for name, array in _found(packed, transforms).items():
        dtype = next(key for key, value in _DTYPES.items() if np.dtype(value) == array.dtype)
        offsets = [end, end + array.nbytes]
        header[PACKING + name] = {"dtype": dtype, "shape": array.shape, "data_offsets": offsets}
        parts.append(np.frombuffer(array.tobytes(), np.uint8))
        end += array.nbytes
    body = np.concatenate(parts)
    metadata[DIGEST] = _digest(header, body)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body.tobytes()


def _found(packed: PackedModel, transforms: PackedTransforms) -> dict[str, Array]:
    scales = {
        f"scales.{name}.{i}": segment.scale
        for part in (packed, transforms)
        for name, layer in part.layers.items()
        for i, segment in enumerate(layer.segments)
    }
    stages = {f"stages.{stage}": scale for stage, scale in transforms.stages.items()}
    tables = {f"tables.{name}": array for name, array in packed.tables.to_arrays().items()}
    return {**scales, **stages, **tables}


def _stored(header: Header, body: npt.NDArray[np.uint8]) -> StoredModel:
    metadata = header["__metadata__"]
    config = MlicConfig.from_json(metadata[CONFIG_KEY])
    exponents = json.loads(metadata[EXPONENTS])
    weights = _Tensors(header, body)
    found = {name: weights[name] for name in weights if name.startswith(PACKING)}
    known = _below("scales.", found)
    packed = PackedModel(
        config,
        path_layers(config, weights, known),
        exponents["path"],
        Tables.from_arrays(_below("tables.", found)),
    )
    transforms = transform_layers(config, weights, _below("stages.", found), known)
    transforms = replace(transforms, exponents=exponents["transforms"])
    return StoredModel(packed, transforms, bytes.fromhex(metadata[IDENTITY]))


def _below(group: str, found: Mapping[str, Array]) -> dict[str, Array]:
    prefix = PACKING + group
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def _split(data: npt.NDArray[np.uint8]) -> tuple[Header, npt.NDArray[np.uint8]]:
    """Header and tensors of a safetensors file."""
    end = 8 + int.from_bytes(data[:8].tobytes(), "little")
    return json.loads(data[8:end].tobytes()), data[end:]


def _digest(header: Header, body: npt.NDArray[np.uint8]) -> str:
    metadata = {k: v for k, v in header["__metadata__"].items() if k != DIGEST}
    digest = hashlib.sha256(
        json.dumps({**header, "__metadata__": metadata}, sort_keys=True).encode()
    )
    digest.update(body.data)
    return digest.hexdigest()


#: float16 -> float32, by bits: half the time of numpy's conversion.
_SINGLE = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


class _Tensors(Mapping[str, Array]):
    """The tensors of a file, read when they are asked for: half precision as float32."""

    def __init__(self, header: Header, body: npt.NDArray[np.uint8]) -> None:
        self._entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        self._body = body

    def __getitem__(self, name: str) -> Array:
        entry = self._entries[name]
        start, stop = entry["data_offsets"]
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        if dtype == np.float16:
            array = _SINGLE.take(self._body[start:stop].view("<u2"), mode="wrap")
        else:
            array = np.array(self._body[start:stop]).view(dtype)  # a copy, which is aligned
        return array.reshape(entry["shape"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
