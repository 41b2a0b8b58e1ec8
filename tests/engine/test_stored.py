"""What is stored with the shipped model is what packing finds out; nothing damaged is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lively import BLOCKS, lively_model

from mlic_fast.engine.identity import model_identity
from mlic_fast.engine.packing.pack_transforms import pack_transforms
from mlic_fast.engine.packing.packed import PackedTransforms
from mlic_fast.engine.packing.packer import pack
from mlic_fast.engine.packing.stored import IDENTITY, StoredModel, read_stored, with_packing
from mlic_fast.model_sources import WEIGHTS
from mlic_fast.models import MlicModel, load_checkpoint
from mlic_fast.models.checkpoints import checkpoint_bytes

PHOTO = WEIGHTS / "photo.safetensors"


def same_transforms(a: PackedTransforms, b: PackedTransforms) -> bool:
    arrays = [
        {
            "log_gain": packed.log_gain,
            "log_inverse_gain": packed.log_inverse_gain,
            **{f"{name}.bias": layer.bias for name, layer in packed.layers.items()},
            **{f"{name}.weight": layer.segments[0].weight for name, layer in packed.layers.items()},
            **{f"{name}.scale": layer.segments[0].scale for name, layer in packed.layers.items()},
            **packed.stages,
        }
        for packed in (a, b)
    ]
    return (
        arrays[0].keys() == arrays[1].keys()
        and all(np.array_equal(array, arrays[1][name]) for name, array in arrays[0].items())
        and (a.config, a.exponents) == (b.config, b.exponents)
    )


def check(stored: StoredModel | None, model: MlicModel) -> None:
    assert stored is not None
    packed = pack(model)
    assert stored.packed.digest() == packed.digest()
    assert stored.packed.exponents == packed.exponents
    assert same_transforms(stored.transforms, pack_transforms(model))
    assert stored.identity == model_identity(model, packed)


def test_the_shipped_file_holds_what_packing_finds() -> None:
    """A change of the packer makes it stale: run ``python -m mlic_fast.training.export`` on it."""
    check(read_stored(PHOTO), load_checkpoint(PHOTO))


@pytest.mark.parametrize("half", [True, False])
def test_damage(half: bool, tmp_path: Path) -> None:
    model = lively_model(BLOCKS).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.half()
    packed = pack(model)
    identity = model_identity(model, packed)
    rounded = model if half else model.float()
    plain = checkpoint_bytes(rounded, {IDENTITY: identity.hex()})
    data = with_packing(plain, packed, pack_transforms(model))
    file = tmp_path / "model.safetensors"

    def found(content: bytes) -> StoredModel | None:
        file.write_bytes(content)
        return read_stored(file)

    check(found(data), load_checkpoint(file))
    size = 8 + int.from_bytes(data[:8], "little")
    exponent = data.index(b'"transforms\\"') + 40
    for place in (3, 20, exponent, size + 100, len(data) - 1):
        assert found(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]) is None, place
    for content in (b"", b"{}", data[:size], data[:-1], data + b"\0", plain):
        assert found(content) is None
    assert read_stored(tmp_path / "missing") is None
