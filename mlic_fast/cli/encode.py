"""``mlic-fast encode``: images -> .mlic files."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mlic_fast.cli import UsageError
from mlic_fast.cli.batch import Result, Steps, in_flight, run_batch
from mlic_fast.cli.files import INPUTS_TEXT, STREAM, Job, find_jobs, open_input, write_output
from mlic_fast.cli.options import (
    add_metadata_option,
    add_model_options,
    add_output_options,
    count,
    load_codec,
)

if TYPE_CHECKING:
    from mlic_fast.images import Handover

SUFFIX = ".mlic"


class Read(NamedTuple):
    """An image, and what is left of it when it is coded."""

    picture: Handover
    shape: tuple[int, ...]
    notes: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.usage = "%(prog)s INPUT.. [OUTPUT] [options]"
    parser.epilog = (
        "A last argument that ends in .mlic, or -, is the output, for a single input. Otherwise "
        "each result lies beside\nits image, with the suffix .mlic, or in --output-dir.\n\n"
        + INPUTS_TEXT.format(what="images", example=".jpg")
    )
    parser.add_argument(
        "paths", nargs="+", metavar="INPUT.. [OUTPUT]", help="images, folders, patterns; output"
    )
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument(
        "-q",
        "--quality",
        type=_quality,
        metavar="1..100",
        help="for models with several rates: higher is better and larger",
    )
    rate.add_argument(
        "--target-bytes", type=count, metavar="N", help="best quality of at most N bytes a file"
    )
    rate.add_argument(
        "--target-psnr", type=_decibels, metavar="DB", help="lowest quality of this PSNR over RGB"
    )
    add_metadata_option(
        parser,
        "keep ICC profile, EXIF and XMP, or nothing, as sRGB (default: %(default)s)",
    )
    add_model_options(parser)
    add_output_options(parser)
    parser.add_argument(
        "--ray",
        metavar="auto|ADDRESS",
        help="encode on a Ray cluster; inputs and --output-dir may be URLs, such as s3://bucket/dir",
    )


def run(args: argparse.Namespace) -> int:
    """Encode every input; 1 if one of them failed."""
    from mlic_fast.images import IMAGE_SUFFIXES

    if args.engine == "reference":
        raise UsageError(
            "the reference engine writes no files, since they would not decode elsewhere; "
            "compare with it by mlic-fast bench or eval"
        )
    if args.ray is not None:
        from mlic_fast.cli.cluster import run_encode

        return run_encode(args)
    inputs, output = list(args.paths), args.output
    if (
        output is None
        and len(inputs) > 1
        and (inputs[-1] == STREAM or Path(inputs[-1]).suffix.lower() == SUFFIX)
    ):
        output = inputs.pop()
    jobs = find_jobs(
        inputs,
        suffixes=IMAGE_SUFFIXES,
        output=output,
        output_dir=args.output_dir,
        target_suffix=SUFFIX,
        overwrite=args.force,
        recursive=args.recursive,
        skip_existing=args.skip_existing,
    )
    return run_batch(jobs, lambda: _encoder(args), describe, as_json=args.json, quiet=args.quiet)


def result_of(job: Job, shape: tuple[int, ...], size: int, seconds: float) -> Result:
    """What ``--json`` prints of an image [3 or 4, H, W] whose stream has ``size`` bytes."""
    _, height, width = shape
    return {
        "output": str(job.target),
        "bytes": size,
        "width": width,
        "height": height,
        "bits_per_pixel": 8 * size / (width * height),
        "seconds": seconds,
    }


def describe(result: Result) -> str:
    """One line about a file that was written or read."""
    return (
        f"{result['input']} -> {result['output']}  {result['width']}x{result['height']}  "
        f"{result['bytes']} bytes  {result['bits_per_pixel']:.4f} bpp  {result['seconds']:.2f} s"
    )


def _quality(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 100, not {text!r}")
    return int(text)


def _decibels(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1000:
        raise argparse.ArgumentTypeError(f"must be a number of dB above 0, not {text!r}")
    return value


def _encoder(args: argparse.Namespace) -> Steps:
    from mlic_fast.images import Handover, load_picture

    codec = load_codec(args)

    def read(job: Job) -> Read:
        picture = load_picture(open_input(job.source), metadata=args.metadata == "all")
        return Read(Handover(replace(picture, notes=())), picture.pixels.shape, picture.notes)

    def encode(read: Read) -> tuple[Read, bytes, float]:
        start = time.perf_counter()
        targets = {"target_bytes": args.target_bytes, "target_psnr": args.target_psnr}
        wanted = {name: value for name, value in targets.items() if value is not None}
        data = codec.compress(read.picture, quality=args.quality, **wanted)
        assert isinstance(data, bytes)  # a list only for several
        return read, data, time.perf_counter() - start

    def write(job: Job, coded: tuple[Read, bytes, float]) -> Result:
        read, data, seconds = coded
        assert job.target is not None
        if args.output_dir is not None:
            job.target.parent.mkdir(parents=True, exist_ok=True)
        write_output(job.target, data)
        result = result_of(job, read.shape, len(data), seconds)
        return result | ({"notes": read.notes} if read.notes else {})

    return Steps(read, encode, write, **in_flight(codec))
