"""``mlic-fast info``: what a .mlic file says about itself. Needs no model."""

from __future__ import annotations

import argparse
from pathlib import Path

import mlic_fast
from mlic_fast.bitstream import MODEL_ID_BYTES, PROVISIONAL, read
from mlic_fast.cli.batch import Result, Steps, run_batch
from mlic_fast.cli.encode import SUFFIX
from mlic_fast.cli.files import INPUTS_TEXT, find_inputs
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
    return run_batch(jobs, _inspector, _describe, as_json=args.json)


def _inspector() -> Steps:
    names = shipped_models()

    def inspect(data: bytes) -> Result:
        header, payload = read(data)
        return {
            "bytes": len(data),
            "payload_bytes": len(payload),
            "width": header.width,
            "height": header.height,
            "bits_per_pixel": 8 * len(data) / header.pixels,
            "quality": header.quality or None,
            "arithmetic_version": header.arithmetic_version,
            "lanes": header.lanes,
            "model_id": header.model_id.hex(),
            "model": names.get(header.model_id),
        }

    return Steps(lambda job: job.source.read_bytes(), inspect, lambda job, result: result)


def shipped_models() -> dict[bytes, str]:
    """Names of the models that come with the package, by what identifies them in a stream.

    The identity is read from the files' metadata, so that no model is loaded.
    """
    from safetensors import safe_open

    names = {}
    for path in (Path(mlic_fast.__file__).parent / "weights").glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            identity = (file.metadata() or {}).get("identity", "")
        names[bytes.fromhex(identity)[:MODEL_ID_BYTES]] = path.stem
    return names


def _describe(result: Result) -> str:
    provisional = result["arithmetic_version"] == PROVISIONAL
    rows = {
        "image": f"{result['width']}x{result['height']} pixels",
        "size": f"{result['bytes']} bytes, {result['bits_per_pixel']:.4f} bits a pixel",
        "quality": result["quality"] or "that of the model, which has a single rate",
        "model": result["model_id"] + (f" ({result['model']})" if result["model"] else ""),
        "arithmetic": f"version {result['arithmetic_version']}"
        + (", provisional: decodes only on the machine that made it" if provisional else ""),
        "lanes": result["lanes"],
    }
    return "\n".join([result["input"], *(f"  {name:<11}{value}" for name, value in rows.items())])
