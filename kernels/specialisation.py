"""What is compiled ahead of time: a kernel, the types of its arguments, its constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Specialisation:
    """One variant of a kernel, as the engine launches it for the full-size models.

    Attributes:
        name: what it is for, unique in its file.
        kernel: the ``triton.jit`` function.
        arguments: of every run-time argument in order, its type: ``"*i8"``, ``"*fp32"``, ``"i32"``,
            ``"fp32"``, or a tuple of types; pointers and integers marked ``:16`` are multiples of
            16, as they will be.
        constants: the ``tl.constexpr`` arguments.
        warps, stages: of the launch.
        tensor_cores: whether it multiplies matrices: it must then use the tensor cores.
        exact: whether it is of the exact path, where no instruction may fuse or approximate.
        targets: compute capabilities that it is for; none: all.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, str | tuple[str, ...]]
    constants: dict[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 3
    tensor_cores: bool = False
    exact: bool = True
    targets: tuple[int, ...] = ()
