"""``mlic-fast pack``: a checkpoint -> a packed file."""

from __future__ import annotations

import argparse
from pathlib import Path

from mlic_fast.cli import UsageError
from mlic_fast.cli.files import check_folder_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.epilog = (
        "A packed file holds the entropy path in integers and the transforms as they are, so that\n"
        "nothing is computed when it is loaded; streams of it and of its checkpoint are the same.\n"
        "The same checkpoint gives the same file on every machine."
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint file")
    parser.add_argument("output", metavar="OUTPUT", help="packed file, e.g. model.safetensors")
    parser.add_argument("--force", action="store_true", help="overwrite a file that exists")
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read files of torch.save too; only from where you trust",
    )


def run(args: argparse.Namespace) -> int:
    """Pack one model."""
    output = Path(args.output)
    if output.exists() and not args.force:
        raise UsageError(f"{output} exists already; use --force to overwrite it")
    check_folder_of(args.output)

    from mlic_fast.engine.identity import model_identity
    from mlic_fast.engine.packing.packer import load_packed, pack, save_packed
    from mlic_fast.models import load_checkpoint

    if load_packed(args.model) is not None:
        raise UsageError(f"{args.model} is a packed file already")
    model = load_checkpoint(args.model, allow_pickle=args.allow_pickle)
    packed = pack(model)
    save_packed(model, packed, output)
    identity = model_identity(model, packed)[:4].hex()
    print(f"{args.model} -> {output}  {output.stat().st_size} bytes  model {identity}")
    return 0
