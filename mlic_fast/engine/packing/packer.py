"""The packer: float checkpoint -> packed model. Deterministic: the same bits on every machine.

Weights get one scale an output channel and input. Activations get a power-of-two scale each, found
by decoding noise: symbols are drawn from the model's own distributions, the exact path runs on
them, and every activation is given the exponent that fits the largest value seen, with headroom.
No image is needed, and what does not fit later saturates, alike in encoder and decoder.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import nn

from mlic_fast.atomic_files import write_atomically
from mlic_fast.coder import SCALES, Tables, factorized_tables, gaussian_tables
from mlic_fast.engine.arithmetic import (
    EXPONENT_LIMIT,
    WEIGHT_LIMIT,
    Float,
    Int32,
)
from mlic_fast.engine.packing.calibration import CalibratingOps
from mlic_fast.engine.packing.integer_weights import (
    BUDGET,
    Weights,
    path_layers,
    sums,
    weights_of,
)
from mlic_fast.engine.packing.packed import PackedModel
from mlic_fast.engine.path import code_latents
from mlic_fast.errors import CheckpointError
from mlic_fast.models.checkpoints import check_finite, check_state, read_safetensors
from mlic_fast.models.config import CONFIG_KEY, MlicConfig
from mlic_fast.models.contexts import LocalContext
from mlic_fast.models.mlic import MlicModel, Transforms, create_model
from mlic_fast.models.networks import TRANSFORMS, exact_inputs
from mlic_fast.models.parity import Parity

#: How far an activation may exceed the largest one seen in calibration before it saturates.
HEADROOM = 2.0
#: Calibration: size of z, and samples drawn at that size.
CALIBRATION_SIZE = 3
CALIBRATION_SAMPLES = 4

_NAMES_KEY = "mlic_fast.exponents"

Array = npt.NDArray[Any]


def pack(model: MlicModel) -> PackedModel:
    """Quantise the entropy path of a model.

    Raises CheckpointError for weights that are not finite, or so large that activations overflow.
    """
    check_finite(model, "the model cannot be packed: it")
    weights = weights_of(model)
    try:
        tables = _tables(weights)
    except (ArithmeticError, ValueError) as error:
        raise CheckpointError(
            f"the model cannot be packed: its prior overflows: {error}"
        ) from error
    packed = PackedModel(model.config, path_layers(model.config, weights, {}), {}, tables)
    ops = CalibratingOps(packed, HEADROOM)
    noise = _Noise(packed)
    code_latents(ops, noise.hyper_symbols(), noise)
    return PackedModel(packed.config, packed.layers, ops.exponents, packed.tables)


def save_packed(model: Transforms, packed: PackedModel, path: str | os.PathLike[str]) -> None:
    """Write a packed file: the entropy path in integers, the transforms as they are."""
    write_atomically(path, packed_bytes(model, packed))


def packed_bytes(model: Transforms, packed: PackedModel) -> bytes:
    """The bytes that :func:`save_packed` writes."""
    tensors = {f"packed.{k}": torch.from_numpy(v.copy()) for k, v in packed.arrays().items()}
    for name, tensor in model.state_dict().items():
        if name.startswith(TRANSFORMS):
            tensors[name] = tensor.contiguous()
    metadata = {
        CONFIG_KEY: packed.config.to_json(),
        _NAMES_KEY: json.dumps(sorted(packed.exponents)),
    }
    return _in_order(save(tensors, metadata))


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its metadata sorted: safetensors writes them in random order."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = dict(sorted(header.pop("__metadata__").items()))
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def load_packed(path: str | os.PathLike[str]) -> tuple[Transforms, PackedModel] | None:
    """Read a packed file; None for a file of another kind.

    Raises CheckpointError for a packed file that is damaged.
    """
    try:
        metadata, tensors = read_safetensors(path)
    except (SafetensorError, OSError):
        return None
    if _NAMES_KEY not in metadata:
        return None
    prefix = "packed."
    arrays = {
        k.removeprefix(prefix): v.numpy().copy()  # the file may be written anew
        for k, v in tensors.items()
        if k.startswith(prefix)
    }
    try:
        config = MlicConfig.from_json(metadata[CONFIG_KEY])
        packed = PackedModel.from_arrays(config, arrays, json.loads(metadata[_NAMES_KEY]))
        _check(packed)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is a damaged packed model: {error}") from error
    state = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
    with torch.device("meta"):  # which costs no memory, whatever sizes are claimed
        expected = Transforms(config).state_dict()
    check_state(expected, state, f"{path} is a damaged packed model")
    model = Transforms(config).float()
    model.load_state_dict(state)
    check_finite(model, str(path))
    return model, packed


def _check(packed: PackedModel) -> None:
    """Raise ValueError unless all layers are there, in the shapes and ranges of the arithmetic."""
    expected = _shapes(packed.config)
    if packed.layers.keys() != expected.keys():
        names = sorted(packed.layers.keys() ^ expected.keys())
        raise ValueError(f"missing or unexpected: {', '.join(names[:8])}")
    for name, layer in packed.layers.items():
        real = [layer.bias, *(s.scale for s in layer.segments)]
        real += [] if layer.gain is None else [layer.gain]
        if (layer.bias.shape, [s.weight.shape for s in layer.segments]) != expected[name] or any(
            s.scale.shape != layer.bias.shape or s.weight.dtype != np.int16 for s in layer.segments
        ):
            raise ValueError(f"{name} has another shape or type")
        is_norm = name.rpartition(".")[2].startswith("norm")
        if is_norm != (layer.gain is not None and layer.gain.shape == layer.bias.shape):
            raise ValueError(f"{name} has no gain, or one of another shape")
        if not all(r.dtype == np.float32 and np.isfinite(r).all() for r in real):
            raise ValueError(f"{name} has values that are not finite float32")
        weights = [s.weight.astype(np.int32) for s in layer.segments]
        if any(sums(w).max() > BUDGET or np.abs(w).max() > WEIGHT_LIMIT for w in weights):
            raise ValueError(f"{name} has weights beyond the limit")
    if len(packed.tables) != len(SCALES) + packed.config.N:
        raise ValueError("another number of tables than 64 and one a channel of z")
    if not all(abs(e) <= EXPONENT_LIMIT for e in packed.exponents.values()):
        raise ValueError("exponents beyond the limit")


def _shapes(config: MlicConfig) -> dict[str, tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """The shape of the bias of every layer of a packed model, and those of its weights."""
    with torch.device("meta"):
        model = create_model(config)
    shapes: dict[str, tuple[tuple[int, ...], list[tuple[int, ...]]]] = {}
    shapes["medians"] = (config.N,), []
    for name, module in model.named_modules():
        if name.startswith(TRANSFORMS):
            continue
        if isinstance(module, nn.Conv2d):
            outputs, channels, kernel, _ = module.weight.shape
            if isinstance(model.get_submodule(".".join(name.split(".")[:2])), LocalContext):
                channels, kernel = channels * kernel**2, 1
            parts = exact_inputs(config, name, channels)
            widths = (part.stop - part.start for part in parts)
            shapes[name] = (outputs,), [(outputs, kernel, kernel, c) for c in widths]
        elif isinstance(module, nn.Linear):
            outputs, channels = module.weight.shape
            shapes[name] = (outputs,), [(outputs, 1, 1, channels)]
        elif isinstance(module, nn.LayerNorm):
            shapes[name] = tuple(module.weight.shape), []
        elif isinstance(module, LocalContext):
            area = len(module.relative_position_index)
            shapes[f"{name}.attention"] = (module.num_heads, area, area), []
    return shapes


class _Noise:
    """Pass coder that draws symbols from the distributions that the model itself predicts."""

    def __init__(self, packed: PackedModel) -> None:
        self._packed = packed
        # Raw bits: numpy keeps these, but not what it makes of them, the same in all versions.
        self._random = np.random.PCG64(0)

    def hyper_symbols(self) -> Int32:
        """z of several samples: half of them constant over the image, as in flat regions."""
        size = CALIBRATION_SIZE
        shape = (CALIBRATION_SAMPLES, size, size, self._packed.config.N)
        symbols = self._draw(self._packed.hyper_indexes(shape))
        flat = CALIBRATION_SAMPLES // 2
        symbols[:flat] = symbols[:flat, :1, :1]
        return symbols

    def __call__(
        self, index: int, parity: Parity, scale_indexes: Array, means: Float, symbols: None
    ) -> Int32:
        return self._draw(scale_indexes)

    def _draw(self, indexes: Array) -> Int32:
        """Symbols of the given tables; an escape counts as the largest symbol."""
        tables = self._packed.tables
        ends = np.cumsum(tables.frequencies, dtype=np.int64)
        first = (np.cumsum(tables.sizes) - tables.sizes)[indexes]
        raw = self._random.random_raw(indexes.size) >> np.uint64(48)
        uniform = raw.astype(np.int64).reshape(indexes.shape)
        slot = uniform >> (16 - tables.precisions[indexes].astype(np.int64))
        slot += np.where(first > 0, ends[first - 1], 0)
        entry = np.searchsorted(ends, slot, side="right") - first
        return (tables.minima[indexes] + np.minimum(entry, tables.sizes[indexes] - 2)).astype(
            np.int32
        )


def _tables(weights: Weights) -> Tables:
    prior = "entropy_bottleneck"
    matrices, biases, factors = (
        [weights[name] for name in sorted(weights) if name.startswith(f"{prior}.{part}.")]
        for part in ("matrices", "biases", "factors")
    )
    medians = weights[f"{prior}.quantiles"][:, 0, 1]
    hyper_tables = factorized_tables(matrices, biases, factors, medians)
    return Tables.concatenate([gaussian_tables(), hyper_tables])
