"""``mlic-fast bench``: how fast, side by side with another engine."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mlic_fast.cli import UsageError
from mlic_fast.cli.files import check_folder_of

if TYPE_CHECKING:
    import torch

    from mlic_fast.codec import Codec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.epilog = (
        "Checks that every stream decodes to what was encoded, then times the whole of encoding\n"
        "(pixels to bytes) and decoding in memory, the engines taking turns, and every stage.\n"
        "A preset is a full-size model of seeded weights, with latents like a trained model's at\n"
        "roughly 0.3 bit a pixel. The floor is the number of operations over the measured peak of\n"
        "this machine."
    )
    parser.add_argument(
        "--model",
        default="demo",
        metavar="demo|FILE|PRESET",
        help="checkpoint, packed file, mlic, mlic_plus or mlic_plus_plus (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        action="append",
        type=_size,
        metavar="WxH",
        help="of a synthetic photograph; may be given several times (default: 768x512)",
    )
    parser.add_argument("--image", action="append", metavar="FILE", help="image to time instead")
    parser.add_argument("--engine", default="auto", help="what to time (default: %(default)s)")
    parser.add_argument("--against", metavar="ENGINE", help="e.g. reference")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    parser.add_argument(
        "--runs", type=_runs, default=5, metavar="N", help="of each (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="write all numbers, and the machine's name")


def run(args: argparse.Namespace) -> int:
    """Time every image."""
    if args.json:
        check_folder_of(args.json)

    from mlic_fast.benchmark.compare import compare
    from mlic_fast.benchmark.machine import describe_machine
    from mlic_fast.images import write_atomically

    codecs = _codecs(args)
    machine = describe_machine()
    print(f"model {args.model}  {codecs[0].model_id.hex()}")
    print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['instruction_sets'][0]}, torch {machine['torch']}"
    )
    results = []
    for name, image in _images(args):
        result = {"image": name, **compare(codecs, image, args.runs)}
        results.append(result)
        print(_table(result), flush=True)
    if args.json:
        document = {
            "model": args.model,
            "model_id": codecs[0].model_id.hex(),
            "machine": machine,
            "results": results,
        }
        write_atomically(args.json, (json.dumps(document, indent=2) + "\n").encode())
    return 0


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must look like 768x512, not {text!r}")
    return int(match[1]), int(match[2])


def _runs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 10000, not {text!r}")
    return int(text)


def _codecs(args: argparse.Namespace) -> list[Codec]:
    import mlic_fast
    from mlic_fast.benchmark.models import trained_like_model
    from mlic_fast.codec import Codec
    from mlic_fast.engine import create_engine
    from mlic_fast.models import PRESETS

    if args.model in PRESETS and args.model != "demo":
        model: Any = trained_like_model(args.model)
    else:
        model = args.model
    first = mlic_fast.load(model, device=args.device, engine=args.engine)
    if args.against is None:
        return [first]
    # Not loaded again: packing a full-size model takes long.
    shared = first.model, first.packed, first.device
    second = Codec(*shared, create_engine(args.against, *shared))
    if second.engine == first.engine:
        raise UsageError(f"--against {args.against} is the engine that is timed already")
    return [first, second]


def _images(args: argparse.Namespace) -> Iterator[tuple[str, torch.Tensor]]:
    from mlic_fast.benchmark.pictures import synthetic_photograph
    from mlic_fast.images import load_image

    for path in args.image or []:
        yield path, load_image(path)
    for width, height in args.size or ([] if args.image else [(768, 512)]):
        yield "synthetic", synthetic_photograph(width, height)


def _table(result: dict[str, Any]) -> str:
    engines = result["engines"]
    lines = [
        f"\n{result['image']}, {result['width']}x{result['height']}, {result['runs']} runs; "
        "streams are correct; median milliseconds"
    ]
    sizes = (f"{name} {engine['bits_per_pixel']:.4f}" for name, engine in engines.items())
    lines.append(f"bits a pixel: {', '.join(sizes)}")
    for way in ("encode", "decode"):
        ratio = result.get("ratio")
        note = f"   {ratio[way]:.2f} times as fast" if ratio else ""
        lines.append(f"{way:<16}" + "".join(f"{name:>12}" for name in engines) + note)
        columns = [engine[way] for engine in engines.values()]
        for label, key in (("all", "median_ms"), ("p10", "p10_ms"), ("p90", "p90_ms")):
            lines.append(_row(label, [column[key] for column in columns]) + _floor(columns[0], key))
        for stage in columns[0]["stages"]:
            found = [column["stages"].get(stage, {}) for column in columns]
            values = [each.get("median_ms", 0.0) for each in found]
            lines.append(_row(stage, values) + _floor(found[0], "median_ms"))
    return "\n".join(lines)


def _row(label: str, values: list[float]) -> str:
    return f"  {label:<14}" + "".join(f"{value:>12.2f}" for value in values)


def _floor(times: dict[str, Any], key: str) -> str:
    """Beside a median: the first engine's floor."""
    if key != "median_ms" or "floor_ms" not in times:
        return ""
    return f"   floor {times['floor_ms']:.2f}, {times['times_floor']:.1f} times that"
