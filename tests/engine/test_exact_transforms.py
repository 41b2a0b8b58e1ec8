"""Transforms in exact arithmetic: one result everywhere, and close to the float model's."""

from __future__ import annotations

import copy
import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from lively import BLOCKS, SMALL, lively_model, photograph

import mlic_fast
from mlic_fast._C import exact
from mlic_fast.engine import bands
from mlic_fast.engine.arithmetic import SpecOps
from mlic_fast.engine.cpu.cpu_operations import CpuOps
from mlic_fast.engine.exact_transforms import ExactTransforms, exact_exp
from mlic_fast.engine.packing.pack_transforms import calibration_card, pack_transforms
from mlic_fast.engine.packing.packed import PackedTransforms
from mlic_fast.engine.per_image import to_pixels, to_unit
from mlic_fast.errors import CheckpointError
from mlic_fast.models import MlicModel

RATE = 0.7


CONFIGS = {
    "blocks": BLOCKS,
    "residual": replace(SMALL["mlic"], lambdas=(0.01, 0.02)),
    "2023": replace(SMALL["mlic"], weight_family="2023", lambdas=(0.01, 0.02)),  # g_s has a skip
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> MlicModel:
    return lively_model(CONFIGS[request.param]).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def packed(model: MlicModel) -> PackedTransforms:
    return pack_transforms(model)


def pixels(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return (photograph(height, width, batch=batch) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("isa", exact.instruction_sets())
@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize(("height", "width", "batch"), [(64, 64, 1), (128, 192, 2), (64, 832, 1)])
def test_backends_agree(
    model: MlicModel,
    packed: PackedTransforms,
    isa: str,
    threads: int,
    height: int,
    width: int,
    batch: int,
) -> None:
    """More positions than a tile has, tiles that end within a row, columns of one colour alone."""
    ops = CpuOps(packed, isa=isa, threads=threads)
    ours = ExactTransforms(packed, ops)
    judge = ExactTransforms(packed, SpecOps(packed))
    images = pixels(height, 2 * width, batch)[..., ::2]  # not contiguous
    y, z = judge.analyse(images, RATE)
    assert y.std() > 0.1 and y.shape == (batch, model.config.M, height // 16, width // 16)
    for mine, theirs in zip(ours.analyse(images, RATE), (y, z), strict=True):
        assert mine.dtype == np.float32 and np.array_equal(mine, theirs)
    decoded = judge.synthesise(y.round(), RATE)
    assert decoded.shape == images.shape and decoded.dtype == np.uint8
    assert decoded.std() > 5
    assert np.array_equal(ours.synthesise(y.round(), RATE), decoded)


def test_depths() -> None:
    """Other numbers of blocks; a model of one rate has no gains."""
    for analysis, synthesis in (((1, 3), (2, 1)), ((3, 1), (1, 1))):
        config = replace(BLOCKS, analysis_blocks=analysis, synthesis_blocks=synthesis, lambdas=())
        shallow = lively_model(config).eval()
        packed = pack_transforms(shallow)
        mine, theirs = (ExactTransforms(packed, backend(packed)) for backend in (CpuOps, SpecOps))
        y, z = mine.analyse(pixels(64, 64), None)
        assert all(map(np.array_equal, theirs.analyse(pixels(64, 64), None), (y, z)))
        assert np.array_equal(mine.synthesise(y, None), theirs.synthesise(y, None))


def test_residual_transforms_are_those_of_the_model(model: MlicModel) -> None:
    """Within what 13 bits an activation leave; the block ones are judged by the shipped model."""
    transforms = ExactTransforms(pack_transforms(model), CpuOps(pack_transforms(model)))
    images, rate = pixels(128, 192), torch.tensor([RATE])
    with torch.inference_mode():
        y = model.analyse(to_unit(images), rate)
        z, decoded = model.h_a(y), to_pixels(model.synthesise(y.round(), rate)).float()
    found = transforms.analyse(images, RATE)
    for mine, theirs in zip(found, (y.numpy(), z.numpy()), strict=True):
        assert np.abs(mine - theirs).std() < 0.01 * theirs.std()
    away = transforms.synthesise(y.round(), RATE) - decoded.numpy()
    assert away.std() < 0.02 * float(decoded.std())


def test_bands_change_no_bit(
    model: MlicModel, packed: PackedTransforms, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ExactTransforms(packed, CpuOps(packed))
    images = pixels(448, 64)
    y, z = whole.analyse(images, RATE)
    decoded = whole.synthesise(y.round(), RATE)
    monkeypatch.setattr(bands, "BAND_POSITIONS", 16)
    assert len(bands.bands(28, 4, 7)) > 1
    again = whole.analyse(images, RATE)
    assert np.array_equal(again[0], y) and np.array_equal(again[1], z)
    assert np.array_equal(whole.synthesise(y.round(), RATE), decoded)


def test_inputs_are_left_alone(model: MlicModel, packed: PackedTransforms) -> None:
    transforms = ExactTransforms(packed, CpuOps(packed))
    images = pixels(64, 64)
    before = images.clone()
    y, _ = transforms.analyse(images, RATE)
    kept = y.copy()
    first = transforms.synthesise(y, RATE)
    assert torch.equal(images, before) and np.array_equal(y, kept)
    assert np.array_equal(transforms.synthesise(y, RATE), first)


def test_packing_depends_on_nothing_but_the_model(
    model: MlicModel, packed: PackedTransforms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLIC_FAST_ISA", "scalar")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        again = pack_transforms(model)
    finally:
        torch.set_num_threads(threads)
    assert again.exponents == packed.exponents and again.layers.keys() == packed.layers.keys()
    for name, layer in packed.layers.items():
        other = again.layers[name]
        assert np.array_equal(layer.bias, other.bias)
        for mine, theirs in zip(layer.segments, other.segments, strict=True):
            assert np.array_equal(mine.weight, theirs.weight)
            assert np.array_equal(mine.scale, theirs.scale)
    assert np.array_equal(again.analysis_scale, packed.analysis_scale)
    assert np.array_equal(again.synthesis_scale, packed.synthesis_scale)


def test_weights_that_overflow_are_refused(model: MlicModel) -> None:
    broken = copy.deepcopy(model)
    next(broken.g_s.parameters()).fill_(1e38)
    with pytest.raises(CheckpointError, match="overflows"):
        pack_transforms(broken)


def test_the_calibration_card_never_changes() -> None:
    """All pixels depend on it."""
    card = calibration_card()
    assert hashlib.sha256(card.tobytes()).hexdigest() == (
        "5a03924389a74b60df6961d5fc59170ac95304569e327f8413ae8b319952c9d9"
    )


def test_the_exponential() -> None:
    x = np.linspace(-30, 30, 12_001)
    right = np.array([math.exp(each) for each in x.tolist()])
    assert (np.abs(exact_exp(x) - right) / right).max() < 1e-12


def test_the_shipped_model_loses_nothing() -> None:
    """Against float32 transforms, at the highest rate, where rounding shows most."""
    codec = mlic_fast.load()
    model, transforms = codec.model, codec._engine._transforms  # type: ignore[attr-defined]
    images = pixels(256, 384)
    for quality, loss in ((1, 0.005), (100, 0.03)):
        rate = codec._rate(quality)
        with torch.inference_mode():
            float_y = model.analyse(to_unit(images), torch.tensor([rate])).round()
            y = transforms.analyse(images, rate)[0].round()
            assert (y != float_y.numpy()).mean() < 0.01
            x_hat = to_pixels(model.synthesise(float_y, torch.tensor([rate])))
            decoded = torch.from_numpy(transforms.synthesise(y, rate))
            assert psnr(decoded, images) > psnr(x_hat, images) - loss
    ranges = {transforms.packed.exponents[stage] for stage in transforms.packed.stages}
    assert ranges == {0}


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return 10 * math.log10(255**2 / (a.double() - b).square().mean().item())
