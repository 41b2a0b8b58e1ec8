"""The transforms of the engines: the model's, bit for bit; their inputs are left alone."""

from __future__ import annotations

import copy

import torch
from lively import BLOCKS, lively_model, photograph

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


def test_blocks_carry_the_picture_in_float32() -> None:
    """Branches alone are in half precision; in float32 all is the model, bit for bit."""
    model = lively_model(BLOCKS).eval().requires_grad_(False)
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = (photograph(64, 128, batch=2) * 255).round().to(torch.uint8)
    rate = torch.tensor([0.7])
    exact, half = (EngineTransforms(model, each) for each in (torch.float32, torch.bfloat16))
    x = to(to_unit(images), torch.float32)
    with torch.inference_mode():
        y, z = exact.analyse(images, rate)
        assert torch.equal(y, twin.analyse(x, rate))
        assert torch.equal(z, twin.h_a(to(y, torch.float32)))
        kept = y.clone()
        for transforms in (exact, half):
            decoded = transforms.synthesise(y, rate)
            assert torch.equal(y, kept)
            right = twin.synthesise(to(y, torch.float32), rate)
            assert decoded.shape == images.shape and right.std() > 0.05
            if transforms is exact:
                assert torch.equal(decoded, to_pixels(right))
        rough = half.analyse(images, rate)[0]
        assert 0 < (rough - y).square().mean() < 1e-3 * y.square().mean()
        # Without its blocks the transform is linear: nothing of it is rounded to bfloat16.
        for block in (*model.g_a.fine, *model.g_a.coarse):
            for parameter in (*block.mix_out.parameters(), *block.contract.parameters()):
                parameter.zero_()
        exact, half = (EngineTransforms(model, each) for each in (torch.float32, torch.bfloat16))
        assert torch.equal(exact.analyse(images, rate)[0], half.analyse(images, rate)[0])


def to(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype, memory_format=torch.channels_last)


def transforms_without(model: MlicModel, dtype: torch.dtype) -> list[torch.nn.Module]:
    """g_a, h_a and g_s but for its last layer, as the model has them."""
    parts = (model.g_a, model.h_a, model.g_s.synthesis_transform[:-1])
    return [
        copy.deepcopy(part).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for part in parts
    ]
