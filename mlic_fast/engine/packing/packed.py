"""The packed model: integer weights, scales and exponents of the entropy path, and CDF tables."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlic_fast.coder import SCALES, Tables
from mlic_fast.coder.arrays import little_endian
from mlic_fast.errors import CheckpointError
from mlic_fast.models.config import MlicConfig


@dataclass(frozen=True)
class Segment:
    """Weights for one input of a concatenation.

    ``weight`` int16 [O, k, k, C] (depthwise: [C, 3, 3, 1]), real = weight * scale[o].
    """

    weight: npt.NDArray[np.int16]
    scale: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """A layer: its bias, the gain of a norm, and the weights for each of its inputs in order."""

    bias: npt.NDArray[np.float32]
    segments: tuple[Segment, ...] = ()
    gain: npt.NDArray[np.float32] | None = None

    def used(self, inputs: Sequence[Any], partial: Any, first: int | None) -> slice:
        """The segments of some of the inputs, those from number ``first`` on; by default all
        inputs, or the last ones beside a partial sum.
        """
        if first is None:
            first = 0 if partial is None else len(self.segments) - len(inputs)
        return slice(first, first + len(inputs))


class Exponents(dict[str, int]):
    """Exponents from a file. A missing one is an error where it is used."""

    def __missing__(self, name: str) -> int:
        raise CheckpointError(f"the packed model is damaged: it lacks the exponent of {name}")


@dataclass(frozen=True)
class PackedLayers:
    """Networks in integers.

    Attributes:
        config: hyper-parameters.
        layers: by the names of the float model.
        exponents: of every activation, by name.
    """

    config: MlicConfig
    layers: dict[str, Layer]
    exponents: dict[str, int]


@dataclass(frozen=True)
class PackedTransforms(PackedLayers):
    """g_a, h_a and g_s of a model.

    Attributes:
        log_gain, log_inverse_gain: float32 [rates, M], :class:`mlic_fast.models.gain.GainUnits`; of
            a model with a single rate [0, M].
        stages: factors of channels, float32 [C], by the name of the stage where they are scaled
            (:class:`mlic_fast.models.transform_kinds.TransformKind`).
    """

    log_gain: npt.NDArray[np.float32]
    log_inverse_gain: npt.NDArray[np.float32]
    stages: dict[str, npt.NDArray[np.float32]]

    @property
    def analysis_scale(self) -> npt.NDArray[np.float32]:
        """Factors [M] from the result of g_a to latents."""
        stage = self.config.transform_kind.analysis_stage
        return np.ones(self.config.M, np.float32) if stage is None else 1 / self.stages[stage]

    @property
    def hyper_scale(self) -> npt.NDArray[np.float32]:
        """Factors [M] from latents to the input of h_a."""
        return self.stages["h_a"]

    @property
    def synthesis_scale(self) -> npt.NDArray[np.float32]:
        """Factors [M] from latents to the input of g_s."""
        return self.stages[self.config.transform_kind.synthesis_stage]


@dataclass(frozen=True)
class PackedModel(PackedLayers):
    """All that an encoder and a decoder must share to agree on every bit.

    Attributes:
        tables: 64 Gaussian tables, then one for each channel of z.
    """

    tables: Tables

    def hyper_indexes(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
        """The table of every hyper-latent, for z of ``shape`` [B, H, W, N]: that of its channel."""
        first = len(SCALES)
        channels = np.arange(first, first + self.config.N, dtype=np.uint16)
        return np.broadcast_to(channels, shape)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Every array of the model under a name of its own, in a fixed order."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, layer in sorted(self.layers.items()):
            arrays[f"{name}.bias"] = layer.bias
            if layer.gain is not None:
                arrays[f"{name}.gain"] = layer.gain
            for i, segment in enumerate(layer.segments):
                arrays[f"{name}.{i}.weight"] = segment.weight
                arrays[f"{name}.{i}.scale"] = segment.scale
        for name, array in sorted(self.tables.to_arrays().items()):
            arrays[f"tables.{name}"] = array
        arrays["exponents"] = np.array([e for _, e in sorted(self.exponents.items())], np.int32)
        return arrays

    @classmethod
    def from_arrays(
        cls, config: MlicConfig, arrays: dict[str, npt.NDArray[Any]], names: list[str]
    ) -> PackedModel:
        """Inverse of :meth:`arrays`; ``names`` are those of the exponents, sorted."""
        layers: dict[str, Layer] = {}
        tables = {}
        segments: dict[str, dict[int, dict[str, npt.NDArray[Any]]]] = {}
        for name, array in arrays.items():
            layer, _, kind = name.rpartition(".")
            if layer == "tables":
                tables[kind] = array
            elif kind in ("weight", "scale"):
                layer, _, index = layer.rpartition(".")
                segments.setdefault(layer, {}).setdefault(int(index), {})[kind] = array
        for name, bias in arrays.items():
            if name.endswith(".bias"):
                layer = name.removesuffix(".bias")
                parts = tuple(Segment(**s) for _, s in sorted(segments.get(layer, {}).items()))
                layers[layer] = Layer(bias, parts, arrays.get(f"{layer}.gain"))
        if arrays["exponents"].dtype != np.int32 or arrays["exponents"].ndim != 1:
            raise ValueError("exponents must be a vector of int32")
        if not all(isinstance(name, str) for name in names):
            raise ValueError("the names of the exponents are no names")
        exponents = Exponents(zip(names, arrays["exponents"].tolist(), strict=True))
        return cls(config, layers, exponents, Tables.from_arrays(tables))

    def digest(self) -> bytes:
        """SHA-256 of the configuration and all arrays (little-endian bytes)."""
        digest = hashlib.sha256(self.config.to_json().encode())
        for name, array in self.arrays().items():
            array = little_endian(array)
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.digest()
