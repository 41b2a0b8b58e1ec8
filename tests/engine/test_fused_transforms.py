"""The transforms of the GPU engine beside those of the model's modules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lively import SMALL, lively_model, photograph
from torch import Tensor

from mlic_fast.models import MlicConfig
from mlic_fast.profiling.module_transforms import ModuleTransforms

pytest.importorskip("triton", reason="triton is not installed")

CONFIGS = {
    "plain": SMALL["mlic"],
    "2023": replace(SMALL["mlic"], weight_family="2023"),  # its first block of g_s has a skip
    "variable rate": replace(SMALL["mlic"], lambdas=(0.01, 0.02)),
}


def outputs(
    kind: type, config: MlicConfig, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """y, z and, of these latents, pixels."""
    model = lively_model(config).eval().requires_grad_(False).to(device)
    images = (photograph(64, 128, batch=2) * 255).round().to(device, torch.uint8)
    rate = torch.tensor([0.5], device=device) if config.rates else None
    transforms = kind(model, dtype)
    with torch.inference_mode():
        y, z = transforms.analyse(images, rate)
        latents = torch.linspace(-8, 8, y.numel(), device=device).view(y.shape)
        kept = images.clone(), latents.clone()
        pixels = transforms.synthesise(latents, rate)
        assert torch.equal(images, kept[0]) and torch.equal(latents, kept[1])
    assert pixels.shape == images.shape and pixels.dtype == torch.uint8
    assert pixels.float().std() > 1  # of levels: not all the same
    return y, z, pixels.float()


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", list(CONFIGS))
def test_float32_is_the_model(device: torch.device, name: str) -> None:
    from mlic_fast.engine.gpu.fused_transforms import FusedTransforms

    ours, models = (
        outputs(kind, CONFIGS[name], torch.float32, device)
        for kind in (FusedTransforms, ModuleTransforms)
    )
    for a, b in zip(ours[:2], models[:2], strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.std()))
    different = (ours[2] - models[2]).abs()
    assert different.max() <= 1 and different.mean() < 1e-3


# Triton's interpreter cuts bfloat16 off instead of rounding it.
@pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
)
def test_half_precision_is_no_worse_than_of_the_modules(
    device: torch.device, dtype: torch.dtype
) -> None:
    """Biases, sums and results are rounded once where PyTorch rounds at every step."""
    from mlic_fast.engine.gpu.fused_transforms import FusedTransforms

    config = CONFIGS["plain"]
    exact = outputs(ModuleTransforms, config, torch.float32, device)
    ours, modules = (
        outputs(kind, config, dtype, device) for kind in (FusedTransforms, ModuleTransforms)
    )
    for i in (0, 2):  # there are few values of z
        mine, theirs = ((each[i] - exact[i]).square().mean() for each in (ours, modules))
        assert mine <= 1.2 * theirs
