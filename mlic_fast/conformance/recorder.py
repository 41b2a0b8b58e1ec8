"""Hashes of everything that encoder and decoder must agree on."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mlic_fast.engine.arithmetic import squeeze
from mlic_fast.engine.path import PARITIES
from mlic_fast.models.checkerboard import Parity


class Recorder:
    """A backend of the coding loop that passes everything on to another and hashes the results.

    Attributes:
        ops: the backend.
        hashes: SHA-256 of the symbols of z and of every pass, by name, in coding order.
        symbols, indexes: of z (symbols alone) and of the passes, as int32 and uint8 [1, H, W, C].
            All of the latest coding: the engine gpu goes through one to compile its kernels.
    """

    def __init__(self, ops: Any) -> None:
        self.ops = ops
        self.hashes: dict[str, str] = {}
        self.symbols: list[npt.NDArray[np.int32]] = []
        self.indexes: list[npt.NDArray[np.uint8]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def hyper_synthesis(self, symbols: Any) -> Any:
        """Begins a new record: the symbols of z come first."""
        self.symbols, self.indexes = [_host(symbols)], []
        self.hashes = {"z symbols": _hash(symbols, "<i4")}
        return self.ops.hyper_synthesis(symbols)

    def entropy_parameters(self, i: int, parity: Parity, *arguments: Any) -> Any:
        """Hashes the scale indexes of a pass."""
        indexes, means, symbols = self.ops.entropy_parameters(i, parity, *arguments)
        self.indexes.append(_host(indexes))
        self.hashes[f"{_pass(i, parity)} scale indexes"] = _hash(indexes, "u1")
        return indexes, means, symbols

    def decoded(self, latents: Any, i: int, symbols: Any, means: Any, parity: Parity) -> None:
        """Hashes the means and symbols of a pass."""
        name = _pass(i, parity)
        self.symbols.append(_host(symbols))
        self.hashes[f"{name} means"] = _hash(means, "<f4")
        self.hashes[f"{name} symbols"] = _hash(symbols, "<i4")
        # The latents follow when they are all known; the name keeps its place.
        self.hashes[f"{name} latents"] = ""
        self.ops.decoded(latents, i, symbols, means, parity)

    def latents(self, y_hat: Tensor, slices: int) -> None:
        """Hash the decoded latents [1, M, H, W] of every pass: its colour of its slice."""
        parts = np.split(y_hat.permute(0, 2, 3, 1).numpy(), slices, axis=-1)
        for i, part in enumerate(parts):
            for parity in PARITIES:
                self.hashes[f"{_pass(i, parity)} latents"] = _hash(squeeze(part, parity), "<f4")


def _pass(i: int, parity: Parity) -> str:
    colour = "anchors" if parity is Parity.ANCHOR else "non-anchors"
    return f"pass {2 * i + PARITIES.index(parity)} (slice {i}, {colour})"


def _host(array: Any) -> npt.NDArray[Any]:
    """A copy of a backend's array."""
    return np.array(array.cpu() if isinstance(array, Tensor) else array)


def _hash(array: Any, dtype: str) -> str:
    """SHA-256 of an array [1, H, W, C] in (channel, row, column) order.

    An array of another type than ``dtype`` has none: its type is told instead.
    """
    array = _host(array)
    if array.dtype != np.dtype(dtype).newbyteorder("="):
        return f"of type {array.dtype}"
    return hashlib.sha256(np.moveaxis(array, -1, 1).astype(dtype).tobytes()).hexdigest()
