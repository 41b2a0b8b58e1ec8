"""Inference engines: the entropy path and the transforms of a codec."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mlic_fast.engine.packed import PackedModel
from mlic_fast.errors import EngineError
from mlic_fast.models.mlic import MlicModel, Transforms

#: Names of the engines: ``auto`` picks the fastest for the device.
ENGINES = ("cpu", "spec", "reference")


class Engine(Protocol):
    """Latents <-> payloads, and the transforms around them."""

    name: str
    arithmetic_version: int

    def encode(self, x: Tensor, rate: Tensor | None) -> tuple[bytes, int]:
        """Image [1, 3, H, W] in 0..1, multiples of 64 -> payload and its number of lanes."""
        ...

    def decode(self, payload: bytes, lanes: int, size: tuple[int, int]) -> tuple[Tensor, int]:
        """Payload and size of z -> decoded latents [1, M, H/16, W/16] float32, and their digest."""
        ...

    def synthesise(self, y_hat: Tensor, rate: Tensor | None) -> Tensor:
        """Decoded latents -> image [1, 3, H, W]."""
        ...


def create_engine(
    name: str, model: Transforms, packed: PackedModel, device: torch.device
) -> Engine:
    """The engine of a name, or the best one for the device.

    Raises EngineError for an unknown engine, and for one that cannot run on the device.
    """
    if name == "auto":
        name = "cpu"
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}: there are auto, {', '.join(ENGINES)}")
    if name == "reference":
        from mlic_fast.engine.reference import ReferenceEngine

        if not isinstance(model, MlicModel):
            raise EngineError(
                "a packed file has no float model: load the checkpoint it was made of"
            )
        return ReferenceEngine(model)
    if device.type != "cpu":
        raise EngineError(f"the engine {name!r} runs on the CPU only: load with device='cpu'")

    from mlic_fast.engine.exact import ExactEngine

    if name == "spec":
        from mlic_fast.engine.arithmetic import SpecOps

        return ExactEngine(model, packed, SpecOps(packed), name, torch.float32)
    from mlic_fast.engine.cpu import CpuOps
    from mlic_fast.engine.transforms import cpu_dtype

    return ExactEngine(model, packed, CpuOps(packed), name, cpu_dtype())
