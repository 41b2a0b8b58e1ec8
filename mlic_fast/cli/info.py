"""``mlic-fast info``: what a .mlic file says about itself. Needs no model."""

from __future__ import annotations

import argparse

import mlic_fast
from mlic_fast.bitstream import PROVISIONAL
from mlic_fast.cli.batch import Result, Steps, run_batch
from mlic_fast.cli.encode import SUFFIX
from mlic_fast.cli.files import INPUTS_TEXT, find_inputs, read_input
from mlic_fast.cli.options import add_json_lines_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.epilog = (
        "The checksum is checked, so a file that is cut short or altered is an error.\n\n"
        + INPUTS_TEXT.format(what=".mlic files", example=".mlic")
    )
    parser.add_argument("paths", nargs="+", metavar="FILE", help=".mlic files, folders, patterns")
    add_json_lines_option(parser)


def run(args: argparse.Namespace) -> int:
    """Describe every file; 1 if one of them is not a sound stream."""
    jobs = find_inputs(args.paths, (SUFFIX,))
    steps = Steps(lambda job: read_input(job.source), _inspect, lambda job, result: result)
    return run_batch(jobs, lambda: steps, _describe, as_json=args.json)


def _inspect(data: bytes) -> Result:
    found = mlic_fast.info(data)
    return {
        "bytes": found.size,
        "payload_bytes": found.payload_size,
        "width": found.width,
        "height": found.height,
        "bits_per_pixel": found.bits_per_pixel,
        "quality": found.quality,
        "alpha": found.alpha,
        "metadata": found.metadata.summary(),
        "arithmetic_version": found.arithmetic_version,
        "lanes": found.lanes,
        "model_id": found.model_id.hex(),
        "model": found.model,
        "memory": found.memory,
    }


def _describe(result: Result) -> str:
    provisional = result["arithmetic_version"] == PROVISIONAL
    rows = {
        "image": f"{result['width']}x{result['height']} pixels"
        + (" with transparency" if result["alpha"] else ""),
        "size": f"{result['bytes']} bytes, {result['bits_per_pixel']:.4f} bits a pixel",
        "quality": result["quality"] or "that of the model, which has a single rate",
        "model": result["model_id"] + (f" ({result['model']})" if result["model"] else ""),
        "arithmetic": f"version {result['arithmetic_version']}"
        + (", provisional: decodes only on the machine that made it" if provisional else ""),
        "lanes": result["lanes"],
    }
    if result["memory"]:
        rows["memory"] = f"about {result['memory'] / 1e6:.0f} MB to decode it on a CPU"
    if result["metadata"]:
        sizes = (
            f"{name.replace('_', ' ')} {value}{' bytes' * (name in ('icc_profile', 'exif', 'xmp'))}"
            for name, value in result["metadata"].items()
        )
        rows["metadata"] = ", ".join(sizes)
    return "\n".join([result["input"], *(f"  {name:<11}{value}" for name, value in rows.items())])
