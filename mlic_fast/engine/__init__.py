"""Inference engines: the entropy path and the transforms of a codec."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mlic_fast.engine.packed import PackedModel
from mlic_fast.errors import EngineError
from mlic_fast.models.mlic import MlicModel, Transforms

#: Names of the engines: ``auto`` picks the fastest for the device.
ENGINES = ("cpu", "gpu", "spec", "reference")


class Engine(Protocol):
    """Images of equal size <-> payloads.

    A payload goes with its number of lanes; ``size`` is height and width of z, ``rate`` [1] that of
    a variable-rate model. What decodes to other latents than were encoded raises
    CorruptStreamError.
    """

    name: str
    arithmetic_version: int

    def batch_limit(self, height: int, width: int) -> int:
        """How many images of H x W pixels the engine takes at a time."""
        ...

    def encode_images(self, images: Tensor, rate: Tensor | None) -> list[tuple[bytes, int]]:
        """uint8 [B, 3, H, W], sides multiples of 64 -> a payload for each."""
        ...

    def encoder(self, image: Tensor) -> Callable[[Tensor | None], tuple[bytes, int]]:
        """uint8 [1, 3, H, W] -> what encodes it at a rate; its analysis may be done once."""
        ...

    def decode_images(
        self, payloads: Sequence[tuple[bytes, int]], size: tuple[int, int], rate: Tensor | None
    ) -> Tensor:
        """Payloads -> uint8 [B, 3, H, W]."""
        ...

    def decode_latents(
        self, payloads: Sequence[tuple[bytes, int]], size: tuple[int, int]
    ) -> Tensor:
        """Payloads -> decoded latents float32 [B, M, H/16, W/16]."""
        ...


def gpu_problem() -> str | None:
    """Why the engine ``gpu`` cannot run on this machine; None if it can."""
    from mlic_fast import _C

    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device here"
    if torch.cuda._is_in_bad_fork():
        return "this process was forked from one that used the GPU: use the start method 'spawn'"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'mlic_fast[gpu]'"
    if not _C.device.has_cuda:
        return (
            "mlic_fast was built without CUDA: install it again where nvcc is found, with "
            "MLIC_FAST_CUDA=ON"
        )
    return None


def create_engine(
    name: str, model: Transforms, packed: PackedModel, device: torch.device
) -> Engine:
    """The engine of a name, or the best one for the device.

    Raises EngineError for an unknown engine, and for one that cannot run on the device.
    """
    if name == "auto":
        name = "gpu" if device.type == "cuda" else "cpu"
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}: there are auto, {', '.join(ENGINES)}")
    if name == "reference":
        from mlic_fast.engine.reference import ReferenceEngine

        if not isinstance(model, MlicModel):
            raise EngineError(
                "a packed file has no float model: load the checkpoint it was made of"
            )
        return ReferenceEngine(model)
    if name == "gpu":
        if problem := gpu_problem():
            raise EngineError(f"the engine 'gpu' cannot run: {problem}")
        if device.type != "cuda":
            raise EngineError("the engine 'gpu' runs on a CUDA device: load with device='cuda'")
        from mlic_fast.engine.device import GpuEngine

        return GpuEngine(model, packed, device)
    if device.type != "cpu":
        raise EngineError(f"the engine {name!r} runs on the CPU only: load with device='cpu'")

    from mlic_fast.engine.exact import ExactEngine, cpu_transforms

    if name == "spec":
        from mlic_fast.engine.arithmetic import SpecOps

        transforms = cpu_transforms(model, SpecOps, torch.float32)
        return ExactEngine(transforms, packed, SpecOps(packed), name)
    from mlic_fast.engine.cpu import CpuOps
    from mlic_fast.engine.transforms import cpu_dtype

    transforms = cpu_transforms(model, CpuOps, cpu_dtype())
    return ExactEngine(transforms, packed, CpuOps(packed), name)
