"""Which instruction set the C++ kernels use."""

from __future__ import annotations

import os

from mlic_fast._C import exact
from mlic_fast.errors import EngineError

#: Environment variable that overrides the instruction set.
ISA_VARIABLE = "MLIC_FAST_ISA"
ISA_NAMES = ("amx", "avx512", "avxvnni", "avx2", "neon", "scalar")


def instruction_set(name: str | None = None) -> str:
    """The instruction set that the kernels use.

    Args:
        name: one of ISA_NAMES; default: that of MLIC_FAST_ISA, else the fastest of this machine.

    Raises:
        EngineError: unknown, or not supported by this machine.
    """
    supported = exact.instruction_sets()
    name = name or os.environ.get(ISA_VARIABLE) or supported[0]
    if name not in ISA_NAMES:
        raise EngineError(
            f"unknown instruction set {name!r}: set {ISA_VARIABLE} to one of "
            f"{', '.join(ISA_NAMES)}, or leave it unset."
        )
    if name not in supported:
        raise EngineError(
            f"this machine does not support {name}: set {ISA_VARIABLE} to one of "
            f"{', '.join(supported)}, or leave it unset."
        )
    return name
