"""All ways in which this machine computes the exact arithmetic, and codecs on each of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch

from mlic_fast.codec import Codec
from mlic_fast.conformance.recorder import Recorder
from mlic_fast.engine import Engine, gpu_problem
from mlic_fast.engine.arithmetic import SpecOps
from mlic_fast.engine.cpu.cpu_operations import CpuOps
from mlic_fast.engine.exact_engine import ExactEngine, cpu_transforms
from mlic_fast.engine.operations import Operations
from mlic_fast.engine.packing.packed import PackedModel
from mlic_fast.errors import EngineError
from mlic_fast.models.mlic import Transforms


def backends(names: Sequence[str] = ()) -> list[str]:
    """Backends that run here: ``gpu`` if it can, ``cpu:ISA`` for every ISA, and ``spec``.

    ``names`` selects some of them; ``cpu`` stands for all of its instruction sets. Raises
    EngineError for one that does not run here.
    """
    from mlic_fast._C import exact

    gpu = [] if gpu_problem() else ["gpu"]
    here = [*gpu, *(f"cpu:{isa}" for isa in exact.instruction_sets()), "spec"]
    chosen: list[str] = []
    for name in names:
        found = [label for label in here if name in (label, label.partition(":")[0])]
        if not found:
            raise EngineError(f"no engine {name!r} here: there are cpu, {', '.join(here)}")
        chosen += found
    return list(dict.fromkeys(chosen)) or here


def create_ops(backend: str, packed: PackedModel) -> Operations:
    """A backend by one of the names of :func:`backends`."""
    engine, _, isa = backend.partition(":")
    if engine == "spec":
        return SpecOps(packed)
    if engine == "gpu":
        from mlic_fast.engine.gpu.gpu_operations import GpuOps

        return GpuOps(packed, torch.device("cuda"))
    return CpuOps(packed, isa=isa)


def codec_on(recorder: Recorder, model: Transforms, packed: PackedModel) -> Codec:
    """A codec on the backend of a recorder."""
    ops, used = recorder.ops, cast(Any, recorder)
    device = torch.device(getattr(ops, "device", "cpu"))
    engine: Engine
    if isinstance(ops, SpecOps):
        backend = partial(type(ops), isa=ops.isa) if isinstance(ops, CpuOps) else type(ops)
        transforms = cpu_transforms(model, backend)
        engine = ExactEngine(transforms, packed, used, "exact")
    else:
        from mlic_fast.engine.gpu.gpu_engine import GpuEngine

        engine = GpuEngine(model.to(device), packed, device, ops=used)
    return Codec(model, packed, device, engine)
