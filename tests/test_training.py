"""The trainer: patches, loss, steps, checkpoints and the command."""

from __future__ import annotations

import copy
import csv
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mlic_fast
from mlic_fast.cli import main
from mlic_fast.errors import CheckpointError
from mlic_fast.images import save_image
from mlic_fast.models import PRESETS, MlicConfig, create_model, load_checkpoint, save_checkpoint
from mlic_fast.training import TrainConfig, Trainer, TrainingError, load_state, train
from mlic_fast.training import trainer as trainer_module
from mlic_fast.training.export import export
from mlic_fast.training.flat import PARTS, FlatWeights, part_of
from mlic_fast.training.forward import TrainingForward, absorb_biases
from mlic_fast.training.graphics import make_graphics
from mlic_fast.training.log import CsvLog, Logs
from mlic_fast.training.loss import RateDistortionLoss, draw_rates
from mlic_fast.training.optim import Optimizer, learning_rate_factor, learning_rates, orthogonalise
from mlic_fast.training.patches import GRAPHICS_WEIGHT, Cut, ImageCache, Patches, Pool, Squares
from mlic_fast.training.step import Controls, Step
from mlic_fast.training.validation import disorder

TINY = MlicConfig(
    N=8,
    M=64,
    slices=2,
    stage_channels=(8, 8, 8),
    channel_context_channels=(8, 8),
    entropy_parameters_channels=(16, 16, 16),
    lrp_channels=(8, 8),
)


CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A preset that trains in milliseconds, on one thread: sums have one order."""
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setattr(trainer_module, "START_PIXELS", 2**16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three smooth images of odd sizes, one of them in a subfolder."""
    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    for i, (name, size) in enumerate({"a": (70, 91), "b": (128, 64), "more/c": (65, 200)}.items()):
        save_image(smooth(i, *size), folder / f"{name}.png")
    return folder


def smooth(seed: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 5, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return (image.clamp(0, 1) * 255).to(torch.uint8)


def options(photographs: Path, tmp_path: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "data": str(photographs),
        "output": str(tmp_path / "run"),
        "model": "tiny",
        "steps": 4,
        "batch_size": 2,
        "patch_size": 64,
        "warmup": 2,
        "log_every": 1,
        "device": "cpu",
    }
    return TrainConfig(**(values | changes))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------- patches


def test_patches_are_pieces_of_the_images_in_any_of_eight_symmetries(tmp_path: Path) -> None:
    # Each pixel tells where it comes from: (row, column, image).
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(2):
        row, column = np.mgrid[:80, :100]
        pixels = np.stack([row, column, np.full_like(row, i)])
        save_image(torch.from_numpy(pixels.astype(np.uint8)), folder / f"{i}.png")
    pool = Pool(ImageCache.build(folder, tmp_path / "cache"), CPU)
    squares = Squares([Cut(pool, 70, 4), Cut(pool, 64, 16)])
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        larger, drawn = squares.draw()
        assert larger.shape == (4, 3, 70, 70)
        for row, column, image in drawn.long():
            assert image.unique().numel() == 1
            pixels = {
                (int(r), int(c)) for r, c in zip(row.flatten(), column.flatten(), strict=True)
            }
            top, left = int(row.min()), int(column.min())
            assert pixels == {(top + r, left + c) for r in range(64) for c in range(64)}
            corner = (int(row[0, 0]) > top, int(column[0, 0]) > left)
            seen.add((*corner, bool(row[0, 0] != row[1, 0])))
    assert len(seen) == 8


def test_batches_mix_photographs_reductions_and_graphics(photographs: Path, tmp_path: Path) -> None:
    save_image(torch.zeros(3, 96, 97, dtype=torch.uint8), photographs / "black.png")
    photos = Pool(ImageCache.build(photographs, tmp_path / "cache"), CPU)
    white = Pool(ImageCache.of([np.full((64, 70, 3), 255, np.uint8)]), CPU)
    patches = Patches(photos, white, 64, 10, reduced=0.3)
    torch.manual_seed(1)
    x = patches.draw()
    assert x.shape == (10, 3, 64, 64) and x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    # Only the black one holds the 96x96 pixels of a reduction.
    assert x[6:9].abs().max() == 0 and x[9].min() == 1 and 0 < x[:6].mean() < 1
    assert patches.shares.tolist() == [1.0] * 9 + [GRAPHICS_WEIGHT]
    torch.manual_seed(1)
    assert torch.equal(patches.draw(), x)


def test_graphics_are_a_function_of_the_seed() -> None:
    first, second, other = (make_graphics(seed, 129, 8) for seed in (1, 1, 2))
    assert first.sizes == [(129, 129)] * 8
    assert (first.pixels == second.pixels).all() and (first.pixels != other.pixels).any()
    for i in range(8):  # none of the kinds is empty
        assert first.image(i).reshape(-1, 3).std(0).max() > 5


def test_cache_leaves_out_what_is_no_image_and_notices_changes(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photographs / "broken.jpg").write_bytes(b"not an image")
    cache = ImageCache.build(photographs, tmp_path / "cache")
    assert cache.sizes == [(70, 91), (128, 64), (65, 200)]
    assert "left out 1 unusable files" in capsys.readouterr().err
    image = torch.from_numpy(cache.image(2).copy()).permute(2, 0, 1)
    assert torch.equal(image, smooth(2, 65, 200))
    ImageCache.build(photographs, tmp_path / "cache")
    assert capsys.readouterr().err == ""  # nothing was decoded again
    (photographs / "broken.jpg").unlink()
    save_image(smooth(9, 66, 66), photographs / "b.png")
    assert ImageCache.build(photographs, tmp_path / "cache").sizes[1] == (66, 66)


def test_a_cache_that_is_killed_while_it_is_replaced_is_made_again(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels of other files never pass for those of the index that stood there before."""
    before = ImageCache.build(photographs, tmp_path / "cache").pixels.copy()
    save_image(smooth(9, 66, 66), photographs / "new.png")

    def replace(source: Path, target: Path) -> None:
        if target.suffix == ".json":
            raise KeyboardInterrupt
        source.rename(target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", replace)
        ImageCache.build(photographs, tmp_path / "cache")
    (photographs / "new.png").unlink()
    assert np.array_equal(ImageCache.build(photographs, tmp_path / "cache").pixels, before)


def test_a_log_that_is_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a row is left out, and until all rows are written again the old file stands."""
    path = tmp_path / "log.csv"
    log = CsvLog(path, ("step", "loss"), 0)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": 0.5})
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"30") + 1])
    before = path.read_bytes()

    def replace(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", replace)
        CsvLog(path, ("step", "loss"), 30)
    assert path.read_bytes() == before
    log = CsvLog(path, ("step", "loss"), 30)
    log.write({"step": 30, "loss": 0.5})
    log.close()
    assert path.read_bytes() == whole


def test_small_images_are_left_out_with_one_warning(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_image(smooth(0, 40, 300), photographs / "flat.png")
    cache = ImageCache.build(photographs, tmp_path / "cache")
    pool = Pool(cache, CPU)
    pool.check(64, warn=True)
    assert capsys.readouterr().err.count("left out 1 images smaller") == 1
    assert Squares([Cut(pool, 64, 3)]).draw()[0].shape == (3, 3, 64, 64)
    with pytest.raises(TrainingError, match="lower --patch-size"):
        pool.check(256, warn=True)


# ---------------------------------------------------------------------- loss and schedule


def test_loss_of_one_rate_is_the_papers() -> None:
    x, bits = torch.zeros(1, 3, 2, 2), torch.tensor([4.0])
    terms = RateDistortionLoss([0.0130], "mse")(x + 0.1, bits, bits / 2, x, None)
    assert (terms["bpp"].item(), terms["z_bpp"].item()) == (6 / 4, 2 / 4)
    assert terms["mse"].item() == pytest.approx(0.01)
    expected = 0.0130 * 255**2 * 0.01 + 6 / 4
    assert terms["loss"].item() == terms["rd"].item() == pytest.approx(expected, rel=1e-6)


def test_loss_of_ms_ssim() -> None:
    from pytorch_msssim import ms_ssim

    x = smooth(0, 192, 192)[None].float() / 255
    x_hat = (x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    none = torch.zeros(1)
    terms = RateDistortionLoss([16.64], "ms-ssim")(x_hat, none, none, x, None)
    expected = 16.64 * (1 - ms_ssim(x_hat, x, data_range=1.0).item())
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_rates_interpolate_lambda_geometrically_and_share_the_gradient() -> None:
    loss = RateDistortionLoss([0.001, 0.004, 0.016], "mse")
    lambdas = loss.lambdas(torch.tensor([0.0, 0.5, 1.0, 2.0]))
    assert lambdas.tolist() == pytest.approx([0.001, 0.002, 0.004, 0.016], rel=1e-5)
    assert loss.weights(lambdas).tolist() == pytest.approx([2, math.sqrt(2), 1, 0.5], rel=1e-5)
    x, none = torch.zeros(2, 3, 1, 1), torch.zeros(2)
    terms = loss(x + 1, none, none, x, torch.tensor([0.0, 2.0]))
    expected = [255**2 * 2 * 0.001, 255**2 * 0.5 * 0.016]
    assert terms["loss"].tolist() == pytest.approx(expected, rel=1e-5)


def test_rates_span_the_range_in_every_batch() -> None:
    torch.manual_seed(0)
    drawn = torch.stack([draw_rates(6, 6, CPU) for _ in range(200)])
    assert drawn.min() == 0 and drawn.max() == 5
    # One sample a sixth of the range: sorted, each lies within one of its own rate.
    ordered = drawn.sort(dim=1).values
    assert ((ordered - torch.arange(6)).abs() <= 0.5).all()
    assert 0.4 < (drawn == drawn.round()).float().mean() < 0.7


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainConfig(data="", output="", warmup=99)

    def factors(config: TrainConfig, *steps: int) -> list[float]:
        return [learning_rate_factor(step, step / 1000, config) for step in steps]

    falling = factors(config, 0, 49, 99, 699, 700, 850, 999)
    assert falling == pytest.approx([0.01, 0.5, 1, 1, 0.3, 0.1, 0.1])
    linear = factors(replace(config, schedule="linear"), 99, 650, 825, 1000)
    assert linear == pytest.approx([1, 1, 0.5, 0.01])


def test_parts_have_learning_rates_of_their_own() -> None:
    config = TrainConfig(
        data="", output="", lr=1.0, transforms_lr=0.5, hyper_lr=0.25, residual_lr=0.125,
        aux_lr=0.001, warmup=9, start="klt",
    )  # fmt: skip
    assert PARTS == ("transforms", "hyper", "residual", "contexts", "quantiles")
    assert learning_rates(0, 0, config) == pytest.approx([0, 0.025, 0.0125, 0.1, 0.001])
    assert learning_rates(18, 0, config) == pytest.approx([0.25, 0.25, 0.125, 1, 0.001])
    assert learning_rates(36, 0, config) == pytest.approx([0.5, 0.25, 0.125, 1, 0.001])
    assert learning_rates(0, 0, replace(config, start="random"))[0] == pytest.approx(0.05)


# ---------------------------------------------------------------------- forward pass and weights

VARIANTS = {
    "mlic_plus_plus": replace(TINY, lambdas=(0.0018, 0.0130, 0.0483)),
    "mlic_plus": replace(TINY, variant="mlic_plus"),
    "mlic": replace(TINY, variant="mlic"),
    "2023": replace(TINY, weight_family="2023"),
    "blocks": replace(TINY, transforms="blocks", block_channels=24, M=96, slices=3),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("shape", [(2, 3, 64, 128), (1, 3, 192, 64)])
def test_the_forward_pass_of_training_is_the_models(
    config: MlicConfig, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(3)
    model = create_model(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    x = torch.rand(shape)
    rate = torch.tensor([0.4, 2.0])[: len(x)] if config.rates else None
    before = model(x, rate=rate)["x_hat"]
    absorb_biases(model)
    expected = model(x, rate=rate)
    assert (expected["x_hat"] - before).abs().max() < 1e-5
    forward = TrainingForward(model, torch.float32)
    bits = {k: -v.log2().flatten(1).sum(1) for k, v in expected["likelihoods"].items()}
    ours = forward(x.to(memory_format=torch.channels_last), rate, torch.ones(()))
    assert (ours.x_hat - expected["x_hat"]).abs().max() < 1e-5
    assert ours.y_bits.tolist() == pytest.approx(bits["y"].tolist(), rel=1e-5)
    assert ours.z_bits.tolist() == pytest.approx(bits["z"].tolist(), rel=1e-5)

    def gradients(network: torch.nn.Module, x_hat: Tensor, bits: Tensor) -> dict[str, Tensor]:
        named = dict(network.named_parameters())
        del named["entropy_bottleneck.quantiles"]
        loss = x_hat.square().sum() + bits.sum() / 100
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return dict(zip(named, found, strict=True))

    theirs = gradients(model, expected["x_hat"], bits["y"] + bits["z"])
    found = gradients(forward.network, ours.x_hat, ours.y_bits + ours.z_bits)
    for name, gradient in theirs.items():
        if name.endswith("depthwise.bias") and name.startswith("g_"):
            assert found[name] is None  # it was absorbed
            continue
        # The biases of keys change no softmax: their gradients are noise.
        error = (found[name] - gradient).abs().max()
        assert error < 1e-4 * gradient.abs().max() + 1e-8, name


def test_bits_of_z_count_for_what_makes_it_by_their_weight() -> None:
    model = create_model(TINY)
    forward = TrainingForward(model, torch.float32)
    hyper = [p for n, p in forward.network.named_parameters() if n.startswith("h_a")]
    prior = forward.network.get_parameter("entropy_bottleneck.biases.0")
    x, moves = torch.rand(1, 3, 64, 64), []
    for weight in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        bits = forward(x, None, torch.tensor(weight)).z_bits.sum()
        moves.append(torch.autograd.grad(bits, [*hyper, prior]))
    assert not any(g.any() for g in moves[0][:-1])
    for half, whole in zip(moves[1][:-1], moves[2][:-1], strict=True):
        assert torch.allclose(2 * half, whole)
    assert torch.equal(moves[0][-1], moves[2][-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("muon", [True, False])
def test_flat_weights_are_the_models(dtype: torch.dtype, muon: bool) -> None:
    config = replace(TINY, lambdas=(0.01, 0.02))
    torch.manual_seed(4)
    model, fresh = create_model(config), None
    fresh = {name: p.detach().clone() for name, p in model.named_parameters()}
    network = TrainingForward(model, dtype).network
    weights = FlatWeights(model, network, dtype, muon)
    assert sorted(weights.layout) == sorted(fresh)
    assert_equal({n: p.detach().clone() for n, p in model.named_parameters()}, fresh)
    with torch.no_grad():
        weights.values.mul_(2)
    weights.refresh()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, (2 * fresh[name]).to(parameter.dtype)), name
        exact = name.startswith(("gain", "entropy_bottleneck")) or "gdn" in name.split(".")[-2]
        assert parameter.dtype == (torch.float32 if exact else dtype)
    # Gradients find their places, whatever their memory format.
    gradients = tuple(
        (i + torch.arange(leaf.numel()).reshape(leaf.shape) % 5).to(leaf.dtype)
        for i, leaf in enumerate(weights.leaves)
    )
    quantiles = torch.full((8, 1, 3), 9.0)
    weights.gradient.fill_(float("nan"))
    weights.set_gradient(gradients, quantiles)
    for i, name in enumerate(weights.layout[:-1]):
        assert torch.equal(weights.view(name, weights.gradient), gradients[i].float()), name
    assert torch.equal(weights.view(weights.layout[-1], weights.gradient), quantiles)
    stacked = sum(math.prod(stack.shape) for stack in weights.stacks)
    assert stacked == weights.muon and (stacked > 0) == muon


# ---------------------------------------------------------------------- Muon


def orthogonal(stacks: list[Tensor]) -> list[Tensor]:
    results = [torch.full_like(stack, torch.nan) for stack in stacks]
    orthogonalise(stacks, results, [1.0] * len(stacks))
    return results


def test_orthogonalised_matrices_keep_their_singular_vectors() -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 8, 40), (1, 40, 8), (1, 131, 140), (1, 256, 300), (3, 33, 32), (2, 400, 320)]
    shapes += [(1, 400, 320)]
    stacks = [torch.randn(shape, generator=generator) for shape in shapes]
    zero = torch.zeros(1, 9, 20)
    *results, nothing = orthogonal([*stacks, zero])
    assert torch.equal(nothing, zero)
    for x, out in zip(stacks, results, strict=True):
        assert out.shape == x.shape
        if x.shape[1] > x.shape[2]:
            x, out = x.transpose(1, 2), out.transpose(1, 2)
        rows = {131: 131, 256: 128, 320: 80}.get(
            x.shape[1], x.shape[1]
        )  # cut in blocks of equal size
        for block, result in zip(x.split(rows, 1), out.split(rows, 1), strict=True):
            left, values, right = torch.linalg.svd(block, full_matrices=False)
            changed = left.transpose(1, 2) @ result @ right.transpose(1, 2)
            ratios = torch.diagonal(changed, dim1=1, dim2=2)
            assert (ratios[values > 0.1 * values.max()] > 0.6).all() and ratios.max() < 1.3
            assert (changed - torch.diag_embed(ratios)).abs().max() < 1e-4


def weights_of(model: torch.nn.Module, muon: bool) -> FlatWeights:
    return FlatWeights(model, copy.deepcopy(model), torch.float32, muon)


class Contexts(torch.nn.Module):
    """Two layers whose names are of no part but the contexts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(20, 12, 3)
        self.second = torch.nn.Conv2d(20, 12, 3)


def test_muon_steps_of_one_size_downhill() -> None:
    torch.manual_seed(2)
    model = Contexts()
    weights = weights_of(model, muon=True)
    before = weights.values.clone()
    assert [stack.shape for stack in weights.stacks] == [(2, 12, 180)]
    gradient = torch.randn_like(weights.values)
    weights.gradient.copy_(gradient)
    Optimizer(weights).step(torch.full((len(PARTS),), 0.01), torch.ones(()))
    move = (weights.values - before)[: weights.muon] + 0.01 * 0.05 * before[: weights.muon]
    assert 0.7 * 0.002 < move.square().mean().sqrt() < 1.2 * 0.002
    assert (move * gradient[: weights.muon]).sum() < 0
    for i, name in enumerate(("first.weight", "second.weight")):
        matrix = weights.view(name, gradient).permute(0, 2, 3, 1).flatten(1)
        alone = orthogonal([0.0975 * matrix[None]])[0][0]
        moved = weights.stacks[0].view(move)[i]
        assert torch.allclose(moved, -0.01 * 0.2 * 180**0.5 * alone, atol=1e-6)


def test_adam_is_pytorchs() -> None:
    torch.manual_seed(2)
    model = Contexts()
    twin = copy.deepcopy(model)
    weights = weights_of(model, muon=False)
    ours, theirs = Optimizer(weights), torch.optim.Adam(twin.parameters(), lr=0.01)
    for step in range(3):
        weights.gradient.normal_()
        for name, parameter in twin.named_parameters():
            parameter.grad = weights.view(name, weights.gradient).clone()
        live = torch.tensor(float(step != 1))
        before = weights.values.clone()
        ours.step(torch.full((len(PARTS),), 0.01), live)
        if live:
            theirs.step()
        else:
            assert torch.equal(weights.values, before)
    for name, parameter in twin.named_parameters():
        assert torch.allclose(weights.view(name, weights.values), parameter, atol=1e-6)


def test_muon_takes_what_mixes_channels_of_transforms_and_contexts() -> None:
    model = create_model(replace(TINY, lambdas=(0.01, 0.02)))
    weights = weights_of(model, muon=True)
    count = sum(stack.shape[0] for stack in weights.stacks)
    muon = set(weights.layout[:count])
    assert {"g_a.analysis_transform.1.conv1.weight", "local_context.0.qkv_proj.weight"} <= muon
    for ending in ("bias", "gamma", "beta", "table", "log_gain", ".keys.1.weight"):
        assert not any(name.endswith(ending) for name in muon)
    assert {PARTS[part_of(name)] for name in muon} == {"transforms", "contexts"}


# ---------------------------------------------------------------------- steps


def test_loss_falls_on_one_image(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    image = smooth(5, 64, 64)
    save_image(image, folder / "a.png")
    config = options(folder, tmp_path, steps=90, lr=4e-3, validation=str(folder))
    trainer = Trainer(config)
    # One symmetry.
    patches = trainer.patches(64)
    patches.draw = lambda: (image[None].float() / 255).repeat(2, 1, 1, 1)  # type: ignore[method-assign]
    trainer._runners[64] = lambda: trainer.machine(patches)
    assert trainer.run()
    log = [float(row["loss"]) for row in rows(tmp_path / "run" / "log.csv")]
    assert len(log) == 90 and np.mean(log[-5:]) < 0.1 * np.mean(log[:5])
    validation = rows(tmp_path / "run" / "validation.csv")
    assert [row["step"] for row in validation] == ["90"]
    assert float(validation[0]["psnr"]) > 18
    assert validation[0]["ms_ssim"] == "nan"  # 64 pixels are too few
    model = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert model.config == TINY


@pytest.mark.parametrize(
    ("lmbda", "optimizer", "start"),
    [
        ((0.0130,), "adam", "random"),
        ((0.0018, 0.0130, 0.0483), "muon", "random"),
        ((0.0018, 0.0130, 0.0483), "muon", "klt"),
    ],
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    photographs: Path,
    tmp_path: Path,
    lmbda: tuple[float, ...],
    optimizer: str,
    start: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"lmbda": lmbda, "optimizer": optimizer, "start": start, "ema": 0.9}
    save_image(smooth(8, 131, 150), photographs / "larger.png")
    changes |= {"transforms_lr": 0.25, "schedule": "linear", "reduced": 0.5, "graphics": True}
    changes |= {"late_patch_size": 128, "z_free": 0.3, "batch_size": 5}
    whole = options(photographs, tmp_path, output=str(tmp_path / "whole"), **changes)
    assert train(whole)

    parts = options(photographs, tmp_path, output=str(tmp_path / "parts"), **changes)
    with monkeypatch.context() as patch:
        patch.setattr(Logs, "advance", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        assert not train(parts)
    assert load_state(tmp_path / "parts")["step"] == 1
    torch.manual_seed(123)  # nothing may hang on the state of the generator
    assert train(parts, load_state(tmp_path / "parts"))

    first, second = (load_state(tmp_path / name) for name in ("whole", "parts"))
    first["options"]["output"] = second["options"]["output"]
    del first["seconds"], second["seconds"]
    assert_equal(first, second)
    logs = [rows(tmp_path / name / "log.csv") for name in ("whole", "parts")]
    assert len(logs[0]) == 4
    for row in logs[0] + logs[1]:
        del row["images_per_second"]
    assert logs[0] == logs[1]


def assert_equal(a: Any, b: Any, path: str = "") -> None:
    assert type(a) is type(b), path
    if isinstance(a, Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}/{i}")
    else:
        assert a == b, path


def test_quantiles_have_their_own_optimiser(photographs: Path, tmp_path: Path) -> None:
    trainer = Trainer(options(photographs, tmp_path, lr=1e-30, aux_lr=0.1))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.run()
    after = dict(trainer.model.named_parameters())
    moved = {name for name in after if (after[name] - before[name]).abs().max() > 1e-20}
    assert moved == {"entropy_bottleneck.quantiles"}


def test_parts_move_at_their_own_learning_rates(photographs: Path, tmp_path: Path) -> None:
    rates = {"lr": 1e-3, "transforms_lr": 0.25, "hyper_lr": 0.5, "residual_lr": 0.125}
    config = options(photographs, tmp_path, steps=1, warmup=0, clip=1e6, **rates)
    moves = movements(Trainer(replace(config, lmbda=(0.0018, 0.0483))))
    # Adam's first step is as long as the learning rate, unless the gradient is next to nothing.
    parts = {"g_a": 0.25, "g_s": 0.25, "h_a": 0.5, "h_s": 0.5, "lrp_anchor": 0.125, "gain": 1.0}
    for part, rate in parts.items():
        longest = max(move for name, move in moves.items() if name.startswith(f"{part}."))
        assert longest == pytest.approx(1e-3 * rate, rel=0.2)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_transforms_of_a_klt_begin_slowly(
    photographs: Path, tmp_path: Path, optimizer: str
) -> None:
    lmbda = (0.0018, 0.0483)
    config = options(photographs, tmp_path, start="klt", optimizer=optimizer, lmbda=lmbda)
    trainer = Trainer(config)
    steps = [movements(trainer, step) for step in range(2)]
    name = "g_a.analysis_transform.6.weight"
    assert steps[0]["gain.log_gain"] and not steps[0][name] and steps[1][name]


def movements(trainer: Trainer, step: int = 0) -> dict[str, float]:
    """By how much a step moves each parameter at most."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.step = step
    trainer._train_step(0.0)
    after = dict(trainer.model.named_parameters())
    return {name: (after[name] - before[name]).abs().max().item() for name in before}


def everything(trainer: Trainer) -> dict[str, Any]:
    """Copies of all that a step may change, but for its counts."""
    state = trainer.machine.state() | {"model": trainer.model.state_dict(), "skipped": None}
    return copy.deepcopy(state)


def test_a_step_whose_controls_are_zero_changes_nothing(photographs: Path, tmp_path: Path) -> None:
    """As the steps before the recording of a graph are."""
    trainer = Trainer(options(photographs, tmp_path, ema=0.9, optimizer="muon"))
    trainer._train_step(0.0)
    before = everything(trainer)
    trainer.machine.control(Controls([0.0] * len(PARTS), live=0.0))
    trainer._runners[64]()
    assert_equal(everything(trainer), before)
    assert trainer.machine.skipped.tolist() == [0, 0]


def test_a_klt_start_has_the_steps_of_either_metric(photographs: Path, tmp_path: Path) -> None:
    save_image(smooth(4, 200, 230), photographs / "large.png")
    common: dict[str, Any] = {"start": "klt", "patch_size": 192}
    squared = options(photographs, tmp_path, lmbda=(0.0018, 0.0483), **common)
    similar = replace(squared, metric="ms-ssim", lmbda=(1280 * 0.0018, 1280 * 0.0483))
    ours, theirs = (dict(Trainer(c).model.named_parameters()) for c in (squared, similar))
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-8), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_reads_nothing_back(precision: str) -> None:
    """Arrays without contents cannot be read: what runs on them can be recorded as a graph."""
    meta = torch.device("meta")
    model = create_model(replace(TINY, lambdas=(0.01, 0.02))).to(meta)
    config = TrainConfig(
        data="", output="", lmbda=(0.01, 0.02), optimizer="muon", ema=0.9, precision=precision
    )
    step = Step(model, config)
    pool = Pool(make_graphics(0, 128, 2), meta)
    step(Patches(pool, pool, 64, 10, reduced=0.3))
    assert step.totals.is_meta


def test_steps_with_infinite_gradients_are_skipped(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(options(photographs, tmp_path, ema=0.9, optimizer="muon", steps=5))
    trainer._train_step(0.0)
    criterion, before = trainer.machine.criterion.forward, everything(trainer)

    def broken(*args: Any) -> dict[str, Tensor]:
        return {k: v * (math.inf if k == "loss" else 1) for k, v in criterion(*args).items()}

    monkeypatch.setattr(trainer.machine.criterion, "forward", broken)
    trainer._train_step(0.0)
    assert_equal(everything(trainer), before)
    assert trainer.machine.skipped.tolist() == [1, 1]
    monkeypatch.setattr(trainer_module, "MOST_SKIPPED_IN_A_ROW", 3)
    with pytest.raises(TrainingError, match="3 gradients in a row were not finite at step 2"):
        trainer.run()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision(photographs: Path, tmp_path: Path, precision: str) -> None:
    def loss(precision: str) -> float:
        config = options(photographs, tmp_path, precision=precision, lmbda=(0.002, 0.02))
        trainer = Trainer(config)
        for _ in range(20):  # the scale of float16's loss has to fall first
            trainer._train_step(0.0)
            if trainer.machine.means():
                return trainer.machine.means()["loss"]
        raise AssertionError("no step was taken")

    assert loss(precision) == pytest.approx(loss("float32"), rel=0.02)


def test_a_run_lasts_minutes_without_its_pauses(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pause = tmp_path / "run" / "pause"

    def sleep(seconds: float) -> None:
        now[0] += 1000
        pause.unlink()

    def advance(logs: Logs) -> None:
        now[0] += 15
        if now[0] == 30:
            pause.touch()

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr(Logs, "advance", advance)
    assert train(options(photographs, tmp_path, minutes=1, steps=1, log_every=2))
    state = load_state(tmp_path / "run")
    assert (state["step"], state["seconds"], now[0]) == (4, 60, 1060)
    speeds = [float(row["images_per_second"]) for row in rows(tmp_path / "run" / "log.csv")]
    assert speeds == pytest.approx([4 / 30] * 2, rel=1e-4)


def test_what_does_not_rise_with_lambda_is_said() -> None:
    model = create_model(replace(TINY, lambdas=(0.01, 0.02, 0.04)))
    rising = [{"lmbda": 0.01 * i, "bpp": 0.1 * i, "psnr": 30.0 + i} for i in range(3)]
    assert disorder(model, rising) == []
    model.gain.log_gain.data[1, 5] = 9.0
    falling = [*rising[:2], rising[2] | {"psnr": 31.0}]
    assert disorder(model, falling) == [
        "psnr falls from lambda 0.01 to 0.02",
        "the gains of 1 of 64 channels fall somewhere",
    ]


# ---------------------------------------------------------------------- starting from checkpoints


def test_model_and_warm_start_from_checkpoints(photographs: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = create_model(TINY)
    path = str(tmp_path / "trained.safetensors")
    save_checkpoint(trained, path)
    single = trainer_module.build_model(options(photographs, tmp_path, model=path))
    assert single.training
    assert_equal(dict(single.state_dict()), dict(trained.state_dict()))

    lmbda = (0.0018, 0.0130)
    config = options(photographs, tmp_path, warm_start=path, lmbda=lmbda)
    several = trainer_module.build_model(config).state_dict()
    assert "gain.log_gain" in several
    assert torch.equal(
        several["g_a.analysis_transform.6.weight"],
        trained.state_dict()["g_a.analysis_transform.6.weight"],
    )
    with pytest.raises(TrainingError, match="--warm-start"):
        trainer_module.build_model(options(photographs, tmp_path, model=path, lmbda=lmbda))
    for source in ({"model": path}, {"warm_start": path}):
        with pytest.raises(TrainingError, match="--start klt is for fresh networks"):
            trainer_module.build_model(options(photographs, tmp_path, start="klt", **source))


def test_gains_of_other_lambdas_are_interpolated(photographs: Path, tmp_path: Path) -> None:
    trained = create_model(replace(TINY, lambdas=(0.01, 0.04)))
    trained.gain.log_gain.data += torch.tensor([[0.5], [1.0]])
    path = str(tmp_path / "trained.safetensors")
    save_checkpoint(trained, path)
    lmbda = (0.0025, 0.01, 0.02, 0.04, 0.16)
    model = trainer_module.build_model(options(photographs, tmp_path, warm_start=path, lmbda=lmbda))
    table = trained.gain.log_gain
    root = math.log(4) / 2
    expected = [table[0] - root, table[0], table.mean(0), table[1], table[1] + root]
    assert torch.allclose(model.gain.log_gain, torch.stack(expected), atol=1e-6)
    ends = trained.gain.log_inverse_gain
    assert torch.allclose(model.gain.log_inverse_gain[0], ends[0] + root, atol=1e-6)


def test_training_goes_on_from_exported_weights(photographs: Path, tmp_path: Path) -> None:
    source, target = (str(tmp_path / f"{name}.safetensors") for name in ("source", "target"))
    trained = create_model(TINY)
    save_checkpoint(trained, source)
    identity = export(source, target)
    assert mlic_fast.load(target, device="cpu").model_id == identity[:4]
    assert Path(target).stat().st_size < 0.6 * Path(source).stat().st_size
    constants = dict(trained.named_buffers())
    assert constants["gaussian_conditional.likelihood_lower_bound.bound"] == torch.tensor([1e-9])
    assert_equal(dict(load_checkpoint(target).named_buffers()), constants)

    save_checkpoint(create_model(TINY).half(), target)
    model = trainer_module.build_model(options(photographs, tmp_path, model=target))
    assert_equal(dict(model.named_buffers()), constants)


def test_resuming_from_what_is_no_training_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_state(tmp_path)
    (tmp_path / "last.pt").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="not a training checkpoint"):
        load_state(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="--warm-start"):
        load_state(tmp_path)


def test_resuming_with_other_parameters(photographs: Path, tmp_path: Path) -> None:
    config = options(photographs, tmp_path, steps=1)
    train(config)
    state = load_state(tmp_path / "run")
    state["layout"].pop()
    with pytest.raises(CheckpointError, match=r"does not fit the run.*other parameters"):
        Trainer(config, state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 100}, "multiples of 64"),
        ({"lmbda": (0.2, 0.1)}, "ascending"),
        ({"metric": "ms-ssim", "patch_size": 128}, "192"),
        ({"late_patch_size": 100}, "multiples of 64"),
        ({"hyper_lr": 0.0}, "positive"),
        ({"minutes": 0.0}, "positive"),
        ({"reduced": 1.5}, "from 0 to 1"),
        ({"start": "zero"}, "random, klt"),
    ],
)
def test_wrong_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainConfig(**({"data": "", "output": ""} | changes))


# ---------------------------------------------------------------------- command, several processes


def test_command_trains_and_resumes_with_its_options(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: object) -> int:
        return main(["train", *map(str, arguments)])

    run = tmp_path / "run"
    common = ("--batch-size", 1, "--patch-size", 64, "--log-every", 1, "--device", "cpu")
    common += ("--start", "klt", "--transforms-lr", 0.5)
    assert call(photographs, "--output", run, "--model", "tiny", "--steps", 1, *common) == 0
    assert load_state(run)["options"]["lmbda"] == (0.0130,)
    assert call("--resume", run, "--steps", 3) == 0
    state = load_state(run)
    assert state["step"] == 3 and state["options"]["batch_size"] == 1
    assert (state["options"]["start"], state["options"]["transforms_lr"]) == ("klt", 0.5)
    assert [row["step"] for row in rows(run / "log.csv")] == ["1", "2", "3"]
    assert call(photographs) == 2
    assert call(photographs, "--output", run, "--model", "missing.pth") == 1
    assert "--output RUNDIR" in (errors := capsys.readouterr().err) and "missing.pth" in errors


TWO_PROCESSES = """
import os, sys, torch
from torch import distributed as dist
from mlic_fast.models import PRESETS, load_checkpoint
from mlic_fast.training import TrainConfig, Trainer, trainer
data, output, model = sys.argv[1:]
PRESETS["tiny"] = load_checkpoint(model).config
trainer.START_PIXELS = 2**14
trainer = Trainer(TrainConfig(data=data, output=output, model="tiny", start="klt", steps=2,
                              batch_size=1, patch_size=64, warmup=0, log_every=1, device="cpu"))
trainer._seed_step()
patches = trainer.patches(64).draw()
trainer.run()
own = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
gathered = [torch.empty_like(own) for _ in range(2)]
dist.all_gather(gathered, own)
assert torch.equal(*gathered)
both = [torch.empty_like(patches) for _ in range(2)]
dist.all_gather(both, patches)
assert not torch.equal(*both)
dist.barrier()  # gloo aborts if one process leaves while the other still reads from it
dist.destroy_process_group()
os._exit(0)  # gloo's threads, where they still run on a busy machine, abort an ordinary exit
"""


def test_two_processes_share_one_model_and_see_different_patches(
    photographs: Path, tmp_path: Path
) -> None:
    script, model = tmp_path / "run.py", tmp_path / "tiny.safetensors"
    script.write_text(TWO_PROCESSES)
    save_checkpoint(create_model(TINY), model)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [str(script), str(photographs), str(tmp_path / "run"), str(model)]
    done = subprocess.run(
        launch + arguments, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(tmp_path / "run" / "log.csv")] == ["1", "2"]
