"""Exponents of activations: found by running a network once on input that stands for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlic_fast.engine.arithmetic import Act, Float, SpecOps, exponents_of
from mlic_fast.engine.cpu.cpu_operations import CpuOps
from mlic_fast.engine.packing.packed import PackedLayers
from mlic_fast.errors import CheckpointError


class CalibratingOps(SpecOps):
    """The specification, choosing the exponent of every activation at its first use.

    The exponents go into those of ``packed``. Convolutions run on the CPU engine, whose bits are
    the same, several times as fast.

    Args:
        packed: layers, with no exponents but those that are known already.
        headroom: how far an activation may exceed the largest one seen before it saturates.

    Raises:
        CheckpointError: in the operations, activations that are not finite.
    """

    exponents: dict[str, int]

    def __init__(self, packed: PackedLayers, headroom: float = 1.0) -> None:
        super().__init__(packed)
        self._headroom = np.float32(headroom)
        self._cpu = CpuOps(packed)

    def conv(
        self, layer: str, inputs: Sequence[Act], *, out: str | None = None, **options: Any
    ) -> Any:
        r = self._cpu.conv(layer, inputs, **options)
        return r if out is None else self.quantise(r, out)

    def strided_conv(
        self, layer: str, x: Act, *, gelu_after: bool = False, out: str | None = None
    ) -> Any:
        r = self._cpu.strided_conv(layer, x, gelu_after=gelu_after)
        return r if out is None else self.quantise(r, out)

    def quantise(self, r: Float, out: str) -> Act:
        if out not in self.exponents:
            self.choose(out, np.abs(r).max() * self._headroom)
        return self._cpu.quantise(np.ascontiguousarray(r), out)

    def choose(self, out: str, largest: np.float32) -> None:
        """Gives an activation the exponent with which ``largest`` just fits.

        Raises CheckpointError unless it is finite.
        """
        if not np.isfinite(largest):
            raise CheckpointError(f"the model cannot be packed: {out} overflows float32")
        self.exponents[out] = int(exponents_of(largest))
