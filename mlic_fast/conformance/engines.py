"""All ways in which this machine computes the exact arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from mlic_fast.engine.arithmetic import SpecOps
from mlic_fast.engine.packed import PackedModel
from mlic_fast.errors import EngineError


def backends(names: Sequence[str] = ()) -> list[str]:
    """Backends of the entropy path that run here: ``spec``, and ``cpu:ISA`` for every ISA.

    ``names`` selects some of them; ``cpu`` stands for all of its instruction sets. Raises
    EngineError for one that does not run here.
    """
    from mlic_fast._C import exact

    here = [*(f"cpu:{isa}" for isa in exact.instruction_sets()), "spec"]
    chosen: list[str] = []
    for name in names:
        found = [label for label in here if name in (label, label.partition(":")[0])]
        if not found:
            raise EngineError(f"no engine {name!r} here: there are cpu, {', '.join(here)}")
        chosen += found
    return list(dict.fromkeys(chosen)) or here


def create_ops(backend: str, packed: PackedModel) -> SpecOps:
    """A backend by one of the names of :func:`backends`."""
    engine, _, isa = backend.partition(":")
    if engine == "spec":
        return SpecOps(packed)
    from mlic_fast.engine.cpu import CpuOps

    return CpuOps(packed, isa=isa)
