"""Small models with weights that give realistic spreads of latents, scales and residuals.

The weights come from raw bits of PCG64, so they are the same everywhere and in all versions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mlic_fast.models import MlicConfig, MlicModel, create_model

_WIDTHS = {
    "N": 16,
    "stage_channels": (8, 12, 16),
    "channel_context_channels": (24, 16),
    "entropy_parameters_channels": (32, 24, 16),
    "lrp_channels": (24, 16),
}
SMALL = {
    "mlic": MlicConfig(variant="mlic", M=48, slices=3, **_WIDTHS),
    "mlic_plus": MlicConfig(variant="mlic_plus", M=96, slices=3, **_WIDTHS),
    "mlic_plus_plus": MlicConfig(variant="mlic_plus_plus", M=96, slices=3, **_WIDTHS),
}
#: Transforms on blocks of 8x8 pixels, several rates.
BLOCKS = replace(
    SMALL["mlic_plus_plus"],
    M=64,
    slices=2,
    stage_channels=(0, 0, 0),
    transforms="blocks",
    block_channels=20,
    analysis_blocks=(2, 1),
    synthesis_blocks=(1, 2),
    lambdas=(0.002, 0.02, 0.2),
)
#: Trains in milliseconds.
TINY = MlicConfig(
    N=8,
    M=64,
    slices=2,
    stage_channels=(8, 8, 8),
    channel_context_channels=(8, 8),
    entropy_parameters_channels=(16, 16, 16),
    lrp_channels=(8, 8),
)
#: Factors on the spread of the outputs of some layers.
_GAINS = {
    "g_a.analysis_transform.6.weight": 1.0,
    "g_a.embed.weight": 2.0,
    "g_s.up.weight": 0.4,
    "g_s.project.weight": 0.1,
    "h_a.reduction.8.weight": 12.0,
    "h_s.increase.0.weight": 0.3,
    "g_s.synthesis_transform.1.conv.weight": 0.4,
    "g_s.synthesis_transform.3.conv.weight": 0.4,
    "g_s.synthesis_transform.5.conv.weight": 0.4,
    "g_s.synthesis_transform.7.0.weight": 0.02,
}


def uniform(seed: int) -> Callable[[int], np.ndarray]:
    """Source of exact float32 numbers in -1 .. 1, 24 bits each."""
    bits = np.random.PCG64(seed)

    def draw(count: int) -> np.ndarray:
        raw = (bits.random_raw(count) >> np.uint64(39)).astype(np.int64)
        return ((raw - (1 << 24)) / (1 << 24)).astype(np.float32)

    return draw


def lively_model(config: MlicConfig, seed: int = 1) -> MlicModel:
    """In training mode, as a fresh model is."""
    model = create_model(config)
    draw = uniform(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.from_numpy(draw(parameter.numel())).reshape(parameter.shape)
            parameter.copy_(_value(name, parameter, noise))
    return model


def photograph(height: int, width: int, batch: int = 1) -> Tensor:
    """Smooth shapes, edges and a little noise in 0 .. 1, [batch, 3, height, width]."""
    draw = uniform(height * 1000 + width)
    rows = np.arange(height, dtype=np.float64)[:, None] / 64
    columns = np.arange(width, dtype=np.float64)[None, :] / 64
    images = []
    for _ in range(batch * 3):
        a, b, c, d = (float(v) for v in draw(4))
        # No sine or exponential: their last bits depend on the machine.
        wave = np.abs((rows * (2 + a) + columns * (1 + 2 * b)) % 2 - 1)
        edge = (rows * (1 + c) > columns * (1 + d)).astype(np.float64)
        noise = draw(height * width).reshape(height, width)
        images.append(0.1 + 0.5 * wave + 0.25 * edge + 0.05 * noise)
    return torch.from_numpy(np.stack(images)).float().reshape(batch, 3, height, width).clamp(0, 1)


def _value(name: str, parameter: Tensor, noise: Tensor) -> Tensor:
    if name.startswith("gain."):
        return parameter + 0.2 * noise
    if name.endswith("quantiles"):
        return parameter + 0.4 * noise
    if name.startswith("entropy_bottleneck.biases"):
        return 0.5 * noise
    if name.startswith("entropy_bottleneck."):
        return parameter + 0.3 * noise
    if name.endswith((".beta", ".gamma")):
        return parameter + 0.1 * noise.abs()
    if ".norm" in name:
        return 1 + 0.4 * noise if name.endswith("weight") else 0.3 * noise
    if name.endswith("relative_position_table"):
        return 1.5 * noise
    if name.endswith("bias"):
        value = 0.2 * noise
        if name.startswith("entropy_parameters") and name.endswith("fusion.6.bias"):
            value[: len(value) // 2] += 0.8  # the scales
        return value
    spread = math.sqrt(3 / parameter[0].numel()) * _GAINS.get(name, 1.3)
    return spread * noise
