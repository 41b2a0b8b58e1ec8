"""Residual transforms by the modules of the model: what fused ones are measured against."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mlic_fast.engine.per_image import to_pixels, to_unit
from mlic_fast.models.mlic import Transforms
from mlic_fast.models.transforms import SynthesisTransform


class ModuleTransforms:
    """g_a, h_a and g_s in one dtype, but for the last layer and the gains, which are float32."""

    def __init__(self, model: Transforms, dtype: torch.dtype) -> None:
        assert isinstance(model.g_s, SynthesisTransform)
        layers = model.g_s.synthesis_transform
        self._gain, self._dtype = model.gain if model.config.rates else None, dtype
        self._g_a, self._h_a = (_converted(part, dtype) for part in (model.g_a, model.h_a))
        self._g_s, self._last = _converted(layers[:-1], dtype), _converted(layers[-1])

    def analyse(self, images: Tensor, rate: Tensor | None) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] -> float32 y [B, M, H/16, W/16] and z [B, N, H/64, W/64]."""
        x = to_unit(images).to(self._dtype, memory_format=torch.channels_last)
        y = self._g_a(x).float()
        y = y if self._gain is None else self._gain.apply(y, rate)
        return y, self._h_a(y.to(self._dtype)).float()

    def synthesise(self, y_hat: Tensor, rate: Tensor | None) -> Tensor:
        """Decoded latents [B, M, H/16, W/16] -> uint8 [B, 3, H, W]."""
        y_hat = y_hat if self._gain is None else self._gain.undo(y_hat, rate)
        x = y_hat.to(self._dtype, memory_format=torch.channels_last)
        return to_pixels(self._last(self._g_s(x).float()))


def _converted(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy in a dtype and channels last."""
    converted = copy.deepcopy(module).to(dtype)
    return converted.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
