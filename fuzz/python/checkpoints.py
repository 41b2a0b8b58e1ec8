"""Checkpoints and packed files: any damage becomes a codec that codes, or `CheckpointError`.

An input is a list of damages to a file of a tiny model: a header that lies about sizes, kinds and
places of tensors, fields of the configuration of any value, tensors with odd values, bytes of any
value.
"""

from __future__ import annotations

import contextlib
import json
import random
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lively import BLOCKS, SMALL, lively_model

import mlic_fast
from mlic_fast import codec
from mlic_fast.engine.packing import stored
from mlic_fast.engine.packing.packer import pack, packed_bytes
from mlic_fast.errors import CheckpointError
from mlic_fast.models import load_checkpoint
from mlic_fast.models.checkpoints import checkpoint_bytes

assert codec and stored  # imported here, so that their coverage guides
torch.set_num_threads(1)
FILE = Path(tempfile.mkdtemp()) / "model.safetensors"
PICTURE = np.zeros((1, 1, 3), np.uint8)
ODD = [None, -1, 0, 1, 2, 3, 65, 4096, 4097, 1 << 31, 1 << 62, 1 << 70, 0.5, 1e400, "", "x", []]
ODD_REALS = [float("nan"), float("inf"), -1e38, 1e38, 1e-45, 0.0, 4e9, -1.0]
KINDS = ["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", 5]
_TINY: dict[str, Any] = {
    **{"N": 4, "M": 64, "slices": 2, "channel_context_channels": (4, 4), "lrp_channels": (4, 4)},
    "entropy_parameters_channels": (4, 4, 4),
}
_TINY_BLOCKS = {"block_channels": 4, "analysis_blocks": (1, 1), "synthesis_blocks": (1, 1)}


def files() -> list[bytes]:
    blocks = lively_model(replace(BLOCKS, **_TINY, **_TINY_BLOCKS))
    residual = replace(SMALL["mlic_plus_plus"], **_TINY, stage_channels=(4, 4, 4))
    return [
        packed_bytes(blocks, pack(blocks)),
        checkpoint_bytes(blocks),
        checkpoint_bytes(lively_model(residual)),
    ]


FILES = files()


def seeds() -> list[bytes]:
    return [
        bytes([number, *range(6 * what, 6 * what + 6)]) for number in (0, 1, 2) for what in range(9)
    ]


def mutate(data: bytes, source: random.Random, bend: Callable[[bytes], bytes]) -> bytes:
    if source.random() < 0.5:
        return bend(data)
    return data[:1] + bytes(source.randrange(256) for _ in range(6 * source.choice([1, 1, 2])))


class Choices:
    """Of the bytes of an input; the first of all when there are no more."""

    def __init__(self, data: bytes) -> None:
        self.left = list(data)

    def number(self, limit: int) -> int:
        found = 0
        for _ in range(1 + (limit > 256)):
            found = found << 8 | (self.left.pop(0) if self.left else 0)
        return found % limit

    def one_of(self, options: Sequence[Any]) -> Any:
        if not options:
            raise LookupError("nothing to choose from")
        return options[self.number(len(options))]


def damaged(data: bytes) -> bytes:
    choices = Choices(data)
    file = choices.one_of(FILES)
    (length,) = struct.unpack_from("<Q", file)
    header, tensors = json.loads(file[8 : 8 + length]), bytearray(file[8 + length :])
    claimed = None
    while choices.left:
        what = choices.number(8)
        names = [name for name in header if name != "__metadata__"]
        name = choices.one_of(names)
        entry = header[name]
        place = entry["data_offsets"]
        if what == 0 and entry["shape"]:
            entry["shape"][choices.number(len(entry["shape"]))] = choices.one_of(ODD)
        elif what == 1:
            entry["dtype"] = choices.one_of(KINDS)
        elif what == 2:
            place[choices.number(2)] = choices.one_of([*ODD, 4, 8])
        elif what == 3:
            header[choices.one_of(["new", *names])] = header.pop(name)
        elif what == 4:
            header["__metadata__"] = _other(header.get("__metadata__"), choices)
        elif what == 5:
            claimed = choices.one_of([0, 1, 7, 1 << 40, (1 << 63) + 1, (1 << 64) - 1])
        elif isinstance(place[0], int) and 0 <= place[0] <= len(tensors) - 4:
            count = max(1, (place[1] - place[0]) // 4) if isinstance(place[1], int) else 1
            at = place[0] + 4 * choices.number(count)
            value = struct.pack("<f", choices.one_of(ODD_REALS))
            if what == 7:
                value = bytes([choices.number(256)])
            tensors[at : at + len(value)] = value[: len(tensors) - at]
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head) if claimed is None else claimed) + head + tensors


def _other(metadata: Any, choices: Choices) -> Any:
    """With one value replaced, in the configuration or beside it."""
    if not isinstance(metadata, dict) or not metadata:
        return choices.one_of(ODD)
    key = choices.one_of(sorted(metadata))
    try:
        fields = json.loads(metadata[key])
        field = choices.one_of(sorted(fields))
        if isinstance(fields[field], list) and fields[field]:
            fields[field][choices.number(len(fields[field]))] = choices.one_of(ODD)
        else:
            fields[field] = choices.one_of([*ODD, "mlic", "mlic_plus", "blocks", "2023"])
        other = json.dumps(fields)
    except (ValueError, TypeError, LookupError):
        other = choices.one_of(["", "{}", "null", "[]", "NaN", 5])
    return {**metadata, key: other}


def check(data: bytes) -> None:
    FILE.write_bytes(damaged(data))
    with contextlib.suppress(CheckpointError):
        load_checkpoint(FILE)
    try:
        loaded = mlic_fast.load(FILE, device="cpu")
        stream = loaded.compress(PICTURE)
    except CheckpointError:
        return
    assert loaded.decompress(stream, "numpy").shape == PICTURE.shape
