"""``mlic-fast decode``: .mlic files -> images."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mlic_fast.bitstream import DECODED_PIXELS
from mlic_fast.cli.batch import Result, Steps, in_flight, run_batch
from mlic_fast.cli.encode import SUFFIX, describe, result_of
from mlic_fast.cli.files import (
    INPUTS_TEXT,
    STREAM,
    Job,
    find_jobs,
    is_pattern,
    read_input,
    write_output,
)
from mlic_fast.cli.options import (
    add_metadata_option,
    add_model_options,
    add_output_options,
    load_codec,
    pixels,
)

if TYPE_CHECKING:
    from mlic_fast.images import Pixels
    from mlic_fast.metadata import Metadata


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.usage = "%(prog)s INPUT.. [OUTPUT] [options]"
    parser.epilog = (
        "A last argument that does not end in .mlic is the output, for a single input; its suffix "
        "is the format (of -, .png):\n.png .webp .tif .bmp .ppm (lossless), .jpg .avif. Otherwise "
        "each result is a .png beside its input,\nor in --output-dir.\n\n"
        + INPUTS_TEXT.format(what=".mlic files", example=".mlic")
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="INPUT.. [OUTPUT]",
        help=".mlic files, folders, patterns; output",
    )
    parser.add_argument(
        "--max-pixels",
        type=pixels,
        default=DECODED_PIXELS,
        metavar="N",
        help="refuse larger pictures before they are decoded (default: %(default)s)",
    )
    add_metadata_option(
        parser,
        "write what the stream has of ICC profile, EXIF and XMP, or nothing (default: %(default)s)",
    )
    add_model_options(parser)
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Decode every input; 1 if one of them failed."""
    from mlic_fast.images import check_save_suffix

    inputs, output = list(args.paths), args.output
    if output is None and len(inputs) > 1 and _is_output(inputs[-1]):
        output = inputs.pop()
    if output is not None and output != STREAM:
        check_save_suffix(output)
    jobs = find_jobs(
        inputs,
        suffixes=(SUFFIX,),
        output=output,
        output_dir=args.output_dir,
        target_suffix=".png",
        overwrite=args.force,
        recursive=args.recursive,
        skip_existing=args.skip_existing,
    )
    return run_batch(jobs, lambda: _decoder(args), describe, as_json=args.json, quiet=args.quiet)


def _is_output(argument: str) -> bool:
    suffix = Path(argument).suffix.lower()
    return not (suffix == SUFFIX or os.path.isdir(argument) or is_pattern(argument))


def _decoder(args: argparse.Namespace) -> Steps:
    from mlic_fast import info
    from mlic_fast.images import image_bytes
    from mlic_fast.metadata import NONE

    codec = load_codec(args)

    def decode(data: bytes) -> tuple[Pixels, Metadata, int, float]:
        start = time.perf_counter()
        metadata = info(data).metadata if args.metadata == "all" else NONE
        image = codec.decompress(data, output="numpy", max_pixels=args.max_pixels)
        image = image.transpose(2, 0, 1)
        return image, metadata, len(data), time.perf_counter() - start

    def write(job: Job, decoded: tuple[Pixels, Metadata, int, float]) -> Result:
        image, metadata, size, seconds = decoded
        assert job.target is not None
        if args.output_dir is not None:
            job.target.parent.mkdir(parents=True, exist_ok=True)
        suffix = ".png" if str(job.target) == STREAM else job.target.suffix
        write_output(job.target, image_bytes(image, suffix, metadata))
        return result_of(job, image.shape, size, seconds)

    return Steps(lambda job: read_input(job.source), decode, write, **in_flight(codec))
