"""The golden files against the slow entropy path, which was written from docs/arithmetic.md."""

from __future__ import annotations

import hashlib
import json
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import slow_decoder
import slow_path
import torch
from lively import SMALL, lively_model, photograph

import mlic_fast
from mlic_fast.conformance import golden_files
from mlic_fast.engine.packing.packer import packed_bytes


def sha256(array: npt.NDArray[Any], dtype: str) -> str:
    return hashlib.sha256(np.moveaxis(array, -1, 0).astype(dtype).tobytes()).hexdigest()


def hashes(decoded: slow_path.Latents) -> dict[str, str]:
    """As expected.json has them."""
    found = {"z symbols": sha256(decoded.z_symbols, "<i4")}
    slices = np.split(decoded.y_hat, len(decoded.passes) // 2, axis=-1)
    for number, part in enumerate(decoded.passes):
        colour = slow_path.NON_ANCHORS if number % 2 else slow_path.ANCHORS
        word = "non-anchors" if number % 2 else "anchors"
        latents = slow_path.squeeze(slices[number // 2], colour)
        assert part.means.dtype == latents.dtype == np.float32
        name = f"pass {number} (slice {number // 2}, {word})"
        found[f"{name} scale indexes"] = sha256(part.indexes, "u1")
        found[f"{name} means"] = sha256(part.means, "<f4")
        found[f"{name} symbols"] = sha256(part.symbols, "<i4")
        found[f"{name} latents"] = sha256(latents, "<f4")
    digest = slow_decoder.latents_digest(np.moveaxis(decoded.y_hat, -1, 0).ravel().tolist())
    assert digest == decoded.digest
    return found | {"digest": f"{digest:08x}"}


WITH_MODEL = [path for path in golden_files() if path.stem != "photo"]
#: About an encoder, or about transforms.
OTHERS = ("encoded again", "pixels", "pixels compressed")


@pytest.mark.parametrize("stream", ["one_pixel", "odd", "wide", "extreme"])
@pytest.mark.parametrize("path", WITH_MODEL, ids=lambda path: path.stem)
def test_the_slow_path_decodes_golden_streams(path: Any, stream: str) -> None:
    with zipfile.ZipFile(path) as archive:
        compare(archive, archive.read("model.safetensors"), stream)


def test_the_slow_path_decodes_a_stream_of_the_shipped_model() -> None:
    (path,) = (path for path in golden_files() if path.stem == "photo")
    codec = mlic_fast.load("photo", device="cpu")
    with zipfile.ZipFile(path) as archive:
        compare(archive, packed_bytes(codec.model, codec.packed), "one_pixel")


def test_the_slow_path_decodes_what_the_cpu_encoded() -> None:
    """A model of today's weights: golden files cannot tell whether changed arithmetic agrees."""
    codec = mlic_fast.load(lively_model(SMALL["mlic_plus_plus"]).eval(), device="cpu")
    data = codec.compress((photograph(70, 130) * 255).round().to(torch.uint8)[0])
    decoded = slow_path.Model(packed_bytes(codec.model, codec.packed)).decode(data)
    latents = codec.decode_latents(data).numpy()
    assert np.array_equal(np.moveaxis(decoded.y_hat, -1, 0), latents)


def compare(archive: zipfile.ZipFile, model: bytes, stream: str) -> None:
    expected = json.loads(archive.read("expected.json"))[stream]
    found = hashes(slow_path.Model(model).decode(archive.read(f"{stream}.mlic")))
    assert found == {name: value for name, value in expected.items() if name not in OTHERS}
