"""The exact engine: streams that decode everywhere, on any backend of the entropy path."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mlic_fast.bitstream import EXACT
from mlic_fast.coder import Decoder, Encoder
from mlic_fast.engine.arithmetic import Float, Int32, SpecOps, to_symbols
from mlic_fast.engine.exact_transforms import ExactTransforms
from mlic_fast.engine.packing.pack_transforms import pack_transforms
from mlic_fast.engine.packing.packed import PackedLayers, PackedModel, PackedTransforms
from mlic_fast.engine.path import code_latents
from mlic_fast.engine.per_image import PerImageEngine
from mlic_fast.models.parity import Parity

if TYPE_CHECKING:
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
        transforms: ExactTransforms,
        packed: PackedModel,
        ops: SpecOps,
        name: str,
    ) -> None:
        self.name = name
        self._transforms = transforms
        self._packed = packed
        self._ops = ops

    def encode(self, image: list[Pixels], rate: float | None) -> tuple[bytes, int]:
        return self._encode(lambda: self._transforms.analyse(image.pop(), rate))

    def encoder(self, image: Pixels) -> Callable[[float | None], tuple[bytes, int]]:
        latents = self._transforms.analysis(image)
        return lambda rate: self._encode(lambda: self._transforms.at_rate(latents, rate))

    def _encode(self, analyse: Callable[[], tuple[Any, Any]]) -> tuple[bytes, int]:
        """Of what the transforms give, y stays for all passes: its slices are views of it."""
        y, z = (_channels_last(each) for each in analyse())
        z_symbols = to_symbols(z - self._packed.layers["medians"].bias)
        del z
        encoder = Encoder(self._packed.tables)
        encoder.encode(z_symbols, self._packed.hyper_indexes(z_symbols.shape))
        digest = 0

        def take(index: int, y_hat: Float) -> None:
            nonlocal digest
            digest += self._ops.digest(y_hat, first=index * y_hat.size)

        slices = np.split(y, self._packed.config.slices, axis=-1)
        code_latents(self._ops, z_symbols, _Encoding(encoder), slices, take)
        return encoder.finish(digest & 0xFFFFFFFF), encoder.lanes

    def decode(self, payload: bytes, lanes: int, size: tuple[int, int]) -> tuple[Float, int]:
        decoder = Decoder(self._packed.tables, payload, lanes, self._ops.threads)
        symbols = decoder.decode(self._packed.hyper_indexes((1, *size, self._packed.config.N)))
        slices: list[Float] = []
        code_latents(
            self._ops, symbols, _Decoding(decoder), take=lambda _, y_hat: slices.append(y_hat)
        )
        return np.moveaxis(np.concatenate(slices, axis=-1), -1, 1), decoder.finish()

    def digest(self, y_hat: Float) -> int:
        return self._ops.digest(np.moveaxis(y_hat, 1, -1))

    def synthesise(self, y_hat: Float, rate: float | None) -> Pixels:
        return np.asarray(self._transforms.synthesise(y_hat, rate))


def cpu_transforms(
    model: Transforms | PackedTransforms, backend: Callable[[PackedLayers], SpecOps]
) -> ExactTransforms:
    """Transforms in exact arithmetic on a backend."""
    packed = model if isinstance(model, PackedTransforms) else pack_transforms(model)
    return ExactTransforms(packed, backend(packed))


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
