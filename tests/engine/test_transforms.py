"""The transforms of the engines on a CPU: the model's; their inputs are left alone; any number of
threads gives the same bits.
"""

from __future__ import annotations

import copy

import pytest
import torch
from lively import photograph

from mlic_fast.engine.cpu.residual_transforms import EngineTransforms
from mlic_fast.engine.per_image import to_pixels, to_unit
from mlic_fast.models import MlicConfig, MlicModel, create_model


def test_engine_gives_what_the_model_gives(model: MlicModel) -> None:
    images = (photograph(64, 128, batch=2) * 255).round().to(torch.uint8)
    exact = model.float()
    with torch.inference_mode():
        x = to(to_unit(images), torch.float32)
        y = exact.g_a(x)
        expected = [y, exact.h_a(y), exact.g_s(y)]
        for dtype in (torch.float32, torch.bfloat16):
            transforms = EngineTransforms(model, dtype)
            before = images.clone()
            found = [*transforms.analyse(images, None)]
            assert torch.equal(images, before)
            found[1] = transforms.at_rate(y.clone(), None)[1]
            kept = y.clone()
            decoded = transforms.synthesise(y, None)
            assert torch.equal(y, kept)
            if dtype == torch.float32:
                away = decoded.int() - to_pixels(expected[2]).int()
                assert away.abs().max() <= 1
                for ours, theirs in zip(found, expected[:2], strict=True):
                    assert (ours - theirs).abs().max() < 2e-5
                continue
            # As far from the exact as the model's own layers in this dtype.
            twins = [copy.deepcopy(part).to(dtype) for part in (model.g_a, model.h_a)]
            inputs = (to(x, dtype), to(y, dtype))
            for ours, theirs, twin, given in zip(found, expected, twins, inputs, strict=False):
                near = (ours - theirs).square().mean()
                assert near < 1.2 * (twin(given).float() - theirs).square().mean()


def to(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    transforms = EngineTransforms(create_model(MlicConfig("mlic", N=96, M=160)), dtype)
    threads = torch.get_num_threads()
    try:
        for size in ((64, 64), (128, 192), (256, 192)):
            images = (photograph(*size) * 255).round().to(torch.uint8)
            found = []
            for n in (1, 2, 5, 7):
                torch.set_num_threads(n)
                with torch.inference_mode():
                    y, z = transforms.analyse(images, None)
                    found.append((y, z, transforms.synthesise(y, None)))
            for results in found[1:]:
                for result, first in zip(results, found[0], strict=True):
                    assert torch.equal(result, first)
    finally:
        torch.set_num_threads(threads)
