"""The transforms of the engines on a CPU, in the arithmetic that it is fastest with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from mlic_fast.engine.cpu.in_place import run_in_place
from mlic_fast.engine.per_image import to_pixels, to_unit
from mlic_fast.models.mlic import Transforms
from mlic_fast.models.transforms import SynthesisTransform


class EngineTransforms:
    """Residual g_a, h_a and g_s in one dtype; latents and the gains stay float32.

    The last layer stays float32 too: the pixels come from it, and bfloat16 has no more than 8 bits
    for them. The weights are converted once, not at every call as autocast does. They are copies,
    so that what becomes of the model changes nothing here. Images and latents may be arrays.
    """

    def __init__(self, model: Transforms, dtype: torch.dtype) -> None:
        assert isinstance(model.g_s, SynthesisTransform)
        layers = model.g_s.synthesis_transform
        self._gain = copy.deepcopy(model.gain) if model.config.rates else None
        self._dtype = dtype
        self._g_a, self._h_a = (_convert(each, dtype) for each in (model.g_a, model.h_a))
        self._g_s = _convert(layers[:-1], dtype)
        self._last = _convert(layers[-1], torch.float32)

    def analyse(self, images: Any, rate: float | None) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] -> float32 y [B, M, H/16, W/16] and z [B, N, H/64, W/64]."""
        return self.at_rate(self.analysis(images), rate)

    def analysis(self, images: Any) -> Tensor:
        """What all rates have in common: the input of :meth:`at_rate`."""
        x = to_unit(torch.as_tensor(images)).to(self._dtype, memory_format=torch.channels_last)
        return self._g_a(x).float()

    def at_rate(self, latents: Tensor, rate: float | None) -> tuple[Tensor, Tensor]:
        """y and z as of :meth:`analyse`."""
        y = latents if self._gain is None else self._gain.apply(latents, rate_tensor(rate))
        return y, self._h_a(y.to(self._dtype)).float()

    def synthesise(self, y_hat: Any, rate: float | None) -> Tensor:
        """Decoded latents [B, M, H/16, W/16] -> uint8 [B, 3, H, W]."""
        y_hat = torch.as_tensor(y_hat)
        if self._gain is not None:
            y_hat = self._gain.undo(y_hat, rate_tensor(rate))
        x = y_hat.to(self._dtype, memory_format=torch.channels_last)
        return to_pixels(self._last(self._g_s(x).float()))


def _convert(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in a dtype, in place, and channels-last: what convolutions are fastest with."""
    converted = run_in_place(copy.deepcopy(module).to(dtype))
    return converted.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def rate_tensor(rate: float | None) -> Tensor | None:
    """As the gains of the float model take it: float32 [1]."""
    return None if rate is None else torch.tensor([rate], dtype=torch.float32)


def cpu_dtype(native: bool = True) -> torch.dtype:
    """float32; with ``native`` bfloat16 where this CPU multiplies it natively."""
    if not native:
        return torch.float32
    capabilities = torch.cpu.get_capabilities()
    multiplies = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if multiplies else torch.float32
