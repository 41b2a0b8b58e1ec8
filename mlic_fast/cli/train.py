"""``mlic-fast train``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from mlic_fast.cli import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command.

    The defaults are those of :class:`mlic_fast.training.TrainConfig`; an option that is not given
    is absent, so that a resumed run keeps the options it was started with.
    """
    parser.argument_default = argparse.SUPPRESS
    parser.usage = (
        "%(prog)s DIR --output RUNDIR [options]\n       %(prog)s --resume RUNDIR [options]"
    )
    parser.epilog = "docs/training.md explains the choices. Under torchrun it uses several GPUs."
    add = parser.add_argument
    add("data", metavar="DIR", nargs="?", help="folder of photographs, searched recursively")
    add("--output", metavar="RUNDIR", help="run folder, for checkpoints and logs")
    add("--resume", metavar="RUN", help="run folder or its last.pt: go on with its options")
    add("--model", help="preset (mlic, mlic_plus, mlic_plus_plus, photo, demo) or checkpoint")
    add(
        "--start",
        choices=("random", "klt"),
        help="weights of a preset: random (default), or transforms that begin as a linear one",
    )
    add("--warm-start", metavar="FILE", help="checkpoint whose fitting tensors initialise --model")
    add(
        "--lmbda",
        type=float,
        nargs="+",
        metavar="L",
        help="Lagrange multiplier; several, ascending, train one model for all rates between them",
    )
    add("--metric", choices=("mse", "ms-ssim"), help="distortion of the loss (default: mse)")
    add("--steps", type=int, help="optimiser steps in all (default: 2000000)")
    add("--minutes", type=float, help="train for so long, in place of --steps")
    add("--batch-size", type=int, help="patches a step and process (default: 8)")
    add("--patch-size", type=int, help="side of a patch, a multiple of 64 (default: 256)")
    add("--late-patch-size", type=int, metavar="SIDE", help="in the last third, e.g. 384")
    add(
        "--reduced",
        type=float,
        metavar="PART",
        help="part of a batch that is photographs reduced by 2/3, e.g. 0.3 (default: 0)",
    )
    add("--graphics", action="store_true", help="a tenth of a batch is synthetic graphics")
    add("--optimizer", choices=("adam", "muon"), help="of the network (default: adam)")
    add("--lr", type=float, help="learning rate (default: 1e-4)")
    add(
        "--transforms-lr",
        type=float,
        metavar="FACTOR",
        help="learning rate of g_a and g_s, relative to --lr (default: 1)",
    )
    add("--hyper-lr", type=float, metavar="FACTOR", help="of h_a, h_s and the prior of z")
    add("--residual-lr", type=float, metavar="FACTOR", help="of the latent residual prediction")
    add("--aux-lr", type=float, help="learning rate of the quantiles (default: 1e-3)")
    add("--clip", type=float, help="largest norm of the gradient (default: 1)")
    add("--schedule", choices=("steps", "cosine", "linear"), help="default: steps")
    add("--warmup", type=int, help="steps of linear warm-up (default: 300)")
    add(
        "--z-free",
        type=float,
        metavar="PART",
        help="part of the run before the rate of z counts for h_a (default: 0)",
    )
    add("--ema", type=float, help="decay of the averaged weights that are saved, e.g. 0.999")
    add("--validation", metavar="DIR", help="folder of validation images")
    add("--validate-every", type=int, help="steps between validations (default: 5000)")
    add("--save-every", type=float, help="minutes between checkpoints (default: 10)")
    add("--log-every", type=int, help="steps between rows of the log (default: 50)")
    add("--device", help="cpu, cuda, .. (default: auto)")
    add("--precision", choices=("float32", "bfloat16", "float16"), help="default: float32")
    add("--seed", type=int, help="default: 0")


def run(args: argparse.Namespace) -> int:
    """Trains; 0 also when a signal stopped the run with its state saved."""
    from mlic_fast.training import TrainConfig, load_state, train

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    options = {name: value for name, value in vars(args).items() if name in names}
    state = None
    if "resume" in args:
        state = load_state(args.resume)
        options = {**state["options"], **_run_folder(args.resume), **options}
    config = TrainConfig.from_dict(_complete(options))
    if not train(config, state):
        print(f"stopped; go on with: mlic-fast train --resume {config.output}")
    return 0


def _run_folder(resume: str) -> dict[str, str]:
    """A run folder that was moved goes on where it is now."""
    path = Path(resume)
    return {"output": str(path if path.is_dir() else path.parent)}


def _complete(options: dict[str, Any]) -> dict[str, Any]:
    """Fills in lambdas from the model, and checks what has no default."""
    from mlic_fast.models import PRESETS, load_checkpoint
    from mlic_fast.training.run_config import DEFAULT_LAMBDA

    if not options.keys() >= {"data", "output"}:
        raise UsageError("give a folder of photographs and --output RUNDIR, or --resume RUNDIR")
    if "lmbda" not in options:
        model = options.setdefault("model", "mlic_plus_plus")
        config = PRESETS[model] if model in PRESETS else load_checkpoint(model).config
        options["lmbda"] = config.lambdas or (DEFAULT_LAMBDA[options.get("metric", "mse")],)
    return options
