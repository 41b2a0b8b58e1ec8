"""Inference engines: the entropy path and the transforms of a codec."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mlic_fast.engine.packing.packed import PackedModel, PackedTransforms
from mlic_fast.errors import EngineError

if TYPE_CHECKING:
    import torch

    from mlic_fast.models.mlic import Transforms

#: Names of the engines: ``auto`` picks the fastest for the device.
ENGINES = ("cpu", "gpu", "spec", "reference")


class Engine(Protocol):
    """Images of equal size <-> payloads.

    A payload goes with its number of lanes; ``size`` is height and width of z, ``rate`` that of a
    variable-rate model, in float32. Images and latents are numpy arrays or tensors on the engine's
    device, as ``arrays`` says. A payload that decodes to other latents than were encoded raises
    CorruptStreamError.
    """

    name: str
    arithmetic_version: int
    arrays: Literal["numpy", "torch"]

    def batch_limit(self, height: int, width: int) -> int:
        """How many images of H x W pixels the engine takes at a time."""
        ...

    def encode_images(self, images: list[Any], rate: float | None) -> list[tuple[bytes, int]]:
        """uint8 [B, 3, H, W], sides multiples of 64 -> a payload for each.

        They are taken out of the list, so that their memory is free when they are analysed.
        """
        ...

    def encoder(self, image: Any) -> Callable[[float | None], tuple[bytes, int]]:
        """uint8 [1, 3, H, W] -> what encodes it at a rate; its analysis may be done once."""
        ...

    def decode_images(
        self, payloads: Sequence[tuple[bytes, int]], size: tuple[int, int], rate: float | None
    ) -> Iterable[Any]:
        """Payloads -> B images uint8 [3, H, W]."""
        ...

    def decode_latents(
        self, payloads: Sequence[tuple[bytes, int]], size: tuple[int, int]
    ) -> Iterable[Any]:
        """Payloads -> B times decoded latents float32 [M, H/16, W/16]."""
        ...


#: Files that the drivers of GPUs make: NVIDIA's, those of WSL and of Jetsons, AMD's.
_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-ctrl-gpu", "/dev/nvgpu", "/dev/kfd")


def gpu_possible() -> bool:
    """Whether it is worth the time to import PyTorch and ask it for a GPU."""
    return "torch" in sys.modules or any(map(os.path.exists, _GPU_FILES))


def gpu_problem() -> str | None:
    """Why the engine ``gpu`` cannot run on this machine; None if it can."""
    import torch

    from mlic_fast import _C

    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device here"
    if torch.cuda._is_in_bad_fork():
        return "this process was forked from one that used the GPU: use the start method 'spawn'"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'mlic_fast[gpu]'"
    if not _C.gpu_coder.has_cuda:
        return (
            "mlic_fast was built without CUDA: install it again where nvcc is found, with "
            "MLIC_FAST_CUDA=ON"
        )
    return None


def begin_gpu(device: str) -> None:
    """Start, in a thread, what the engine ``gpu`` needs whatever the model is.

    That is CUDA's context, and the key of Triton's cache, a hash of all of Triton. Both take some
    0.3 s, during which the model is read and packed. Errors are left to the next caller that needs
    either.
    """

    def begin() -> None:
        with suppress(Exception):
            import torch
            from triton.runtime.cache import triton_key

            torch.zeros(1, device=device)
            triton_key()

    threading.Thread(target=begin).start()


def resolve_device(name: str, engine: str) -> str:
    """``"cpu"`` or ``"cuda:N"`` for what a user asks for.

    Raises EngineError for a device that is unknown or not there, or on which the engine cannot run.
    """
    if name == "cpu" or (name == "auto" and engine not in ("auto", "gpu")):
        return "cpu"
    import torch

    if engine == "gpu" and (problem := gpu_problem()):
        raise EngineError(f"the engine 'gpu' cannot run: {problem}")
    if name == "auto":
        name = "cuda"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise EngineError(f"unsupported device {name!r}: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"device {name!r} was asked for, but PyTorch finds no CUDA device here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(f"there is no device {name!r}: {torch.cuda.device_count()} CUDA devices")
    if name == "cuda":  # its number, whatever becomes the current one later
        device = torch.device("cuda", torch.cuda.current_device())
    return str(device)


def create_engine(
    name: str,
    model: Transforms | PackedTransforms,
    packed: PackedModel,
    device: torch.device | str,
) -> Engine:
    """The engine of a name, or the best one for the device.

    Args:
        name: of :data:`ENGINES`, or ``"auto"``.
        model: its transforms, which may be packed already.
        packed: its entropy path.
        device: where it runs.

    Raises EngineError for an unknown engine, and for one that cannot run on the device.
    """
    if name == "auto":
        name = "cpu" if _type(device) == "cpu" else "gpu"
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}: there are auto, {', '.join(ENGINES)}")
    if name == "reference":
        from mlic_fast.engine.reference_engine import ReferenceEngine
        from mlic_fast.models.mlic import MlicModel

        if not isinstance(model, MlicModel):
            raise EngineError(
                "a packed file has no float model: load the checkpoint it was made of"
            )
        return ReferenceEngine(model)
    if name == "gpu":
        if problem := gpu_problem():
            raise EngineError(f"the engine 'gpu' cannot run: {problem}")
        if _type(device) != "cuda":
            raise EngineError("the engine 'gpu' runs on a CUDA device: load with device='cuda'")
        import torch

        from mlic_fast.engine.gpu.gpu_engine import GpuEngine

        return GpuEngine(model, packed, torch.device(device))
    if _type(device) != "cpu":
        raise EngineError(f"the engine {name!r} runs on the CPU only: load with device='cpu'")

    from mlic_fast.engine.exact_engine import ExactEngine, cpu_transforms

    if name == "spec":
        from mlic_fast.engine.arithmetic import SpecOps

        transforms = cpu_transforms(model, SpecOps)
        return ExactEngine(transforms, packed, SpecOps(packed), name)
    from mlic_fast.engine.cpu.cpu_operations import CpuOps
    from mlic_fast.engine.cpu.recording import Recordings

    transforms = cpu_transforms(model, CpuOps)
    return ExactEngine(transforms, packed, CpuOps(packed), name, Recordings())


def _type(device: torch.device | str) -> str:
    """``"cpu"`` or ``"cuda"``."""
    return str(device).partition(":")[0]
