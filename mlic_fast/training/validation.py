"""Rate and distortion on a folder of whole images, by the model's own estimate of the rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlic_fast.evaluation.metrics import ms_ssim, psnr
from mlic_fast.images import load_image
from mlic_fast.training.config import SMALLEST_SIDE_OF_MS_SSIM
from mlic_fast.training.data import list_images
from mlic_fast.training.loss import RateDistortionLoss, bits_per_pixel


@torch.no_grad()
def evaluate_image(
    model: nn.Module, image: Tensor, rate: int | None, autocast: torch.autocast
) -> dict[str, float]:
    """Rate in bits a pixel, PSNR in dB, MS-SSIM (NaN for sides below 161) and MSE of one image.

    Args:
        model: in evaluation mode.
        image: uint8 [3, H, W] of any size, on the model's device.
        rate: index of the operating point; None for a model with one.
        autocast: context of the network's arithmetic.
    """
    height, width = image.shape[1:]
    x = image[None].float() / 255
    x = nn.functional.pad(x, (0, -width % 64, 0, -height % 64))
    x = x.contiguous(memory_format=torch.channels_last)
    with autocast:
        out = model(x) if rate is None else model(x, rate=torch.full((1,), float(rate)).to(x))
    bpp = bits_per_pixel(out["likelihoods"], height * width).item()
    x_hat = out["x_hat"][0, :, :height, :width].float().clamp(0, 1).mul(255).round().byte()
    large = min(height, width) >= SMALLEST_SIDE_OF_MS_SSIM
    return {
        "bpp": bpp,
        "psnr": psnr(image, x_hat),
        "ms_ssim": ms_ssim(image, x_hat) if large else float("nan"),
        "mse": (image.float() - x_hat.float()).square().mean().item() / 255**2,
    }


def validate(
    model: nn.Module,
    folder: str,
    lambdas: tuple[float, ...],
    criterion: RateDistortionLoss,
    device: torch.device,
    autocast: torch.autocast,
) -> list[dict[str, Any]]:
    """Mean over the images below ``folder`` at every rate: one row a rate, with its lambda and its weighted loss."""
    model.eval()
    images = [load_image(path).to(device) for path in list_images(Path(folder))]
    rows: list[dict[str, Any]] = []
    for i, lmbda in enumerate(lambdas):
        rate = i if len(lambdas) > 1 else None
        results = [evaluate_image(model, image, rate, autocast) for image in images]
        row = {name: sum(r[name] for r in results) / len(results) for name in results[0]}
        if criterion.metric == "mse":
            distortion = 255**2 * row["mse"]
        else:
            distortion = 1 - row["ms_ssim"]
        weight = criterion.weights(criterion.log_lambdas[i].exp()).item()
        rows.append({"lmbda": lmbda, "loss": weight * (lmbda * distortion + row["bpp"]), **row})
    return rows
