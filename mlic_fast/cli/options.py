"""Options that several commands share."""

from __future__ import annotations

import argparse
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from mlic_fast.bitstream import MAX_PIXELS
from mlic_fast.cli import UsageError

if TYPE_CHECKING:
    from mlic_fast.codec import Codec


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Where results go."""
    parser.add_argument("-o", "--output", metavar="FILE", help="of a single input")
    parser.add_argument(
        "--output-dir", metavar="DIR", help="write the results into this folder, made if missing"
    )
    parser.add_argument(
        "-r",
        "--recursive",
        action="store_true",
        help="take folders with their subfolders, which --output-dir repeats",
    )
    existing = parser.add_mutually_exclusive_group()
    add_force_option(existing)
    existing.add_argument(
        "--skip-existing", action="store_true", help="leave out what has a result already"
    )
    parser.add_argument(
        "-j", "--threads", type=count, metavar="N", help="of the CPU (default: all cores)"
    )
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="print errors alone")
    loudness.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="say on stderr what does the work, and how long it took to load",
    )
    add_json_lines_option(parser)


def add_force_option(parser: argparse._ActionsContainer) -> None:
    """``--force``."""
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout")


def add_json_lines_option(parser: argparse.ArgumentParser) -> None:
    """``--json`` of commands that take many files."""
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON for each file to stdout"
    )


def add_metadata_option(parser: argparse.ArgumentParser, help: str) -> None:
    """``--metadata``."""
    parser.add_argument("--metadata", choices=("all", "none"), default="all", help=help)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model does the work, and on what."""
    parser.add_argument(
        "--model",
        default="photo",
        metavar="photo|FILE",
        help="the model that comes with the package, or a checkpoint file (default: %(default)s)",
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)"
    )
    parser.add_argument(
        "--engine", default="auto", help="what computes (default: %(default)s, the best one here)"
    )


def add_benchmark_options(parser: argparse.ArgumentParser) -> None:
    """Which model and engines are timed, and on what."""
    parser.add_argument(
        "--model",
        default="photo",
        metavar="photo|FILE|PRESET",
        help="checkpoint, packed file, mlic, mlic_plus or mlic_plus_plus (default: %(default)s)",
    )
    parser.add_argument("--engine", default="auto", help="what to time (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    parser.add_argument(
        "--threads", type=count, metavar="N", help="of the CPU (default: PyTorch's choice)"
    )


def count(text: str) -> int:
    """Type of an argument."""
    if not text.isdecimal() or not 1 <= int(text) <= 1 << 30:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 2^30, not {text!r}")
    return int(text)


def pixels(text: str) -> int:
    """Type of an argument: a number of pixels."""
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PIXELS:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 2^28, not {text!r}")
    return int(text)


def picture_size(text: str) -> tuple[int, int]:
    """Type of an argument: width and height."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must look like 768x512, not {text!r}")
    return int(match[1]), int(match[2])


def set_threads(args: argparse.Namespace) -> None:
    """``--threads``; before codecs are loaded."""
    from mlic_fast.engine.surroundings import set_thread_count

    if args.threads:
        set_thread_count(args.threads)


def load_codec(args: argparse.Namespace) -> Codec:
    """The codec of ``--model``, ``--device`` and ``--engine``; says so with ``--verbose``."""
    import mlic_fast

    set_threads(args)
    start = time.perf_counter()
    codec = mlic_fast.load(args.model, device=args.device, engine=args.engine)
    if args.verbose:
        seconds = time.perf_counter() - start
        print(f"mlic-fast: {codec}, loaded in {seconds:.2f} s", file=sys.stderr)
    return codec


def load_codecs(args: argparse.Namespace) -> list[Codec]:
    """The codec of ``--model``, ``--engine`` and ``--device``, and that of ``--against``."""
    from mlic_fast.profiling import codecs

    loaded = codecs.load_codecs(args.model, args.device, args.engine, args.against)
    if len({codec.engine for codec in loaded}) < len(loaded):
        raise UsageError(f"--against {args.against} is the engine that is timed already")
    return loaded


def describe(machine: dict[str, Any]) -> str:
    """What was measured on, in a line."""
    gpu = machine["gpu"]
    where = f"{gpu['name']}, driver {gpu.get('driver_version', 'unknown')}, " if gpu else ""
    return (
        f"{where}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['instruction_sets'][0]}, torch {machine['torch']}, load {machine['load']:.1f}"
    )
