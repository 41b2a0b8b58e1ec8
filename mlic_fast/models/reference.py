"""The reference engine: float32 and ``compressai.ans``, step by step as the public MLIC++ code.

It is the baseline of every benchmark. Symbols and indexes leave the device as Python lists, once a
pass; the tables are converted again at every decoding call; one string carries a whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mlic_fast.models.checkerboard import Parity, squeeze, unsqueeze
from mlic_fast.models.compressai_import import compressai_ans

if TYPE_CHECKING:
    from mlic_fast.models.entropy import EntropyBottleneck, GaussianConditional
    from mlic_fast.models.mlic import MlicModel


class ListEncoder:
    """Rounds y about the means and collects symbols and indexes in lists."""

    def __init__(self, y: Tensor, slices: int, prior: GaussianConditional) -> None:
        self._y = y.chunk(slices, dim=1)
        self._prior = prior
        self.symbols: list[int] = []
        self.indexes: list[int] = []

    def __call__(self, index: int, parity: Parity, scales: Tensor, means: Tensor) -> Tensor:
        means = squeeze(means, parity)
        symbols = torch.round(squeeze(self._y[index], parity) - means).int()
        self.symbols.extend(symbols.reshape(-1).tolist())
        self.indexes.extend(self._prior.indexes(squeeze(scales, parity)).reshape(-1).tolist())
        return unsqueeze(symbols + means, parity)


class ListDecoder:
    """Decodes a pass from CompressAI's stream, through lists."""

    def __init__(self, string: bytes, prior: GaussianConditional) -> None:
        self._prior = prior
        self._tables = prior.tables()
        self._decoder = compressai_ans().RansDecoder()
        self._decoder.set_stream(string)

    def __call__(self, index: int, parity: Parity, scales: Tensor, means: Tensor) -> Tensor:
        indexes = self._prior.indexes(squeeze(scales, parity))
        means = squeeze(means, parity)
        symbols = self._decoder.decode_stream(indexes.reshape(-1).tolist(), *self._tables)
        values = torch.tensor(symbols, dtype=means.dtype, device=means.device)
        return unsqueeze(values.reshape(means.shape) + means, parity)


def _channel_indexes(channels: int, height: int, width: int) -> list[int]:
    return torch.arange(channels).repeat_interleave(height * width).tolist()


def _compress_hyper(prior: EntropyBottleneck, z: Tensor) -> list[bytes]:
    encoder, tables = compressai_ans().RansEncoder(), prior.tables()
    symbols = torch.round(z - prior.medians()).int()
    indexes = _channel_indexes(*z.shape[1:])
    return [encoder.encode_with_indexes(s.reshape(-1).tolist(), indexes, *tables) for s in symbols]


def _decompress_hyper(
    prior: EntropyBottleneck, strings: list[bytes], shape: tuple[int, int]
) -> Tensor:
    decoder, tables = compressai_ans().RansDecoder(), prior.tables()
    channels = len(prior.quantiles)
    indexes = _channel_indexes(channels, *shape)
    values = [decoder.decode_with_indexes(s, indexes, *tables) for s in strings]
    medians = prior.medians()
    z = torch.tensor(values, dtype=medians.dtype, device=medians.device)
    return z.reshape(len(strings), channels, *shape) + medians


def encode_latents(model: MlicModel, y: Tensor) -> tuple[dict[str, Any], Tensor]:
    """Latents y [B, M, H, W] -> what ``compress`` returns, and the decoded latents."""
    z = model.h_a(y)
    z_strings = _compress_hyper(model.entropy_bottleneck, z)
    z_hat = _decompress_hyper(model.entropy_bottleneck, z_strings, (z.shape[2], z.shape[3]))
    collected = ListEncoder(y, model.config.slices, model.gaussian_conditional)
    y_hat = model.code_latents(model.h_s(z_hat), collected)
    encoder = compressai_ans().BufferedRansEncoder()
    tables = model.gaussian_conditional.tables()
    encoder.encode_with_indexes(collected.symbols, collected.indexes, *tables)
    return {"strings": [[encoder.flush()], z_strings], "shape": tuple(z.shape[2:])}, y_hat


def decode_latents(model: MlicModel, strings: list[list[bytes]], shape: tuple[int, int]) -> Tensor:
    """Inverse of :func:`encode_latents`: the decoded latents [B, M, H, W]."""
    z_hat = _decompress_hyper(model.entropy_bottleneck, strings[1], shape)
    decoder = ListDecoder(strings[0][0], model.gaussian_conditional)
    return model.code_latents(model.h_s(z_hat), decoder)


def compress(model: MlicModel, x: Tensor, rate: Tensor | None = None) -> dict[str, Any]:
    """Image [B, 3, H, W] -> ``strings`` [[y], [z of each image]] and ``shape`` of z."""
    return encode_latents(model, model.analyse(x, rate))[0]


def decompress(
    model: MlicModel, strings: list[list[bytes]], shape: tuple[int, int], rate: Tensor | None = None
) -> dict[str, Any]:
    """Inverse of :func:`compress`: ``x_hat`` [B, 3, H, W]."""
    return {"x_hat": model.synthesise(decode_latents(model, strings, shape), rate)}
