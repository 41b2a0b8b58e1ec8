"""The trainer: patches, loss, steps, checkpoints and the command."""

from __future__ import annotations

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
from mlic_fast.training.data import ImageCache, PatchSampler
from mlic_fast.training.export import export
from mlic_fast.training.log import Logs
from mlic_fast.training.loss import RateDistortionLoss, draw_rates
from mlic_fast.training.optim import Muon, learning_rate_factor, make_optimizers, orthogonalise

TINY = MlicConfig(
    N=8,
    M=64,
    slices=2,
    stage_channels=(8, 8, 8),
    channel_context_channels=(8, 8),
    entropy_parameters_channels=(16, 16, 16),
    lrp_channels=(8, 8),
)


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
    sampler = PatchSampler(ImageCache.build(folder, tmp_path / "cache"), 64, 16, seed=3)
    seen = set()
    for step in range(8):
        for patch in sampler.batch(step).long():
            row, column, image = patch
            assert image.unique().numel() == 1
            pixels = {
                (int(r), int(c)) for r, c in zip(row.flatten(), column.flatten(), strict=True)
            }
            top, left = int(row.min()), int(column.min())
            assert pixels == {(top + r, left + c) for r in range(64) for c in range(64)}
            corner = (int(row[0, 0]) > top, int(column[0, 0]) > left)
            seen.add((*corner, bool(row[0, 0] != row[1, 0])))
    assert len(seen) == 8


def test_batches_depend_on_seed_step_and_rank_alone(photographs: Path, tmp_path: Path) -> None:
    cache = ImageCache.build(photographs, tmp_path / "cache")

    def sampler(seed: int = 0, rank: int = 0) -> PatchSampler:
        return PatchSampler(cache, 64, 4, seed, rank)

    first = sampler()
    batches = [first.batch(step) for step in (0, 1, 7)]
    assert batches[2].dtype == torch.uint8 and batches[2].shape == (4, 3, 64, 64)
    assert torch.equal(sampler().batch(7), batches[2])
    others = [*batches[:2], sampler(seed=1).batch(7), sampler(rank=1).batch(7)]
    assert not any(torch.equal(other, batches[2]) for other in others)


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


def test_small_images_are_left_out_with_one_warning(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_image(smooth(0, 40, 300), photographs / "flat.png")
    cache = ImageCache.build(photographs, tmp_path / "cache")
    PatchSampler(cache, 64, 1, 0).batch(0)
    assert capsys.readouterr().err.count("left out 1 images smaller") == 1
    with pytest.raises(TrainingError, match="lower --patch-size"):
        PatchSampler(cache, 256, 1, 0)


# ---------------------------------------------------------------------- loss and schedule


def test_loss_of_one_rate_is_the_papers() -> None:
    x = torch.zeros(1, 3, 2, 2)
    likelihoods = {"y": torch.full((1, 4, 1, 1), 0.5), "z": torch.full((1, 1, 1, 1), 0.25)}
    terms = RateDistortionLoss([0.0130], "mse")(x + 0.1, likelihoods, x, None)
    assert terms["bpp"].item() == pytest.approx(6 / 4)
    assert terms["mse"].item() == pytest.approx(0.01)
    expected = 0.0130 * 255**2 * 0.01 + 6 / 4
    assert terms["loss"].item() == terms["rd"].item() == pytest.approx(expected, rel=1e-6)


def test_loss_of_ms_ssim() -> None:
    from pytorch_msssim import ms_ssim

    x = smooth(0, 192, 192)[None].float() / 255
    x_hat = (x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    terms = RateDistortionLoss([16.64], "ms-ssim")(x_hat, {"y": torch.ones(1, 1)}, x, None)
    expected = 16.64 * (1 - ms_ssim(x_hat, x, data_range=1.0).item())
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_rates_interpolate_lambda_geometrically_and_share_the_gradient() -> None:
    loss = RateDistortionLoss([0.001, 0.004, 0.016], "mse")
    lambdas = loss.lambdas(torch.tensor([0.0, 0.5, 1.0, 2.0]))
    assert lambdas.tolist() == pytest.approx([0.001, 0.002, 0.004, 0.016], rel=1e-5)
    assert loss.weights(lambdas).tolist() == pytest.approx([2, math.sqrt(2), 1, 0.5], rel=1e-5)
    x = torch.zeros(2, 3, 1, 1)
    likelihoods = {"y": torch.ones(2, 1, 1, 1)}
    terms = loss(x + 1, likelihoods, x, torch.tensor([0.0, 2.0]))
    expected = 255**2 * (2 * 0.001 + 0.5 * 0.016) / 2
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_rates_span_the_range_in_every_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_rates(6, 6, generator) for _ in range(200)])
    assert drawn.min() == 0 and drawn.max() == 5
    # One sample a sixth of the range: sorted, each lies within one of its own rate.
    ordered = drawn.sort(dim=1).values
    assert ((ordered - torch.arange(6)).abs() <= 0.5).all()
    assert 0.4 < (drawn == drawn.round()).float().mean() < 0.7


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainConfig(data="", output="", steps=1000, warmup=99)
    factors = [learning_rate_factor(step, config) for step in (0, 49, 99, 699, 700, 850, 999)]
    assert factors == pytest.approx([0.01, 0.5, 1, 1, 0.3, 0.1, 0.1])


# ---------------------------------------------------------------------- Muon


@pytest.mark.parametrize("shape", [(2, 8, 40), (1, 40, 8), (1, 131, 140), (1, 256, 300)])
def test_orthogonalised_matrices_keep_their_singular_vectors(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    out = orthogonalise(x)
    assert torch.equal(orthogonalise(torch.zeros(shape)), torch.zeros(shape))
    rows = 128 if shape[1] == 256 else shape[1]  # cut where blocks of equal size are possible
    for block, result in zip(x.split(rows, 1), out.split(rows, 1), strict=True):
        left, values, right = torch.linalg.svd(block, full_matrices=False)
        changed = left.transpose(1, 2) @ result @ right.transpose(1, 2)
        ratios = torch.diagonal(changed, dim1=1, dim2=2)
        assert (ratios[values > 0.1 * values.max()] > 0.6).all() and ratios.max() < 1.3
        assert (changed - torch.diag_embed(ratios)).abs().max() < 1e-4


def test_muon_steps_of_one_size_downhill_whatever_the_memory_format() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, gradient = torch.randn(2, 12, 20, 3, 3, generator=generator)
    moves = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        parameter = torch.nn.Parameter(weight.clone(memory_format=memory_format))
        parameter.grad = gradient.clone(memory_format=memory_format)
        Muon([parameter], lr=0.01).step()
        moves.append(parameter.detach() - weight)
    assert 0.7 * 0.002 < moves[0].square().mean().sqrt() < 1.2 * 0.002
    assert (moves[0] * gradient).sum() < 0
    assert torch.allclose(*moves, atol=1e-6)


def test_muon_leaves_alone_what_has_no_gradient() -> None:
    still, moving = (torch.nn.Parameter(torch.ones(8, 8)) for _ in range(2))
    optimizer = Muon([still, moving], lr=0.01)
    optimizer.step()
    moving.grad = torch.eye(8)
    optimizer.step()
    assert torch.equal(still, torch.ones(8, 8)) and not torch.equal(moving, still)


def test_muon_takes_what_mixes_channels_and_adam_the_rest() -> None:
    model = create_model(replace(TINY, lambdas=(0.01, 0.02)))
    network = dict(model.named_parameters())
    config = TrainConfig(data="", output="", optimizer="muon")
    muon, adam = (
        {id(p) for group in optimizer.param_groups for p in group["params"]}
        for optimizer in make_optimizers(config, network)
    )
    assert not muon & adam and muon | adam == {id(p) for p in network.values()}
    names = {name for name, parameter in network.items() if id(parameter) in muon}
    assert {"g_a.analysis_transform.1.conv1.weight", "local_context.0.qkv_proj.weight"} <= names
    for ending in ("bias", "gamma", "beta", "table", "log_gain", ".keys.1.weight"):
        assert not any(name.endswith(ending) for name in names)


# ---------------------------------------------------------------------- steps


def test_loss_falls_on_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    image = smooth(5, 64, 64)
    save_image(image, folder / "a.png")
    config = options(folder, tmp_path, steps=90, lr=4e-3, validation=str(folder))
    trainer = Trainer(config)
    monkeypatch.setattr(trainer.sampler, "batch", lambda step: image[None])  # one symmetry
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
    changes["transforms_lr"] = 0.25
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
    assert_equal(first, second)
    logs = [rows(tmp_path / name / "log.csv") for name in ("whole", "parts")]
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


def test_the_transforms_have_their_own_learning_rate(photographs: Path, tmp_path: Path) -> None:
    config = options(photographs, tmp_path, steps=1, warmup=0, lr=1e-3, transforms_lr=0.25)
    trainer = Trainer(replace(config, lmbda=(0.0018, 0.0483)))
    moves = movements(trainer)
    # Adam's first step is as long as the learning rate, unless the gradient is next to nothing.
    for part in ("g_a", "g_s", "gain", "h_a", "h_s", "lrp_anchor"):
        longest = max(move for name, move in moves.items() if name.startswith(f"{part}."))
        assert longest == pytest.approx(2.5e-4 if in_transforms(f"{part}.") else 1e-3, rel=0.2)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_transforms_of_a_klt_stand_still_during_the_warm_up(
    photographs: Path, tmp_path: Path, optimizer: str
) -> None:
    lmbda = (0.0018, 0.0483)
    config = options(photographs, tmp_path, start="klt", optimizer=optimizer, lmbda=lmbda)
    trainer = Trainer(config)
    for step in range(3):
        trainer.step = step
        moved = {name for name, move in movements(trainer).items() if move}
        assert "gain.log_gain" in moved
        parts = {name.split(".")[0] for name in moved if in_transforms(name)}
        assert parts == (set() if step < 2 else {"g_a", "g_s", "h_a", "h_s"})


def movements(trainer: Trainer) -> dict[str, float]:
    """By how much a step moves each parameter at most."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    assert trainer._train_step(trainer.sampler.batch(trainer.step))
    after = dict(trainer.model.named_parameters())
    return {name: (after[name] - before[name]).abs().max().item() for name in before}


def in_transforms(name: str) -> bool:
    return name.startswith(("g_a.", "g_s.", "h_a.", "h_s."))


def test_a_klt_start_has_the_steps_of_either_metric(photographs: Path, tmp_path: Path) -> None:
    save_image(smooth(4, 200, 230), photographs / "large.png")
    common: dict[str, Any] = {"start": "klt", "patch_size": 192}
    squared = options(photographs, tmp_path, lmbda=(0.0018, 0.0483), **common)
    similar = replace(squared, metric="ms-ssim", lmbda=(1280 * 0.0018, 1280 * 0.0483))
    ours, theirs = (dict(Trainer(c).model.named_parameters()) for c in (squared, similar))
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-8), name


def test_steps_with_infinite_gradients_are_skipped(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(options(photographs, tmp_path, ema=0.9))
    criterion, before = trainer.criterion, trainer.model.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}

    def broken(*args: Any) -> dict[str, Tensor]:
        return {k: v * (math.inf if k == "loss" else 1) for k, v in criterion(*args).items()}

    monkeypatch.setattr(trainer, "criterion", broken)
    batch = trainer.sampler.batch(0)
    assert trainer._train_step(batch) == {} and trainer.skipped == 1
    assert_equal(dict(trainer.model.state_dict()), before)
    monkeypatch.setattr(trainer_module, "MOST_SKIPPED_IN_A_ROW", 3)
    trainer._train_step(batch)
    with pytest.raises(TrainingError, match="not finite"):
        trainer._train_step(batch)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision(photographs: Path, tmp_path: Path, precision: str) -> None:
    trainer = Trainer(options(photographs, tmp_path, precision=precision))
    # The scale of float16's loss has to fall first.
    steps = (trainer._train_step(trainer.sampler.batch(0)) for _ in range(20))
    terms = next(filter(None, steps))
    exact = Trainer(options(photographs, tmp_path))._train_step(trainer.sampler.batch(0))
    assert terms["loss"].dtype == torch.float32
    assert terms["loss"].item() == pytest.approx(exact["loss"].item(), rel=0.02)


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
    with pytest.raises(TrainingError, match="--start klt is for residual transforms"):
        trainer_module.build_model(options(photographs, tmp_path, model="photo", start="klt"))
    for source in ({"model": path}, {"warm_start": path}):
        with pytest.raises(TrainingError, match="--start klt is for fresh networks"):
            trainer_module.build_model(options(photographs, tmp_path, start="klt", **source))


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


def test_resuming_with_other_groups_of_parameters(photographs: Path, tmp_path: Path) -> None:
    config = options(photographs, tmp_path, steps=1)
    train(config)
    state = load_state(tmp_path / "run")
    state["optimizers"][0]["param_groups"].pop()
    with pytest.raises(CheckpointError, match=r"does not fit the run.*parameter groups"):
        Trainer(config, state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 100}, "multiple of 64"),
        ({"lmbda": (0.2, 0.1)}, "ascending"),
        ({"metric": "ms-ssim", "patch_size": 128}, "192"),
        ({"lr": 0.0}, "positive"),
        ({"transforms_lr": 0.0}, "positive"),
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
patches = trainer.sampler.batch(0).long()
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
