"""The trainer's start: KLTs in the linear parts of g_a and g_s."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from lively import TINY
from numpy.typing import NDArray
from torch import Tensor

from mlic_fast.models import MlicConfig, MlicModel, create_model
from mlic_fast.training import klt
from mlic_fast.training.klt import start_from_klt

LAMBDAS = (0.0018, 0.0130, 0.0483)
SMALL = replace(
    TINY,
    stage_channels=(16, 24, 40),
    hyper_channels=(8, 8),
    entropy_parameters_channels=(8, 8, 8),
)
CONFIGS = {
    "mlic_plus_plus": SMALL,
    "mlic_plus": replace(SMALL, variant="mlic_plus"),
    "mlic": replace(SMALL, variant="mlic"),
    "variable rate": replace(SMALL, lambdas=LAMBDAS),
    "2023": replace(SMALL, weight_family="2023"),
    "narrow": replace(SMALL, stage_channels=(2, 4, 3)),
    "odd": replace(SMALL, stage_channels=(7, 9, 11)),
}


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """GDN divides by one."""
    monkeypatch.setattr(klt, "_GAMMA", 0.0)


def pictures(seed: int, count: int, height: int = 64, width: int = 96) -> Tensor:
    """Neighbours and colours are alike, and yet every linear combination varies."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.02 * torch.randn(count, 3, height, width, generator=generator)
    for side in (4, 16, 32):
        coarse = torch.randn(count, 3, height // side, width // side, generator=generator)
        coarse += 2 * torch.randn(count, 1, height // side, width // side, generator=generator)
        images += side / 1000 * torch.nn.functional.interpolate(coarse, (height, width))
    return images + torch.tensor([0.5, 0.4, 0.3])[:, None, None]


def started(config: MlicConfig, patches: Tensor) -> MlicModel:
    torch.manual_seed(7)
    model = create_model(config)
    start_from_klt(model, patches, LAMBDAS)
    return model


class Tree:
    """The tree by singular value decompositions of samples."""

    def __init__(self, config: MlicConfig, patches: Tensor) -> None:
        *stages, last = *config.stage_channels, config.M
        if config.weight_family == "2023":
            last = stages[2]
        self.mean = patches.double().numpy().mean(axis=(0, 2, 3))
        self.bases: list[NDArray[np.float64]] = []
        samples = self.centred(patches)
        for width in [width // 2 for width in stages] + [last]:
            blocks = self.split(samples)
            _, _, directions = np.linalg.svd(
                blocks.reshape(-1, blocks.shape[-1]), full_matrices=False
            )
            self.bases.append(directions[:width])
            samples = blocks @ directions[:width].T
        self.deviations = np.sqrt(np.square(samples).mean(axis=(0, 1, 2)))

    def centred(self, images: Tensor) -> NDArray[np.float64]:
        return np.asarray(images.permute(0, 2, 3, 1).double().numpy() - self.mean)

    @staticmethod
    def split(samples: NDArray[np.float64]) -> NDArray[np.float64]:
        corners = [samples[:, i::2, j::2] for i in range(2) for j in range(2)]
        return np.concatenate(corners, axis=-1)

    def project(self, images: Tensor) -> NDArray[np.float64]:
        samples = self.centred(images)
        for basis in self.bases:
            samples = self.split(samples) @ basis.T
        for basis in reversed(self.bases):
            corners = np.split(samples @ basis, 4, axis=-1)
            batch, height, width, channels = corners[0].shape
            samples = np.empty((batch, 2 * height, 2 * width, channels))
            for k, corner in enumerate(corners):
                samples[:, k // 2 :: 2, k % 2 :: 2] = corner
        return np.asarray((samples + self.mean).transpose(0, 3, 1, 2))


@pytest.mark.usefixtures("linear")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_the_transforms_project_onto_the_tree(config: MlicConfig) -> None:
    patches, images = pictures(1, 6), pictures(2, 2)
    model, tree = started(config, patches), Tree(config, patches)
    y = model.g_a(images)
    difference = model.g_s(y).double().numpy() - tree.project(images)
    assert np.abs(difference).max() < 2e-5
    assert not y[:, len(tree.deviations) :].any()


@pytest.mark.usefixtures("linear")
@torch.no_grad()
def test_wide_networks_reconstruct_exactly() -> None:
    config = replace(SMALL, variant="mlic", M=768, slices=6, stage_channels=(24, 96, 384))
    images = pictures(2, 1)
    model = started(config, pictures(1, 20))
    assert (model.g_s(model.g_a(images)) - images).abs().max() < 2e-5


@pytest.mark.parametrize(("width", "m"), [(200, 64), (24, 64), (192, 768)])
@torch.no_grad()
def test_block_transforms_project_onto_two_levels(width: int, m: int) -> None:
    slices = max(2, m // 128)
    config = replace(SMALL, transforms="blocks", block_channels=width, M=m, slices=slices)
    patches, images = pictures(1, 48), pictures(2, 2)
    model = started(config, patches)
    mean = patches.double().numpy().mean(axis=(0, 2, 3))

    def blocks(x: NDArray[np.float64], side: int) -> NDArray[np.float64]:
        """[B, H, W, C] -> [B, H / side, W / side, C * side^2], channels first, then rows."""
        b, h, w, c = x.shape
        x = x.reshape(b, h // side, side, w // side, side, c)
        return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, h // side, w // side, -1)

    def back(x: NDArray[np.float64], side: int) -> NDArray[np.float64]:
        b, h, w, c = x.shape
        x = x.reshape(b, h, w, c // side**2, side, side).transpose(0, 1, 4, 2, 5, 3)
        return x.reshape(b, h * side, w * side, -1)

    def basis(samples: NDArray[np.float64], k: int) -> NDArray[np.float64]:
        _, _, rows = np.linalg.svd(samples.reshape(-1, samples.shape[-1]), full_matrices=False)
        return np.asarray(rows[:k])

    samples = blocks(patches.permute(0, 2, 3, 1).double().numpy() - mean, 8)
    fine = basis(samples, width)
    coarse = basis(blocks(samples @ fine.T, 2), m)
    x = images.permute(0, 2, 3, 1).double().numpy() - mean
    y = blocks(blocks(x, 8) @ fine.T, 2) @ coarse.T
    expected = back(back(y @ coarse, 2) @ fine, 8) + mean
    found = model.g_s(model.g_a(images)).permute(0, 2, 3, 1).double().numpy()
    assert np.abs(found - expected).max() < 2e-5
    if m == 768:  # nothing is left out
        assert np.abs(found - x - mean).max() < 2e-5
    step = math.sqrt(18 / (0.0018 * 0.0130 * 0.0483) ** (1 / 3) / math.log(2))
    ours = model.g_a(images).square().mean(dim=(0, 2, 3)).numpy()
    theirs = np.square(255 / step * y).mean(axis=(0, 1, 2))
    assert ours[: len(theirs)] == pytest.approx(theirs, rel=1e-2, abs=1e-6)


@torch.no_grad()
def test_gdn_hardly_bends_the_transform() -> None:
    patches, images = pictures(1, 6), pictures(2, 2)
    model, tree = started(SMALL, patches), Tree(SMALL, patches)
    difference = model.g_s(model.g_a(images)).double().numpy() - tree.project(images)
    assert 0 < np.sqrt(np.square(difference).mean()) < 1e-3


@pytest.mark.usefixtures("linear")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_scales_begin_at_half_the_deviation_in_steps_of_the_middle_lambda(
    config: MlicConfig,
) -> None:
    patches = pictures(1, 6)
    model, tree = started(config, patches), Tree(config, patches)
    step = math.sqrt(18 / (0.0018 * 0.0130 * 0.0483) ** (1 / 3) / math.log(2))
    deviations = np.zeros(config.M)
    deviations[: len(tree.deviations)] = 255 / step * tree.deviations
    measured = model.g_a(patches).square().mean(dim=(0, 2, 3)).sqrt().numpy()
    assert measured == pytest.approx(deviations, rel=1e-3)
    c = config.slice_channels
    for networks in (model.entropy_parameters_anchor, model.entropy_parameters_nonanchor):
        biases = torch.cat([network.fusion[6].bias[:c] for network in networks])
        assert biases.numpy() == pytest.approx(deviations / 2, rel=1e-3)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_hyper_latents_are_alive(config: MlicConfig) -> None:
    """Rounded, they tell photographs apart; as PyTorch initialises h_a, they are all the same."""
    patches = pictures(1, 40)
    torch.manual_seed(7)
    random = create_model(config)
    model = started(config, patches)
    z = model.h_a(model.g_a(patches))
    assert z.std(dim=(0, 2, 3), correction=0).numpy() == pytest.approx(1.5, rel=1e-2)
    assert z.mean(dim=(0, 2, 3)).abs().max() < 1e-2
    assert not random.h_a(model.g_a(patches)).round().any()


def test_the_start_is_deterministic_and_leaves_the_rest_alone() -> None:
    patches = pictures(1, 6)
    first, second = (started(SMALL, patches).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(7)
    fresh = create_model(SMALL)
    changed = {name for name in first if not torch.equal(first[name], fresh.state_dict()[name])}
    assert {"g_a.analysis_transform.6.weight", "g_s.synthesis_transform.7.0.bias"} <= changed
    others = {name for name in changed if name.split(".")[0] not in ("g_a", "g_s", "h_a")}
    assert others == {
        *(
            f"entropy_parameters_{name}.{i}.fusion.6.bias"
            for name in ("anchor", "nonanchor")
            for i in range(2)
        ),
        *(
            f"lrp_{name}.{i}.lrp_transform.4.{kind}"
            for name in ("anchor", "nonanchor")
            for i in range(2)
            for kind in ("weight", "bias")
        ),
        *(f"entropy_bottleneck.matrices.{i}" for i in range(5)),
        "entropy_bottleneck.quantiles",
    }
    assert not any(first[name].any() for name in others if name.startswith("lrp"))
    c = SMALL.slice_channels
    name = "entropy_parameters_anchor.1.fusion.6.bias"
    assert torch.equal(first[name][c:], fresh.state_dict()[name][c:])
