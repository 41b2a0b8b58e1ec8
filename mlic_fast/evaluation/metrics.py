"""Distortion of 8-bit images."""

from __future__ import annotations

import math
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from mlic_fast.errors import EvaluationError
from mlic_fast.images import to_array

# MS-SSIM halves an image four times and then needs a window of 11 pixels.
SMALLEST_SIDE = 161


def psnr(reference: Tensor, image: Tensor) -> float:
    """Peak signal-to-noise ratio over all pixels and channels together, in dB.

    ``10 log10(255^2 / mean((reference - image)^2))``; infinite for equal images. The squares are
    summed in integers, so the result is the same on every device.

    Args:
        reference: uint8 [3, H, W].
        image: uint8 [3, H, W].

    Raises:
        ValueError: the shapes differ or the values are not uint8.
    """
    _check(reference, image)
    total = int((reference.int() - image.int()).square().sum(dtype=torch.int64))
    return math.inf if total == 0 else 10 * math.log10(255**2 * image.numel() / total)


def ms_ssim(reference: Tensor, image: Tensor) -> float:
    """Multi-scale structural similarity (Wang et al., 2003), in 0..1, mean over the channels.

    ``l_5 * prod_s cs_s^(w_s)`` over five scales s, each half the size of the one before, with an 11
    x 11 Gaussian window (sigma 1.5), K = (0.01, 0.03) and weights (0.0448, 0.2856, 0.3001, 0.2363,
    0.1333).

    Args:
        reference: uint8 [3, H, W], both sides at least 161 pixels.
        image: uint8 [3, H, W].

    Raises:
        ValueError: the shapes differ, the values are not uint8 or a side is too short.
    """
    _check(reference, image)
    if min(image.shape[1:]) < SMALLEST_SIDE:
        raise ValueError(f"MS-SSIM needs sides of at least {SMALLEST_SIDE} pixels")
    return float(multi_scale(reference[None].float(), image[None].float(), 255.0))


def multi_scale(reference: Tensor, image: Tensor, data_range: float) -> Tensor:
    """Differentiable MS-SSIM of each image of a batch, [B, 3, H, W] -> [B].

    Raises :class:`EvaluationError` where pytorch-msssim is not installed.
    """
    try:
        import pytorch_msssim
    except ImportError as error:
        raise EvaluationError(
            "MS-SSIM needs pytorch-msssim: pip install 'mlic_fast[train]'"
        ) from error
    value: Tensor = pytorch_msssim.ms_ssim(reference, image, data_range, size_average=False)
    return value


def ms_ssim_db(value: float) -> float:
    """MS-SSIM on a logarithmic scale, ``-10 log10(1 - value)`` in dB; infinite for 1."""
    return math.inf if value >= 1 else -10 * math.log10(1 - value)


def ssimulacra2(reference: Tensor, image: Tensor) -> float:
    """SSIMULACRA 2: how like the reference people find an image; 100 is equal, 90 hardly differs.

    Args:
        reference: uint8 [3, H, W], both sides at least 8 pixels.
        image: uint8 [3, H, W].

    Raises:
        EvaluationError: the package ssimulacra2 is not installed.
        ValueError: the shapes differ, the values are not uint8 or a side is too short.
    """
    _check(reference, image)
    if min(image.shape[1:]) < 8:
        raise ValueError("SSIMULACRA 2 needs sides of at least 8 pixels")
    try:
        from ssimulacra2 import compute_ssimulacra2
    except ImportError as error:
        raise EvaluationError(
            "SSIMULACRA 2 needs the package ssimulacra2: pip install 'mlic_fast[bench]'"
        ) from error
    return float(compute_ssimulacra2(_as_file(reference), _as_file(image)))


def _as_file(image: Tensor) -> BytesIO:
    file = BytesIO()
    Image.fromarray(to_array(image)).save(file, "BMP")
    return file


def _check(reference: Tensor, image: Tensor) -> None:
    kinds = {reference.dtype, image.dtype}
    if reference.shape != image.shape or kinds != {torch.uint8}:
        raise ValueError("both images must be uint8 tensors of the same shape")
