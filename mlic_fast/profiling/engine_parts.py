"""The parts of engines, for profiling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlic_fast.engine import Engine
from mlic_fast.engine.exact_engine import ExactEngine
from mlic_fast.engine.exact_transforms import ExactTransforms
from mlic_fast.engine.operations import Operations

if TYPE_CHECKING:
    from mlic_fast.engine.gpu.fused_transforms import FusedTransforms
    from mlic_fast.engine.gpu.gpu_engine import GpuEngine


@dataclass(frozen=True)
class Parts:
    """The parts of an exact engine."""

    ops: Operations
    transforms: ExactTransforms | FusedTransforms


def parts_of(engine: Engine) -> Parts | None:
    """The parts of an engine; None for the reference engine, which is not exact."""
    if isinstance(engine, ExactEngine):
        return Parts(engine._ops, engine._transforms)
    if is_gpu(engine):
        gpu: GpuEngine = engine  # type: ignore[assignment]
        return Parts(gpu._ops, gpu._transforms)
    return None


def is_gpu(engine: Engine) -> bool:
    """Whether an engine is the GPU's, by its name: importing its class would need Triton."""
    return engine.name == "gpu"
