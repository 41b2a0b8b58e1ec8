"""Hashes of everything that encoder and decoder must agree on."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mlic_fast.engine.arithmetic import squeeze
from mlic_fast.models.checkerboard import Parity

PARITIES = (Parity.ANCHOR, Parity.NON_ANCHOR)


class Recorder:
    """A backend of the coding loop that passes everything on to another and hashes the results.

    Attributes:
        hashes: SHA-256 of the symbols of z and of every pass, by name, in coding order.
        symbols, indexes: of z (symbols alone) and of the passes, as int32 and uint8 [1, H, W, C].
    """

    def __init__(self, ops: Any) -> None:
        self._ops = ops
        self.hashes: dict[str, str] = {}
        self.symbols: list[npt.NDArray[np.int32]] = []
        self.indexes: list[npt.NDArray[np.uint8]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def hyper_latents(self, symbols: npt.NDArray[np.int32]) -> Any:
        self.symbols.append(symbols.copy())
        self.hashes["z symbols"] = _hash(symbols, "<i4")
        return self._ops.hyper_latents(symbols)

    def scale_indexes(self, scales: Any) -> npt.NDArray[np.uint8]:
        indexes: npt.NDArray[np.uint8] = self._ops.scale_indexes(scales)
        self.indexes.append(indexes.copy())
        self.hashes[f"{_pass(len(self.indexes) - 1)} scale indexes"] = _hash(indexes, "u1")
        return indexes

    def decoded(self, symbols: npt.NDArray[np.int32], means: Any, parity: Parity, y: Any) -> Any:
        name = _pass(len(self.indexes) - 1)
        self.symbols.append(symbols.copy())
        self.hashes[f"{name} means"] = _hash(means, "<f4")
        self.hashes[f"{name} symbols"] = _hash(symbols, "<i4")
        # The latents follow when they are all known; the name keeps its place.
        self.hashes[f"{name} latents"] = ""
        return self._ops.decoded(symbols, means, parity, y)

    def latents(self, y_hat: Tensor, slices: int) -> None:
        """Hash the decoded latents [1, M, H, W] of every pass: its colour of its slice."""
        parts = np.split(y_hat.permute(0, 2, 3, 1).numpy(), slices, axis=-1)
        for i, part in enumerate(parts):
            for parity in PARITIES:
                name = _pass(2 * i + PARITIES.index(parity))
                self.hashes[f"{name} latents"] = _hash(squeeze(part, parity), "<f4")


def _pass(number: int) -> str:
    colour = "non-anchors" if number % 2 else "anchors"
    return f"pass {number} (slice {number // 2}, {colour})"


def _hash(array: npt.NDArray[Any], dtype: str) -> str:
    """Of [1, H, W, C] in (channel, row, column) order; of the type named, or it is not equal."""
    if array.dtype != np.dtype(dtype).newbyteorder("="):
        return f"of type {array.dtype}"
    return hashlib.sha256(np.moveaxis(array, -1, 1).astype(dtype).tobytes()).hexdigest()
