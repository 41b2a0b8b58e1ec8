"""Loading: which files and models a codec can be made of, and what is imported."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lively import SMALL, lively_model
from safetensors import safe_open
from small_pictures import picture

import mlic_fast
from mlic_fast.codec import Codec, load
from mlic_fast.engine.packing.packer import pack, save_packed
from mlic_fast.errors import (
    CheckpointError,
    EngineError,
)
from mlic_fast.model_sources import WEIGHTS
from mlic_fast.models import MlicModel, save_checkpoint


def test_the_shipped_weights_name_themselves() -> None:
    """So that ``mlic-fast info`` needs no model."""
    codec = load()
    with safe_open(WEIGHTS / "photo.safetensors", framework="numpy") as file:
        assert bytes.fromhex(file.metadata()["identity"])[:4] == codec.model_id


# -- models, qualities, engines --------------------------------------------------------------


def test_files_of_a_model_give_the_same_codec(
    small_models: dict[str, MlicModel], variant: str, codec: Codec, tmp_path: Path
) -> None:
    model = small_models[variant]
    save_checkpoint(model, tmp_path / "float.safetensors")
    save_packed(model, pack(model), tmp_path / "packed.safetensors")
    image = picture(64, 70)
    data = codec.compress(image)
    for path in (tmp_path / "float.safetensors", str(tmp_path / "packed.safetensors")):
        other = load(path, device="cpu")
        assert other.model_id == codec.model_id
        assert other.compress(image) == data
        assert torch.equal(other.decompress(data), codec.decompress(data))
    with pytest.raises(EngineError, match="checkpoint"):
        load(tmp_path / "packed.safetensors", engine="reference", device="cpu")


def test_loading_leaves_the_model_alone(small_models: dict[str, MlicModel]) -> None:
    """A model in training can be tried as a codec, and trained on."""
    model = lively_model(SMALL["mlic"]).train()
    before = copy.deepcopy(model.state_dict())
    codec = load(model, device="cpu")
    data = codec.compress(picture(64, 64))
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert codec.compress(picture(64, 64)) == data


def test_unknown_names() -> None:
    with pytest.raises(CheckpointError, match="photos"):
        load("photos")
    model = lively_model(SMALL["mlic"])
    for arguments in ({"engine": "warp"}, {"device": "tpu"}, {"device": "meta"}, {"device": ""}):
        with pytest.raises(EngineError):
            load(model, **{"device": "cpu", **arguments})
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="CUDA"):
            load(model, device="cuda")


def test_the_package_offers_the_codec() -> None:
    assert mlic_fast.Codec is Codec
    with pytest.raises(AttributeError):
        mlic_fast.nothing  # noqa: B018


# -- streams that do not fit -----------------------------------------------------------------


def test_the_models_need_no_import_of_their_own() -> None:
    script = "import sys, mlic_fast; assert 'torch' not in sys.modules; mlic_fast.models.PRESETS"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_encoding_and_decoding_import_nothing_heavy() -> None:
    script = (
        "import sys, numpy, torch\n"
        "before = set(sys.modules)\n"
        "import mlic_fast\n"
        "image = numpy.zeros((1, 1, 3), numpy.uint8)\n"
        "mlic_fast.decompress(mlic_fast.compress(image), output='pil')\n"
        "new = set(sys.modules) - before\n"
        "heavy = new & {'compressai', 'torchvision', 'matplotlib', 'mlic_fast.training',\n"
        "    'mlic_fast.evaluation', 'torch._dynamo', 'sympy', 'triton'}\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
