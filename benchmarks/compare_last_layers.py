"""What the precision of the last layer of residual transforms costs, on photographs, on a CPU.

    python benchmarks/compare_last_layers.py CHECKPOINT IMAGE...

Rounds as the GPU engine does: convolutions in float32 with operands and results rounded to their
dtypes, and the twins of the kernels between them. Prints the PSNR of what the transforms make of
their own rounded latents, with everything in float32, and with the rest in bfloat16 and the last
layer and its input in float32, float16 or bfloat16.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F
from torch import Tensor

from mlic_fast.engine.gpu import fused_transforms
from mlic_fast.engine.gpu.fused_transforms import FusedTransforms
from mlic_fast.images import load_image
from mlic_fast.kernels import epilogues
from mlic_fast.models import load_checkpoint

LAST = (torch.float32, torch.float16, torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("images", nargs="+")
    args = parser.parse_args()
    epilogues.first = _first
    for name in ("activate", "normalise", "to_pixels"):
        setattr(epilogues, name, _written(getattr(epilogues, f"{name}_twin")))
    fused_transforms.F.conv2d = _rounded(F.conv2d)
    model = load_checkpoint(args.checkpoint).eval().requires_grad_(False)
    assert model.config.transforms == "residual"
    last = [str(dtype).removeprefix("torch.") for dtype in LAST]
    print(f"| image, rate | all float32 | {' | '.join(f'last {name}' for name in last)} |")
    print("|---|" + "---|" * (1 + len(LAST)))
    rates = [0.0, (model.config.rates - 1) / 2, model.config.rates - 1.0]
    for path in args.images:
        pixels = load_image(path)[None]
        pixels = pixels[..., : pixels.shape[2] // 64 * 64, : pixels.shape[3] // 64 * 64]
        for rate in rates if model.config.rates else [None]:
            at = None if rate is None else torch.tensor([rate])
            row = _psnrs(model, pixels, at)
            print(f"| {os.path.basename(path)}, {rate} | {' | '.join(row)} |", flush=True)


@torch.inference_mode()
def _psnrs(model: Any, pixels: Tensor, rate: Tensor | None) -> list[str]:
    exact = FusedTransforms(model, torch.float32)
    latents = exact.analyse(pixels, rate)[0].round()
    decoded = [exact.synthesise(latents, rate)]
    *_, block, layer = model.g_s.synthesis_transform
    for dtype in LAST:
        transforms = FusedTransforms(model, torch.bfloat16)
        transforms._g_s[-1] = fused_transforms._Residual(block, torch.bfloat16, dtype)
        transforms._last = fused_transforms._Pixels(layer, dtype)
        decoded.append(transforms.synthesise(latents, rate))
    errors = ((each.double() - pixels.double()).square().mean() for each in decoded)
    return [f"{10 * torch.log10(255**2 / error):.4f}" for error in errors]


def _written(twin: Callable[..., Tensor]) -> Callable[..., None]:
    """A kernel's twin in the place of the kernel."""

    def kernel(*args: Any, out: Tensor, **kwargs: Any) -> None:
        out.copy_(twin(*args, **kwargs))

    return kernel


def _first(*args: Tensor, out: Tensor, centres: Tensor) -> None:
    for written, twin in zip((out, centres), epilogues.first_twin(*args), strict=True):
        written.copy_(twin)


def _rounded(conv2d: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def convolve(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return conv2d(x.float(), weight.float(), *args, **kwargs).to(x.dtype)

    return convolve


if __name__ == "__main__":
    main()
