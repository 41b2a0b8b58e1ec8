"""The exact path against the float model, and encoder against decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lively import SMALL, photograph
from torch import Tensor

from mlic_fast.coder import SCALES
from mlic_fast.engine.arithmetic import SpecOps, squeeze
from mlic_fast.engine.exact_engine import ExactEngine, cpu_transforms
from mlic_fast.engine.operations import Latents
from mlic_fast.engine.packing.packed import PackedModel
from mlic_fast.engine.packing.packer import pack
from mlic_fast.engine.path import code_latents
from mlic_fast.models import MlicModel, load_checkpoint
from mlic_fast.models import checkerboard as planar
from mlic_fast.models.checkerboard import Parity

Array = np.ndarray


class Recorder:
    """The symbols of given latents, or those of a list; keeps what every pass saw."""

    def __init__(self, given: list[Array] | None = None) -> None:
        self.given = given
        self.symbols: list[Array] = []
        self.indexes: list[Array] = []
        self.means: list[Array] = []

    def __call__(
        self, index: int, parity: Parity, indexes: Array, means: Array, symbols: Array | None
    ) -> Array:
        self.indexes.append(indexes)
        self.means.append(means)
        if symbols is None:
            assert self.given is not None
            symbols = self.given[len(self.symbols)]
        self.symbols.append(symbols)
        return symbols


def last(x: Tensor) -> Array:
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())


def latents(model: MlicModel, x: Tensor) -> tuple[Array, Array]:
    """y, and symbols of z, [B, H, W, C]."""
    with torch.no_grad():
        y = model.analyse(x)
        z = model.h_a(y)
    symbols = torch.round(z - model.entropy_bottleneck.medians())
    return last(y), last(symbols).astype(np.int32)


def exact(packed: PackedModel, y: Array, z: Array) -> tuple[Recorder, list[Array]]:
    recorder = Recorder()
    slices = np.split(y, packed.config.slices, axis=-1)
    return recorder, code_latents(SpecOps(packed), z, recorder, slices).y


def decoded(packed: PackedModel, z: Array, symbols: list[Array]) -> tuple[Recorder, list[Array]]:
    recorder = Recorder(symbols)
    return recorder, code_latents(SpecOps(packed), z, recorder).y


def in_float(model: MlicModel, z: Array, symbols: list[Array]) -> list[tuple[Tensor, Tensor]]:
    """Scales and means of the float model when every pass decodes the given symbols."""
    seen: list[tuple[Tensor, Tensor]] = []

    def code(index: int, parity: Parity, scales: Tensor, means: Tensor) -> Tensor:
        seen.append((planar.squeeze(scales, parity), planar.squeeze(means, parity)))
        half = torch.from_numpy(symbols[len(seen) - 1]).permute(0, 3, 1, 2).double()
        return planar.unsqueeze(half + seen[-1][1], parity)

    model = model.double()
    z_hat = torch.from_numpy(z).permute(0, 3, 1, 2).double() + model.entropy_bottleneck.medians()
    with torch.no_grad():
        model.code_latents(model.h_s(z_hat), code)
    model.float()
    return seen


def bits(symbols: Array, scales: Array) -> float:
    """Ideal size of symbols under Gaussians of these scales."""
    x, s = torch.from_numpy(np.abs(symbols)).double(), torch.from_numpy(scales).double()
    p = torch.special.ndtr((0.5 - x) / s) - torch.special.ndtr((-0.5 - x) / s)
    return float(-p.clamp(min=1e-9).log2().sum())


def compare(model: MlicModel, x: Tensor) -> tuple[float, float, float]:
    """Share of scale indexes that differ, relative error of means, relative excess of bits."""
    packed = pack(model)
    y, z = latents(model, x)
    recorder, y_hat = exact(packed, y, z)
    assert np.isfinite(np.concatenate(y_hat, -1)).all()
    seen = in_float(model, z, recorder.symbols)
    tables = np.asarray(SCALES, np.float64)
    nearest = np.sqrt(tables[:-1] * tables[1:])
    moved, error, spread, own, theirs = [], 0.0, 0.0, 0.0, 0.0
    for number, (scales, means) in enumerate(seen):
        expected = last(means)
        index = np.searchsorted(nearest, last(scales))
        moved.append((index != recorder.indexes[number]).mean())
        error += float(np.square(recorder.means[number] - expected).sum())
        spread += float(np.square(expected).sum())
        own += bits(recorder.symbols[number], tables[recorder.indexes[number]])
        # What the float model would have spent on the same latents in the same context.
        parity = Parity.NON_ANCHOR if number % 2 else Parity.ANCHOR
        slice_ = np.split(y, packed.config.slices, axis=-1)[number // 2]
        theirs += bits(np.rint(squeeze(slice_, parity) - expected), tables[index])
    return float(np.mean(moved)), (error / spread) ** 0.5, own / theirs - 1


def test_close_to_the_float_model(model: MlicModel) -> None:
    """Random weights: the activations are smaller, for their exponents, than trained ones."""
    moved, means, excess = compare(model, photograph(128, 192))
    assert moved < 0.4
    assert means < 0.1
    assert abs(excess) < 5e-3


def test_size_of_a_photograph(shared_dir: Path) -> None:
    """Untrained weights, whose latents exceed what their prior expects: a few activations saturate.

    The size stays within 0.1 % of the float model's all the same.
    """
    data = pytest.importorskip("skimage.data")
    photo = torch.from_numpy(data.astronaut()[:192, 128:320].copy())
    model = load_checkpoint(shared_dir / "golden" / "mlicpp_small.safetensors")
    moved, means, excess = compare(model, photo.permute(2, 0, 1)[None].float() / 255)
    assert moved < 0.02
    assert means < 0.1
    assert abs(excess) < 1e-3


def test_batch_is_its_images_bit_for_bit(model: MlicModel) -> None:
    packed = pack(model)
    y, z = latents(model, photograph(64, 128, batch=3))
    together, y_hat = exact(packed, y, z)
    for i in range(3):
        alone, single = exact(packed, y[i : i + 1], z[i : i + 1])
        assert all(np.array_equal(a[i : i + 1], b) for a, b in zip(y_hat, single, strict=True))
        for name in ("symbols", "indexes", "means"):
            pairs = zip(getattr(together, name), getattr(alone, name), strict=True)
            assert all(np.array_equal(a[i : i + 1], b) for a, b in pairs), name


@pytest.mark.parametrize("kind", ["photograph", "huge", "alternating", "random", "zero"])
def test_decoder_follows_the_encoder(model: MlicModel, kind: str, poisoned: None) -> None:
    """Far beyond what calibration saw: everything saturates, alike on both sides."""
    packed = pack(model)
    y, z = latents(model, photograph(64, 64))
    random = np.random.default_rng(1)
    if kind == "huge":
        y, z = y * 1e5, z * 100000
    elif kind == "alternating":
        y = np.full_like(y, 3e6) * np.sign(random.standard_normal(y.shape)).astype(np.float32)
        z = np.where(random.random(z.shape) < 0.5, -(2**22), 2**22).astype(np.int32)
    elif kind == "random":
        z = random.integers(-300, 300, z.shape).astype(np.int32)
        y = (random.standard_normal(y.shape) * 500).astype(np.float32)
    elif kind == "zero":
        y, z = y * 0, z * 0
    encoder, y_hat = exact(packed, y, z)
    decoder, again = decoded(packed, z, encoder.symbols)
    assert all(np.array_equal(a, b) for a, b in zip(y_hat, again, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(encoder.indexes, decoder.indexes, strict=True))
    assert np.abs(np.concatenate(y_hat, -1) - y).max() <= 1 + np.abs(y).max() * 1e-6


class Perturbed(SpecOps):
    """One latent of the decoder is off by one unit in the last place, as drift between machines."""

    def decoded(self, latents: Latents, index: int, *arguments: Any) -> None:
        super().decoded(latents, index, *arguments)
        y = latents.y[index]
        y[0, 0, 1, 0] = np.nextafter(y[0, 0, 1, 0], np.float32(np.inf))


def test_the_smallest_drift_shows_in_the_digest(small_models: dict[str, MlicModel]) -> None:
    from mlic_fast.engine.digest import latents_digest

    model = small_models["mlic_plus_plus"]
    packed = pack(model)
    transforms = cpu_transforms(model, SpecOps)
    encoder = ExactEngine(transforms, packed, SpecOps(packed), "spec")
    decoder = ExactEngine(transforms, packed, Perturbed(packed), "spec")
    with torch.inference_mode():
        payload, lanes = encoder.encode([photograph(64, 64)], None)
        y_hat, digest = encoder.decode(payload, lanes, (1, 1))
        assert latents_digest(y_hat) == digest
        try:
            y_hat, digest = decoder.decode(payload, lanes, (1, 1))
        except Exception as error:
            assert type(error).__name__ == "CorruptStreamError"
        else:
            assert latents_digest(y_hat) != digest


def test_means_that_are_not_numbers_stay_in_step() -> None:
    """Infinite means (weights near the end of float32) reach quantisation as NaN at worst."""
    from lively import lively_model

    model = lively_model(SMALL["mlic"]).eval()
    packed = pack(model)
    layer = packed.layers["entropy_parameters_anchor.0.fusion.6"]
    layer.bias[20], layer.bias[21] = np.inf, np.nan
    _, z = latents(model, photograph(64, 64))
    with np.errstate(all="ignore"):
        symbols = [np.ones((1, 4, 2, 16), np.int32)] * 6
        recorder, first = decoded(packed, z, symbols)
        _, again = decoded(packed, z, symbols)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, again, strict=True))
    assert all(i.max() < 64 for i in recorder.indexes)
