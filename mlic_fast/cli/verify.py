"""``mlic-fast verify``: does this machine decode streams bit for bit?"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlic_fast.cli import UsageError
from mlic_fast.cli.options import add_json_option

if TYPE_CHECKING:
    from mlic_fast.conformance.verification import Check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.epilog = (
        "Without FILE, the golden streams that come with the package are decoded, and every\n"
        "symbol, scale index, mean and latent is compared with those that were recorded. A .mlic\n"
        "file is decoded with every engine, and the latents are compared with each other.\n"
        "Prints a line a check; exits with 1 if one of them fails."
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="golden files (.zip), .mlic files")
    parser.add_argument(
        "--engine",
        nargs="+",
        default=[],
        metavar="E",
        help="cpu, cpu:ISA, spec, gpu (default: all that run here)",
    )
    parser.add_argument(
        "--model",
        default="photo",
        metavar="photo|FILE",
        help="model of the .mlic files: checkpoint or packed file (default: %(default)s)",
    )
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Check everything, even after a failure; 1 if there was one."""
    checks = []
    for check in _checks(args):
        checks.append(check)
        if not args.json:
            result = "ok" if check.problem is None else f"FAILED: {check.problem}"
            print(f"{check.file}  {check.stream}  {check.backend}  {result}", flush=True)
    failed = sum(check.problem is not None for check in checks)
    if args.json:
        document = {"checks": [dataclasses.asdict(check) for check in checks], "failed": failed}
        print(json.dumps(document, indent=2))
    else:
        print(f"{len(checks)} checks, {failed} failed")
    return 1 if failed else 0


def _checks(args: argparse.Namespace) -> Iterator[Check]:
    import torch

    import mlic_fast
    from mlic_fast.conformance import golden_files
    from mlic_fast.conformance.golden import is_golden
    from mlic_fast.conformance.verification import verify_golden, verify_stream

    files = [Path(file) for file in args.files] or golden_files()
    for file in files:
        if not file.is_file():
            raise UsageError(f"there is no file {file}")
    codec = None
    with torch.inference_mode():
        for file in files:
            if is_golden(file):
                yield from verify_golden(file, args.engine)
            else:
                codec = codec or mlic_fast.load(args.model, device="cpu", engine="spec")
                yield from verify_stream(file, codec.model, codec.packed, args.engine)
