"""The training loop."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlic_fast.errors import CheckpointError
from mlic_fast.models import (
    PRESETS,
    MlicConfig,
    MlicModel,
    create_model,
    load_checkpoint,
    save_checkpoint,
)
from mlic_fast.training import distributed
from mlic_fast.training.config import DEFAULT_LAMBDA, TrainConfig, TrainingError
from mlic_fast.training.data import ImageCache, PatchSampler
from mlic_fast.training.klt import start_from_klt
from mlic_fast.training.log import Logs, Meter
from mlic_fast.training.loss import RateDistortionLoss, draw_rates
from mlic_fast.training.optim import (
    learning_rate,
    make_optimizers,
    split_parameters,
    update_average,
)
from mlic_fast.training.state import save_state
from mlic_fast.training.validation import load_validation, validate

# Single steps overflow now and then in half precision; a diverged run never recovers.
MOST_SKIPPED_IN_A_ROW = 50

# Of the photographs, from which their KLT is estimated.
START_PIXELS = 2**23

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_model(config: TrainConfig, stored: MlicConfig | None = None) -> MlicModel:
    """The network of a run, in training mode; fresh weights are seeded.

    Args:
        config: the run's options.
        stored: configuration of the resumed network. Its weights come later, so neither the
            checkpoint given as the model nor the one of the warm start need exist any more.
    """
    torch.manual_seed(config.seed)
    lambdas = config.lmbda if len(config.lmbda) > 1 else ()
    sources = []
    if stored is not None:
        model = create_model(stored)
    elif config.model in PRESETS:
        model = create_model(dataclasses.replace(PRESETS[config.model], lambdas=lambdas))
        sources = [config.warm_start]
    else:
        model = create_model(load_checkpoint(config.model).config)
        sources = [config.model, config.warm_start]
    if model.config.lambdas != lambdas:
        trained = " ".join(map(str, model.config.lambdas)) or "a single value"
        raise TrainingError(
            f"the checkpoint was made for --lmbda {trained}: give the same, or start a model for "
            "others from a preset with --warm-start"
        )
    if config.start != "random" and any(sources):
        raise TrainingError(
            f"--start {config.start} is for fresh networks: give a preset as --model, and no "
            "--warm-start"
        )
    if config.start == "klt" and model.config.transforms != "residual":
        raise TrainingError(
            "--start klt is for residual transforms: leave it out for a model on blocks"
        )
    for source in filter(None, sources):
        warm_start(model, source)
    return model


def warm_start(model: MlicModel, path: str) -> None:
    """Copies every parameter of a checkpoint that has the name and shape of one of the model's."""
    target, source = dict(model.named_parameters()), load_checkpoint(path).state_dict()
    fitting = {k: v for k, v in source.items() if k in target and v.shape == target[k].shape}
    if not fitting:
        raise CheckpointError(
            f"no tensor of {path} fits the model: choose the --model it was made for"
        )
    model.load_state_dict(fitting, strict=False)


class Trainer:
    """One training run. Construct, then :meth:`run`; constructing restores ``resume`` if given.

    Files in the run folder: ``last.pt`` (to resume), ``last.safetensors`` and ``best.safetensors``
    (the models, with averaged weights where averaging is on), ``log.csv``, ``validation.csv``,
    ``tensorboard/``, ``cache/`` (decoded images; may be deleted).
    """

    def __init__(self, config: TrainConfig, resume: dict[str, Any] | None = None) -> None:
        self.config = config
        self.device = distributed.start(config.device)
        self.folder = Path(config.output)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"{self.folder} cannot be a run folder: {error.strerror}"
            ) from error
        self.is_main = distributed.rank() == 0
        self.sampler = self._open_data()
        self.validation_images = []
        if config.validation is not None and self.is_main:
            self.validation_images = load_validation(config.validation, config.metric)

        model = self._build(resume)
        # What GPUs, and CPUs in bfloat16, convolve fastest.
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.model).requires_grad_(False) if config.ema else None
        named, self.quantiles = split_parameters(self.model)
        self.network = list(named.values())
        self.optimizers = make_optimizers(config, named)
        self.aux_optimizer = torch.optim.Adam(self.quantiles, lr=config.aux_lr)
        half = config.precision == "float16"
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0**10, enabled=half)
        self.criterion = RateDistortionLoss(config.lmbda, config.metric).to(self.device)
        self.step = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.best = math.inf
        if resume is not None:
            self._restore(resume)
        self.forward = distributed.wrap(self.model, self.quantiles, self.device)
        self._stop = False

    # ------------------------------------------------------------------ set-up

    def _open_data(self) -> PatchSampler:
        config, cache = self.config, self.folder / "cache"
        if self.is_main:
            ImageCache.build(config.data, cache)
        distributed.barrier()
        images = ImageCache.open(cache)
        size = (config.patch_size, config.batch_size)
        return PatchSampler(images, *size, config.seed, distributed.rank())

    def _build(self, resume: dict[str, Any] | None) -> MlicModel:
        if resume is not None:
            return build_model(self.config, MlicConfig.from_json(resume["config"]))
        model = build_model(self.config)
        if self.config.start == "klt":
            # The papers' lambdas for MS-SSIM are about 1,280 times as large at the same rates.
            scale = DEFAULT_LAMBDA["mse"] / DEFAULT_LAMBDA[self.config.metric]
            lambdas = [scale * value for value in self.config.lmbda]
            start_from_klt(model, self._first_patches(), lambdas)
        return model

    def _first_patches(self) -> Tensor:
        """Patches of the first batches, float32 [B, 3, P, P] in 0..1."""
        count = -(-START_PIXELS // (self.config.batch_size * self.config.patch_size**2))
        return torch.cat([self.sampler.batch(step) for step in range(count)]).float() / 255

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(stored)
            self.aux_optimizer.load_state_dict(state["aux_optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            if self.average is not None:
                # A run that turns averaging on begins it at the resumed weights.
                self.average.load_state_dict(state["average"] or state["model"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the training checkpoint does not fit the run: {error}"
            ) from error
        self.step, self.skipped = state["step"], state["skipped"]
        self.best = state["best"]

    def _autocast(self) -> torch.autocast:
        dtype = _DTYPES[self.config.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    # ------------------------------------------------------------------ the loop

    def run(self) -> bool:
        """Trains to the last step.

        Returns False if SIGINT or SIGTERM stopped the run before; its state is saved.
        """
        with self._signals(), Logs(self.folder, self.config, self.step, self.is_main) as logs:
            meter, saved = Meter(self.device), time.monotonic()
            for batch in self._batches():
                meter.add(self._train_step(batch))
                self.step += 1
                logs.advance()
                if self.step % self.config.log_every == 0:
                    logs.train(self.step, self._summary(meter))
                    meter = Meter(self.device)
                last = self.step == self.config.steps
                if self.config.validation and (last or self.step % self.config.validate_every == 0):
                    with meter.paused():
                        self._validate(logs)
                if time.monotonic() - saved > 60 * self.config.save_every:
                    with meter.paused():
                        self.save()
                    saved = time.monotonic()
                if distributed.any_process(self._stop, self.device):
                    break
        self.save()
        distributed.barrier()
        return self.step >= self.config.steps

    def _batches(self) -> Iterator[Tensor]:
        """The batches of the remaining steps, each cut while the network works on the last."""
        with ThreadPoolExecutor(1) as pool:
            upcoming = pool.submit(self.sampler.batch, self.step)
            while self.step < self.config.steps:
                batch = upcoming.result()
                upcoming = pool.submit(self.sampler.batch, self.step + 1)
                yield batch

    def _train_step(self, batch: Tensor) -> dict[str, Tensor]:
        """One step of both optimisers.

        Returns the means of the loss's terms, or nothing if the step was skipped.
        """
        config = self.config
        generator = self._seed_step()
        x = batch.to(self.device).float() / 255
        rate = None
        if len(config.lmbda) > 1:
            rate = draw_rates(len(x), len(config.lmbda), generator).to(self.device)
        with self._autocast():
            out = self.forward(x) if rate is None else self.forward(x, rate=rate)
        terms: dict[str, Tensor] = self.criterion(out["x_hat"], out["likelihoods"], x, rate)

        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.scaler.scale(terms["loss"]).backward()
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.network, config.clip)
        # Gradients are averaged already, so every process has the same norm: all skip or none.
        finite = bool(norm.isfinite())
        if finite:
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(self.step, config, group["transforms"])
                self.scaler.step(optimizer)
        self.scaler.update()
        self._count_skipped(finite)
        if not finite:
            return {}

        aux = self.model.aux_loss()
        self.aux_optimizer.zero_grad()
        aux.backward()
        self.aux_optimizer.step()
        if self.average is not None:
            update_average(self.average, self.model, config.ema, self.step)
        terms |= {"aux": aux, "gradient": norm}
        return {name: value.detach() for name, value in terms.items()}

    def _seed_step(self) -> torch.Generator:
        """Seeds torch for the noise of a step; returns a generator for its rates."""
        key = np.random.SeedSequence([self.config.seed, self.step, distributed.rank(), 1])
        seed = int(key.generate_state(1)[0])
        torch.manual_seed(seed)
        return torch.Generator().manual_seed(seed)

    def _count_skipped(self, finite: bool) -> None:
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        self.skipped += not finite
        if self.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{self.skipped_in_a_row} gradients in a row were not finite at step {self.step}: "
                "resume with a lower --lr or with --precision float32"
            )

    # ------------------------------------------------------------------ reports and checkpoints

    def _summary(self, meter: Meter) -> dict[str, float]:
        row = meter.means()
        patches = meter.steps * self.config.batch_size * distributed.world_size()
        if "mse" in row:
            row["psnr"] = -10 * math.log10(max(row["mse"], 1e-10))
        row["lr"] = learning_rate(self.step, self.config, transforms=False)
        row["skipped"] = float(self.skipped)
        row["images_per_second"] = patches / meter.seconds()
        return row

    def _validate(self, logs: Logs) -> None:
        if self.is_main:
            model, images = self.shipped_model(), self.validation_images
            rows = validate(model, images, self.config, self.criterion, self._autocast())
            self.model.train()
            logs.validation(self.step, rows)
            loss = sum(row["loss"] for row in rows) / len(rows)
            if loss < self.best:
                self.best = loss
                save_checkpoint(model, self.folder / "best.safetensors")
        distributed.barrier()

    def shipped_model(self) -> MlicModel:
        """The network with averaged weights, where averaging is on, else as trained."""
        return self.model if self.average is None else self.average

    def save(self) -> None:
        """Writes ``last.pt`` and ``last.safetensors``."""
        if not self.is_main:
            return
        average = None if self.average is None else self.average.state_dict()
        save_state(
            {
                "options": self.config.to_dict(),
                "config": self.model.config.to_json(),
                "step": self.step,
                "skipped": self.skipped,
                "best": self.best,
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "aux_optimizer": self.aux_optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "average": average,
            },
            self.folder,
        )
        save_checkpoint(self.shipped_model(), self.folder / "last.safetensors")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run after the current step."""

        def stop(*_: object) -> None:
            self._stop = True

        kinds = (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread alone
            return
        before = [signal.signal(kind, stop) for kind in kinds]
        try:
            yield
        finally:
            for kind, handler in zip(kinds, before, strict=True):
                signal.signal(kind, handler)


def train(config: TrainConfig, resume: dict[str, Any] | None = None) -> bool:
    """Runs a training (:meth:`Trainer.run`); ``resume`` is a state from :func:`load_state`."""
    try:
        return Trainer(config, resume).run()
    finally:
        distributed.stop()
