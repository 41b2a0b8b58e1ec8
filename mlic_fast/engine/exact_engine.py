"""The exact engine: streams that decode everywhere, on any backend of the entropy path."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mlic_fast.bitstream import EXACT
from mlic_fast.coder import Decoder, Encoder
from mlic_fast.engine.arithmetic import Float, Int32, SpecOps, to_symbols
from mlic_fast.engine.digest import latents_digest
from mlic_fast.engine.exact_transforms import ExactTransforms
from mlic_fast.engine.packing.pack_transforms import pack_transforms
from mlic_fast.engine.packing.packed import PackedLayers, PackedModel, PackedTransforms
from mlic_fast.engine.path import code_latents
from mlic_fast.engine.per_image import PerImageEngine
from mlic_fast.models.parity import Parity

if TYPE_CHECKING:
    from mlic_fast.engine.cpu.residual_transforms import EngineTransforms
    from mlic_fast.models.mlic import Transforms

Indexes = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.uint8]


class ExactEngine(PerImageEngine):
    """The entropy path in exact arithmetic, the range coder in C++.

    Args:
        transforms: see :func:`cpu_transforms`.
        packed: the entropy path.
        ops: backend of the entropy path.
        name: of the engine.
    """

    arithmetic_version = EXACT
    arrays: Literal["numpy", "torch"] = "numpy"

    def __init__(
        self,
        transforms: EngineTransforms | ExactTransforms,
        packed: PackedModel,
        ops: SpecOps,
        name: str,
    ) -> None:
        self.name = name
        self._transforms = transforms
        self._packed = packed
        self._ops = ops

    def encode(self, image: Pixels, rate: float | None) -> tuple[bytes, int]:
        return self._encode(*self._transforms.analyse(image, rate))

    def encoder(self, image: Pixels) -> Callable[[float | None], tuple[bytes, int]]:
        latents = self._transforms.analysis(image)
        return lambda rate: self._encode(*self._transforms.at_rate(latents, rate))

    def _encode(self, y: Any, z: Any) -> tuple[bytes, int]:
        encoder = Encoder(self._packed.tables)
        symbols = to_symbols(_channels_last(z) - self._packed.layers["medians"].bias)
        encoder.encode(symbols, self._packed.hyper_indexes(symbols.shape))
        slices = np.split(_channels_last(y), self._packed.config.slices, axis=-1)
        latents = code_latents(self._ops, symbols, _Encoding(encoder), slices)
        return encoder.finish(latents_digest(_channels_first(latents.y))), encoder.lanes

    def decode(self, payload: bytes, lanes: int, size: tuple[int, int]) -> tuple[Float, int]:
        decoder = Decoder(self._packed.tables, payload, lanes)
        shape = (1, *size, self._packed.config.N)
        symbols = decoder.decode(self._packed.hyper_indexes(shape))
        latents = code_latents(self._ops, symbols, _Decoding(decoder))
        return _channels_first(latents.y), decoder.finish()

    def synthesise(self, y_hat: Float, rate: float | None) -> Pixels:
        return np.asarray(self._transforms.synthesise(y_hat, rate))


def cpu_transforms(
    model: Transforms | PackedTransforms,
    backend: Callable[[PackedLayers], SpecOps],
    *,
    native: bool = False,
) -> EngineTransforms | ExactTransforms:
    """Block transforms in exact arithmetic on a backend, residual ones on PyTorch.

    Those are in float32, or with ``native`` in what this CPU is fastest with.
    """
    if isinstance(model, PackedTransforms):
        return ExactTransforms(model, backend(model))
    if model.config.transforms == "blocks":
        return cpu_transforms(pack_transforms(model), backend)
    from mlic_fast.engine.cpu.residual_transforms import EngineTransforms, cpu_dtype

    return EngineTransforms(model, cpu_dtype(native))


class _Encoding:
    """Pass coder of an encoder."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __call__(
        self, index: int, parity: Parity, scale_indexes: Indexes, means: Float, symbols: Int32
    ) -> Int32:
        self._encoder.encode(symbols, scale_indexes)
        return symbols


class _Decoding:
    """Pass coder of a decoder."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def __call__(
        self, index: int, parity: Parity, scale_indexes: Indexes, means: Float, symbols: None
    ) -> Int32:
        return self._decoder.decode(scale_indexes)


def _channels_last(x: Any) -> Float:
    """Array or tensor [B, C, H, W] -> array [B, H, W, C]."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(x), 1, -1))


def _channels_first(slices: list[Float]) -> Float:
    """Decoded slices [B, H, W, C] -> latents [B, M, H, W], whose channels lie side by side."""
    return np.moveaxis(np.concatenate(slices, axis=-1), -1, 1)
