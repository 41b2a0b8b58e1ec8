"""The exact engine: streams that decode everywhere, on any backend of the entropy path."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mlic_fast.bitstream import EXACT
from mlic_fast.coder import Decoder, Encoder
from mlic_fast.engine.arithmetic import Float, Int32, SpecOps, to_symbols
from mlic_fast.engine.cpu.recording import Client, Recordings, Work
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
        recordings: if given, work on small pictures is recorded, and replayed for the next picture
            of the same size; transforms and ops must then be on the kernels of the CPU engine.
    """

    arithmetic_version = EXACT
    arrays: Literal["numpy", "torch"] = "numpy"

    def __init__(
        self,
        transforms: ExactTransforms,
        packed: PackedModel,
        ops: SpecOps,
        name: str,
        recordings: Recordings | None = None,
    ) -> None:
        self.name = name
        self._transforms = transforms
        self._packed = packed
        self._ops = ops
        self._recordings = recordings

    def encode(self, image: list[Pixels], rate: float | None) -> tuple[bytes, int]:
        pixels = image[0].shape[2] * image[0].shape[3]
        return self._encode(self._run(self._analyse, Client(), pixels, image), pixels, rate)

    def encoder(self, image: Pixels) -> Callable[[float | None], tuple[bytes, int]]:
        pixels = image.shape[2] * image.shape[3]
        (latents,) = self._run(self._analyse, Client(), pixels, [image])
        return lambda rate: self._encode([latents], pixels, rate)

    def _analyse(self, client: Client, arrays: list[Any]) -> list[Any]:
        """[images] -> [what g_a gives]."""
        return [self._transforms.analysis(arrays.pop())]

    def _encode(self, latents: list[Float], pixels: int, rate: float | None) -> tuple[bytes, int]:
        """[What g_a gave], of so many pixels, is taken out of the list -> payload and lanes."""
        latents.append(self._transforms.scales(rate)[0])
        client = Client(Encoder(self._packed.tables))
        self._run(self._encode_latents, client, pixels, latents)
        return client.coder.finish(client.digest & 0xFFFFFFFF), client.coder.lanes

    def _encode_latents(self, client: Client, arrays: list[Any]) -> list[Any]:
        """[What g_a gave, factors for its channels] -> the symbols, for the client's coder.

        Of the latents y stays for all passes: its slices are views of it.
        """
        ops, factors = self._ops, arrays.pop()
        y, z = self._transforms.at_rate(arrays.pop(), factors)
        z_symbols = ops.room(z.shape, np.int32)
        medians, hyper_indexes = self._packed.layers["medians"].bias, self._packed.hyper_indexes

        def encode_hyper(z: Float = z) -> None:
            z_symbols[...] = to_symbols(z - medians)
            client.coder.encode(z_symbols, hyper_indexes(z_symbols.shape))

        ops.step(encode_hyper)
        del z, encode_hyper

        def take(index: int, y_hat: Float) -> None:
            def add_digest() -> None:
                client.digest += ops.digest(y_hat, first=index * y_hat.size)

            ops.step(add_digest)

        slices = np.split(y, self._packed.config.slices, axis=-1)
        code_latents(ops, z_symbols, _Encoding(ops, client), slices, take)
        return []

    def decode(self, payload: bytes, lanes: int, size: tuple[int, int]) -> tuple[Float, int]:
        client = Client(Decoder(self._packed.tables, payload, lanes, self._ops.threads))
        symbols = client.coder.decode(self._packed.hyper_indexes((1, *size, self._packed.config.N)))
        height, width = size
        (y_hat,) = self._run(self._decode_passes, client, 64 * height * 64 * width, [symbols])
        return np.moveaxis(y_hat, -1, 1), client.coder.finish()

    def _decode_passes(self, client: Client, arrays: list[Any]) -> list[Any]:
        """[Symbols of z] -> [the latents that the client's coder holds, B x H x W x M]."""
        ops, z_symbols = self._ops, arrays.pop()
        batch, height, width, _ = z_symbols.shape
        y_hat = ops.room((batch, 4 * height, 4 * width, self._packed.config.M), np.float32)

        def take(index: int, y: Float) -> None:
            channels = y.shape[-1]
            into = y_hat[..., index * channels : (index + 1) * channels]
            ops.step(lambda: np.copyto(into, y))

        code_latents(ops, z_symbols, _Decoding(ops, client), take=take)
        return [y_hat]

    def digest(self, y_hat: Float) -> int:
        return self._ops.digest(np.moveaxis(y_hat, 1, -1))

    def synthesise(self, y_hat: Float, rate: float | None) -> Pixels:
        y = np.moveaxis(y_hat, 1, -1)
        _, height, width, _ = y.shape
        factors = self._transforms.scales(rate)[1]
        pixels = 16 * height * 16 * width
        (images,) = self._run(self._synthesise, Client(), pixels, [y, factors])
        return images

    def _synthesise(self, client: Client, arrays: list[Any]) -> list[Any]:
        """[Latents, factors for their channels] -> [images]."""
        factors = arrays.pop()
        return [self._transforms.synthesis(arrays.pop(), factors)]

    def _run(self, work: Work, client: Client, pixels: int, arrays: list[Any]) -> list[Any]:
        """The work for a client, of a picture with so many pixels."""
        recordings = self._recordings
        if recordings is None:
            return work(client, arrays)
        return recordings.run(work, client, pixels, arrays)


def cpu_transforms(
    model: Transforms | PackedTransforms, backend: Callable[[PackedLayers], SpecOps]
) -> ExactTransforms:
    """Transforms in exact arithmetic on a backend."""
    packed = model if isinstance(model, PackedTransforms) else pack_transforms(model)
    return ExactTransforms(packed, backend(packed))


class _Encoding:
    """Pass coder of an encoder."""

    def __init__(self, ops: SpecOps, client: Client) -> None:
        self._ops, self._client = ops, client

    def __call__(
        self, index: int, parity: Parity, scale_indexes: Indexes, means: Float, symbols: Int32
    ) -> Int32:
        client = self._client
        self._ops.step(lambda: client.coder.encode(symbols, scale_indexes))
        return symbols


class _Decoding:
    """Pass coder of a decoder."""

    def __init__(self, ops: SpecOps, client: Client) -> None:
        self._ops, self._client = ops, client

    def __call__(
        self, index: int, parity: Parity, scale_indexes: Indexes, means: Float, symbols: None
    ) -> Int32:
        client, decoded = self._client, self._ops.room(scale_indexes.shape, np.int32)
        self._ops.step(lambda: np.copyto(decoded, client.coder.decode(scale_indexes)))
        return decoded
