"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
from mlic_fast.training.flat import PARTS
from mlic_fast.training.graphics import make_graphics
from mlic_fast.training.klt import start_from_klt
from mlic_fast.training.log import Clock, Logs
from mlic_fast.training.optim import FALL, learning_rates
from mlic_fast.training.patches import Cut, ImageCache, Patches, Pool, Squares
from mlic_fast.training.run_config import DEFAULT_LAMBDA, TrainConfig, TrainingError
from mlic_fast.training.state import save_state
from mlic_fast.training.step import DTYPES, Controls, Step, runner
from mlic_fast.training.validation import disorder, load_validation, validate

# Single steps overflow now and then in half precision; a diverged run never recovers.
MOST_SKIPPED_IN_A_ROW = 50

# Pixels of the photographs from which their KLT is estimated.
START_PIXELS = 2**23

# The part of a run over which the rate of the hyper-latents comes to count.
Z_RETURNS = 0.1


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
    for source in filter(None, sources):
        warm_start(model, source)
    return model


def warm_start(model: MlicModel, path: str) -> None:
    """Copies every parameter of a checkpoint that has the name and shape of one of the model's.

    Gains of other lambdas are interpolated; beyond them they go on with the root of lambda, as
    those of a fresh model.
    """
    target, loaded = dict(model.named_parameters()), load_checkpoint(path)
    source = loaded.state_dict()
    if loaded.config.rates and model.config.rates and loaded.config.M == model.config.M:
        logs, wanted = (torch.tensor(m.config.lambdas).log() for m in (loaded, model))
        inside = wanted.clamp(logs[0], logs[-1])
        low = (torch.searchsorted(logs, inside) - 1).clamp(0, max(len(logs) - 2, 0))
        high = (low + 1).clamp(max=len(logs) - 1)
        weight = ((inside - logs[low]) / (logs[high] - logs[low]).clamp(min=1e-9))[:, None]
        for name, sign in (("gain.log_gain", 0.5), ("gain.log_inverse_gain", -0.5)):
            table = torch.lerp(source[name][low], source[name][high], weight)
            source[name] = table + sign * (wanted - inside)[:, None]
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
    ``tensorboard/``, ``cache/`` (decoded images; may be deleted). While there is a file ``pause``
    in it, the run waits.
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
        self._open_data()
        self.validation_images = []
        if config.validation is not None and self.is_main:
            self.validation_images = load_validation(config.validation, config.metric)

        self.step = 0
        self.best = math.inf
        self._seconds = 0.0
        model = self._build(resume)
        # What GPUs, and CPUs in bfloat16, convolve fastest.
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        self.machine = Step(self.model, config)
        if resume is not None:
            self._restore(resume)
        self.machine.share()
        self._runners: dict[int, Callable[[], None]] = {}
        self._stop = False

    # ------------------------------------------------------------------ set-up

    def _open_data(self) -> None:
        config, cache = self.config, self.folder / "cache"
        if self.is_main:
            ImageCache.build(config.data, cache)
        distributed.barrier()
        self.photographs = Pool(ImageCache.open(cache), self.device)
        largest = max(config.patch_size, config.late_patch_size or 0)
        for side in {config.patch_size, largest}:
            self.photographs.check(side, warn=self.is_main)
        self.graphics = None
        if config.graphics:
            pictures = make_graphics(config.seed, 2 * largest)
            self.graphics = Pool(pictures, self.device)

    def patches(self, side: int) -> Patches:
        """Batches of patches of this side, in as many pixels as those of ``patch_size``."""
        config = self.config
        batch = max(1, config.batch_size * config.patch_size**2 // side**2)
        return Patches(self.photographs, self.graphics, side, batch, config.reduced)

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
        """Photographs alone, as graphics would own the transform: float32 [B, 3, P, P] in 0..1."""
        self._seed_step()
        side = self.config.patch_size
        (squares,) = Squares([Cut(self.photographs, side, -(-START_PIXELS // side**2))]).draw()
        return squares.float().cpu() / 255

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(state["model"])
            # A run that turns averaging on begins it at the resumed weights.
            self.machine.restore(state, state["average"] or state["model"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the training checkpoint does not fit the run: {error}"
            ) from error
        self.step, self.best, self._seconds = state["step"], state["best"], state["seconds"]

    # ------------------------------------------------------------------ steps

    def run(self) -> bool:
        """Trains to the last step, or until SIGINT or SIGTERM; returns whether it is finished."""
        config = self.config
        with self._signals(), Logs(self.folder, config, self.step, self.is_main) as logs:
            clock, meter = Clock(self._seconds), Clock()
            saved, logged, finished = time.monotonic(), self.step, self._is_last()
            while not finished:
                self._wait(clock, meter)
                self._train_step(self._progress())
                self.step += 1
                logs.advance()
                self._seconds = distributed.agreed(clock.seconds(), self.device)
                finished = distributed.any_process(self._is_last(), self.device)
                if self.step % config.log_every == 0:
                    logs.train(self.step, self._summary(meter, self.step - logged))
                    self.machine.clear()
                    meter, logged = Clock(), self.step
                if config.validation and (finished or self.step % config.validate_every == 0):
                    with meter.stopped():
                        self._validate(logs)
                if time.monotonic() - saved > 60 * config.save_every:
                    with meter.stopped():
                        self.save()
                    saved = time.monotonic()
                if distributed.any_process(self._stop, self.device):
                    break
        self.save()
        distributed.barrier()
        return finished

    def _progress(self) -> float:
        if self.config.minutes is None:
            return self.step / self.config.steps
        return min(1.0, self._seconds / (60 * self.config.minutes))

    def _is_last(self) -> bool:
        if self.config.minutes is None:
            return self.step >= self.config.steps
        return self._progress() >= 1

    def _wait(self, *clocks: Clock) -> None:
        """Waits while there is a file ``pause`` in the run folder, which does not count as time."""
        with contextlib.ExitStack() as stack:
            for clock in clocks:
                stack.enter_context(clock.stopped())
            while (self.folder / "pause").exists() and not self._stop:
                time.sleep(0.05)

    def _train_step(self, progress: float) -> None:
        config, side = self.config, self.config.patch_size
        if config.late_patch_size is not None and progress >= FALL:
            side = config.late_patch_size
        if side not in self._runners:
            self._runners[side] = runner(self.machine, self.patches(side))
        # Early weights fade quickly from the average.
        average = 1 - min(config.ema, (self.step + 1) / (self.step + 10))
        rates = learning_rates(self.step, progress, config)
        weight = 1.0
        if config.z_free:
            weight = min(1.0, max(0.0, (progress - config.z_free) / Z_RETURNS))
        self._seed_step()
        self.machine.control(Controls(rates, weight, average))
        self._runners[side]()

    def _seed_step(self) -> None:
        """Makes patches, rates and noise of a step a function of seed, step and process."""
        key = np.random.SeedSequence([self.config.seed, self.step, distributed.rank(), 1])
        torch.manual_seed(int(key.generate_state(1)[0]))

    # ------------------------------------------------------------------ reports and checkpoints

    def _summary(self, meter: Clock, steps: int) -> dict[str, float]:
        row = self.machine.means()
        skipped, in_a_row = self.machine.skipped.tolist()
        if in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{int(in_a_row)} gradients in a row were not finite at step {self.step}: "
                "resume with a lower --lr or with --precision float32"
            )
        if "mse" in row:
            row["psnr"] = -10 * math.log10(max(row["mse"], 1e-10))
        rates = learning_rates(self.step, self._progress(), self.config)
        patches = steps * self.config.batch_size * distributed.world_size()
        row |= {"lr": rates[PARTS.index("contexts")], "skipped": skipped}
        row["images_per_second"] = patches / meter.seconds()
        return row

    def _validate(self, logs: Logs) -> None:
        if self.is_main:
            model, images = self.shipped_model(), self.validation_images
            dtype = DTYPES[self.config.precision]
            autocast = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
            rows = validate(model, images, self.config, self.machine.criterion, autocast)
            self.model.train()
            logs.validation(self.step, rows)
            for line in disorder(model, rows):
                logs.say(f"step {self.step}: {line}")
            loss = sum(row["loss"] for row in rows) / len(rows)
            if loss < self.best:
                self.best = loss
                save_checkpoint(model, self.folder / "best.safetensors")
        distributed.barrier()

    def shipped_model(self) -> MlicModel:
        """The network with averaged weights, where averaging is on, else as trained."""
        average = self.machine.average
        return self.model if average is None else average

    def save(self) -> None:
        """Writes ``last.pt`` and ``last.safetensors``."""
        if not self.is_main:
            return
        save_state(
            {
                "options": self.config.to_dict(),
                "config": self.model.config.to_json(),
                "step": self.step,
                "seconds": self._seconds,
                "best": self.best,
                "model": self.model.state_dict(),
                **self.machine.state(),
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
