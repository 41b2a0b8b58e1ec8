"""Photograph-like images of any size, for machines without photographs."""

from __future__ import annotations

import numpy as np
import torch


def synthetic_photograph(width: int, height: int, seed: int = 0) -> torch.Tensor:
    """uint8 [3, H, W]: the 1/f spectrum of natural images, cut by the edges of flat shapes."""
    random = np.random.Generator(np.random.PCG64(seed))
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / max(width, height))

    def texture() -> np.ndarray:
        noise = np.fft.rfft2(random.standard_normal((height, width)))
        x = np.fft.irfft2(noise * amplitude, s=(height, width))
        return (x - x.mean()) / max(float(x.std()), 1e-9)

    luminance = texture()
    y, x = np.mgrid[0:height, 0:width]
    for _ in range(12):
        # Shapes in front of each other, some with texture, some without.
        a, b, c = random.standard_normal(3)
        inside = a * (x / width - random.random()) + b * (y / height - random.random()) > 0.2
        luminance = np.where(
            inside, (0.5 + 0.4 * c) * luminance + random.standard_normal(), luminance
        )
    planes = [luminance + 0.3 * texture() for _ in range(3)]
    pixels = np.clip(np.stack(planes) * 45 + 120, 0, 255)
    return torch.from_numpy(np.rint(pixels).astype(np.uint8))
