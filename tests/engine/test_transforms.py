"""The transforms of the engines: the model's, bit for bit; their inputs are left alone."""

from __future__ import annotations

import copy

import torch
from lively import photograph

from mlic_fast.engine.per_image import to_pixels, to_unit
from mlic_fast.engine.transforms import EngineTransforms
from mlic_fast.models import MlicModel


def test_in_place_changes_nothing(model: MlicModel) -> None:
    images = (photograph(64, 128, batch=2) * 255).round().to(torch.uint8)
    for dtype in (torch.float32, torch.bfloat16):
        transforms = EngineTransforms(model, dtype)
        twin = transforms_without(model, dtype)
        with torch.inference_mode():
            before = images.clone()
            y, z = transforms.analyse(images, None)
            assert torch.equal(images, before)
            assert torch.equal(y, twin[0](to(to_unit(images), dtype)).float())
            assert torch.equal(z, twin[1](to(y, dtype)).float())
            kept = y.clone()
            decoded = transforms.synthesise(y, None)
            assert torch.equal(y, kept)
            middle = twin[2](to(y, dtype)).float()
            x_hat = model.g_s.synthesis_transform[-1](middle)
            assert torch.equal(decoded, to_pixels(x_hat))


def to(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype, memory_format=torch.channels_last)


def transforms_without(model: MlicModel, dtype: torch.dtype) -> list[torch.nn.Module]:
    """g_a, h_a and g_s but for its last layer, as the model has them."""
    parts = (model.g_a, model.h_a, model.g_s.synthesis_transform[:-1])
    return [
        copy.deepcopy(part).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for part in parts
    ]
