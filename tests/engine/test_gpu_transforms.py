"""Block transforms on a GPU: the specification, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lively import BLOCKS, lively_model, photograph

pytest.importorskip("triton", reason="triton is not installed")

from mlic_fast.engine.arithmetic import SpecOps
from mlic_fast.engine.exact_transforms import ExactTransforms
from mlic_fast.engine.gpu.block_transforms import GpuTransforms
from mlic_fast.engine.packing.pack_transforms import pack_transforms
from mlic_fast.models import MlicConfig


def both(config: MlicConfig, device: torch.device) -> tuple[ExactTransforms, GpuTransforms]:
    model = lively_model(config).eval()
    packed = pack_transforms(model)
    return (
        ExactTransforms(packed, SpecOps(packed)),
        GpuTransforms(packed, device),
    )


def images(batch: int, height: int, width: int) -> torch.Tensor:
    return (photograph(height, width, batch=batch) * 255).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("blocks", "size", "rate"),
    [
        ({}, (2, 64, 128), 1.3),
        ({"lambdas": ()}, (1, 64, 64), None),
        ({"block_channels": 66, "analysis_blocks": (1, 1)}, (1, 64, 64), 0.0),
    ],
)
def test_pixels_and_latents(
    blocks: dict[str, object],
    size: tuple[int, int, int],
    rate: float | None,
    device: torch.device,
    poisoned: None,
) -> None:
    spec, gpu = both(replace(BLOCKS, **blocks), device)  # type: ignore[arg-type]
    x = images(*size)
    there = None if rate is None else torch.tensor([rate], device=device)
    with torch.inference_mode():
        expected = [torch.from_numpy(each) for each in spec.analyse(x, rate)]
        found = gpu.analyse(x.to(device), there)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
        y_hat = expected[0].round()
        given = y_hat.to(device)
        decoded = gpu.synthesise(given, there)
        assert np.array_equal(decoded.cpu(), spec.synthesise(y_hat, rate))
        assert torch.equal(given.cpu(), y_hat)  # an input is left alone
