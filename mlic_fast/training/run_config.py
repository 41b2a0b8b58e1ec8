"""The options of a training run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mlic_fast.errors import MlicError
from mlic_fast.evaluation.metrics import SMALLEST_SIDE

DEFAULT_LAMBDA = {"mse": 0.0130, "ms-ssim": 16.64}
"""A middle operating point of the papers, for models that bring no lambdas of their own."""

PRECISIONS = ("float32", "bfloat16", "float16")
SCHEDULES = ("steps", "cosine", "linear")
OPTIMIZERS = ("adam", "muon")
STARTS = ("random", "klt")


class TrainingError(MlicError):
    """Training cannot start or go on: options, data or a run folder that do not fit."""


@dataclass(frozen=True)
class TrainConfig:
    """Options of a run.

    They are stored in every training checkpoint, so a resumed run needs none of them.

    Attributes:
        data: folder of training photographs, searched recursively.
        output: run folder, receives checkpoints and logs.
        model: name of a preset or a checkpoint file.
        lmbda: Lagrange multipliers, ascending; more than one trains a variable-rate model.
        metric: ``"mse"`` or ``"ms-ssim"``, the distortion of the loss.
        steps: number of optimiser steps in all.
        minutes: length of the run in minutes of training, in place of ``steps``; None: by steps.
        batch_size: patches a step and process.
        patch_size: side of the square patches in pixels, a multiple of 64.
        late_patch_size: their side in the last third, in batches of as many pixels; None: the same.
        reduced: part of a batch that is photographs reduced by 2/3.
        graphics: whether a tenth of a batch is synthetic graphics, made for the run.
        optimizer: of the network, ``"adam"`` or ``"muon"``.
        lr: learning rate of the network.
        transforms_lr: learning rate of g_a and g_s, relative to ``lr``.
        hyper_lr: learning rate of h_a, h_s and the prior of z, relative to ``lr``.
        residual_lr: learning rate of the latent residual prediction, relative to ``lr``.
        aux_lr: learning rate of the quantiles of the factorised prior (Adam).
        clip: largest 2-norm of the gradient.
        schedule: ``"steps"`` (as in the papers: constant, then 0.3 and 0.1 of it), ``"cosine"``, or
            ``"linear"`` (constant, then linearly to nothing in the last third).
        warmup: steps of linear warm-up.
        z_free: part of the run before the rate of the hyper-latents counts for h_a.
        ema: decay of the moving average of the weights, which is validated and saved; 0: none.
        start: weights of a fresh network, ``"random"`` or ``"klt"``, whose transforms are a linear
            one of the photographs at first and take up their learning rate slowly.
        warm_start: checkpoint whose fitting tensors initialise the network.
        validation: folder of validation images, or None.
        validate_every: steps between validations.
        save_every: minutes between training checkpoints.
        log_every: steps between rows of ``log.csv``.
        device: torch device, or ``"auto"``.
        precision: of the network's products (autocast); likelihoods and loss stay float32.
        seed: seeds weights, patches, rates and quantisation noise.
    """

    data: str
    output: str
    model: str = "mlic_plus_plus"
    lmbda: tuple[float, ...] = (0.0130,)
    metric: str = "mse"
    steps: int = 2_000_000
    minutes: float | None = None
    batch_size: int = 8
    patch_size: int = 256
    late_patch_size: int | None = None
    reduced: float = 0.0
    graphics: bool = False
    optimizer: str = "adam"
    lr: float = 1e-4
    transforms_lr: float = 1.0
    hyper_lr: float = 1.0
    residual_lr: float = 1.0
    aux_lr: float = 1e-3
    clip: float = 1.0
    schedule: str = "steps"
    warmup: int = 300
    z_free: float = 0.0
    ema: float = 0.0
    start: str = "random"
    warm_start: str | None = None
    validation: str | None = None
    validate_every: int = 5000
    save_every: float = 10.0
    log_every: int = 50
    device: str = "auto"
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lmbda", tuple(float(value) for value in self.lmbda))
        sides = [self.patch_size, self.late_patch_size or self.patch_size]
        lengths = [self.steps, self.batch_size, self.validate_every, self.log_every]
        rates = [self.lr, self.transforms_lr, self.hyper_lr, self.residual_lr, self.aux_lr]
        others = [self.clip, self.save_every, 1.0 if self.minutes is None else self.minutes]
        rules = {
            "--lmbda takes positive, strictly ascending values": bool(self.lmbda)
            and self.lmbda[0] > 0
            and all(a < b for a, b in zip(self.lmbda, self.lmbda[1:], strict=False)),
            f"--metric is one of {', '.join(DEFAULT_LAMBDA)}": self.metric in DEFAULT_LAMBDA,
            f"--schedule is one of {', '.join(SCHEDULES)}": self.schedule in SCHEDULES,
            f"--optimizer is one of {', '.join(OPTIMIZERS)}": self.optimizer in OPTIMIZERS,
            f"--precision is one of {', '.join(PRECISIONS)}": self.precision in PRECISIONS,
            f"--start is one of {', '.join(STARTS)}": self.start in STARTS,
            "patches have sides of positive multiples of 64": all(
                side > 0 and side % 64 == 0 for side in sides
            ),
            "--metric ms-ssim needs patches of 192 or more": self.metric != "ms-ssim"
            or min(sides) >= SMALLEST_SIDE,
            "--steps, --batch-size, --validate-every and --log-every are at least 1": min(lengths)
            >= 1,
            "learning rates, --clip, --minutes and --save-every are positive": min(rates + others)
            > 0,
            "--reduced and --z-free are from 0 to 1": min(self.reduced, self.z_free) >= 0
            and max(self.reduced, self.z_free) <= 1,
            "--ema is at least 0 and below 1": 0 <= self.ema < 1,
            "--warmup and --seed are not negative": min(self.warmup, self.seed) >= 0,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise TrainingError("; ".join(broken))

    def to_dict(self) -> dict[str, Any]:
        """The options by name, for :meth:`from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> TrainConfig:
        """Rebuilds the options; raises :class:`TrainingError` for names of another release."""
        unknown = sorted(set(options) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise TrainingError(
                f"unknown training options {', '.join(unknown)}: resume with the release that "
                "wrote the checkpoint"
            )
        return cls(**options)
