"""Rate and distortion on a folder of whole images, by the model's own estimate of the rate."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from mlic_fast.evaluation.metrics import SMALLEST_SIDE, ms_ssim, psnr
from mlic_fast.images import load_image, pad
from mlic_fast.models.config import ALIGNMENT
from mlic_fast.models.mlic import MlicModel
from mlic_fast.training.loss import RateDistortionLoss, bits_per_pixel
from mlic_fast.training.patches import list_images
from mlic_fast.training.run_config import TrainConfig, TrainingError


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
    x = pad(image[None].float() / 255, ALIGNMENT).contiguous(memory_format=torch.channels_last)
    with autocast:
        out = model(x) if rate is None else model(x, rate=torch.full((1,), float(rate)).to(x))
    bpp = bits_per_pixel(out["likelihoods"], height * width).item()
    x_hat = out["x_hat"][0, :, :height, :width].float().clamp(0, 1).mul(255).round().byte()
    large = min(height, width) >= SMALLEST_SIDE
    return {
        "bpp": bpp,
        "psnr": psnr(image, x_hat),
        "ms_ssim": ms_ssim(image, x_hat) if large else float("nan"),
        "mse": (image.float() - x_hat.float()).square().mean().item() / 255**2,
    }


def load_validation(folder: str, metric: str) -> list[Tensor]:
    """The images below a folder, uint8 [3, H, W]; what cannot be validated is refused at once."""
    images = [load_image(path) for path in list_images(folder)]
    if metric == "ms-ssim" and any(min(image.shape[1:]) < SMALLEST_SIDE for image in images):
        raise TrainingError(
            f"{folder} has images with a side below {SMALLEST_SIDE}, for which there is no MS-SSIM"
        )
    return images


def validate(
    model: nn.Module,
    images: list[Tensor],
    config: TrainConfig,
    criterion: RateDistortionLoss,
    autocast: torch.autocast,
) -> list[dict[str, float]]:
    """Means over the images at every rate: one row a rate, with its lambda and weighted loss."""
    model.eval()
    device = criterion.log_lambdas.device
    rows = []
    for i, lmbda in enumerate(config.lmbda):
        rate = i if len(config.lmbda) > 1 else None
        results = [evaluate_image(model, image.to(device), rate, autocast) for image in images]
        row = {name: sum(r[name] for r in results) / len(results) for name in results[0]}
        mse = config.metric == "mse"
        distortion = 255**2 * row["mse"] if mse else 1 - row["ms_ssim"]
        weight = criterion.weights(criterion.log_lambdas[i].exp()).item()
        rows.append({"lmbda": lmbda, "loss": weight * (lmbda * distortion + row["bpp"]), **row})
    return rows


def disorder(model: MlicModel, rows: list[dict[str, float]]) -> list[str]:
    """Sentences on everything that does not rise with lambda: rate and quality in neighbouring
    ``rows``, and gains.

    A channel whose gain falls is quantised more coarsely at the higher rate.
    """
    lines = [
        f"{name} falls from lambda {low['lmbda']:g} to {high['lmbda']:g}"
        for low, high in pairwise(rows)
        for name in ("bpp", "psnr")
        if high[name] <= low[name]
    ]
    if model.config.rates:
        falling = int((model.gain.log_gain.diff(dim=0) <= 0).any(0).sum())
        if falling:
            lines.append(f"the gains of {falling} of {model.config.M} channels fall somewhere")
    return lines
