"""``mlic-fast bench``: how fast, side by side with another engine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlic_fast.cli.files import check_outputs
from mlic_fast.cli.options import (
    add_benchmark_options,
    add_force_option,
    count,
    describe,
    load_codecs,
    picture_size,
    set_threads,
)

if TYPE_CHECKING:
    import torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.epilog = (
        "Checks that every stream decodes to what was encoded, and that the latents are those of\n"
        "the specification, bit for bit; then times the whole of encoding (pixels to bytes) and\n"
        "decoding in memory, the engines taking turns, and every stage.\n"
        "With --threads 1 times are those on the processor: what one thread would take alone,\n"
        "however busy the machine is.\n"
        "A preset is a full-size model of seeded weights, with latents like a trained model's at\n"
        "roughly 0.3 bit a pixel. The floor is the number of operations over the measured peak of\n"
        "this machine."
    )
    add_benchmark_options(parser)
    parser.add_argument(
        "--size",
        action="append",
        type=picture_size,
        metavar="WxH",
        help="of a synthetic photograph; may be given several times (default: 768x512)",
    )
    parser.add_argument("--image", action="append", metavar="FILE", help="image to time instead")
    parser.add_argument("--against", metavar="ENGINE", help="e.g. reference")
    parser.add_argument(
        "--runs", type=count, default=5, metavar="N", help="of each (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=count, default=1, metavar="B", help="images a call (default: %(default)s)"
    )
    add_force_option(parser)
    parser.add_argument("--json", metavar="FILE", help="write all numbers, and the machine's name")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw stages and latency into a .png or .svg"
    )


def run(args: argparse.Namespace) -> int:
    """Time every image."""
    check_outputs((args.json, args.plot), args.image or (), args.force)
    if args.plot:
        from mlic_fast.charts import check_chart

        check_chart(args.plot)

    from mlic_fast.profiling.machine import describe_machine
    from mlic_fast.profiling.side_by_side import check_arithmetic, compare

    set_threads(args)
    codecs = load_codecs(args)
    check_arithmetic(codecs)
    machine = describe_machine(codecs[0].device)
    print(f"model {args.model}  {codecs[0].model_id.hex()}")
    print(describe(machine))
    results = []
    for name, images in _images(args):
        result = {"image": name, **compare(codecs, images, args.runs)}
        results.append(result)
        print(_table(result), flush=True)
    document = {
        "model": Path(args.model).stem,
        "model_id": codecs[0].model_id.hex(),
        "machine": machine,
        "results": results,
    }
    if args.json:
        from mlic_fast.atomic_files import write_atomically

        write_atomically(args.json, (json.dumps(document, indent=2) + "\n").encode())
    if args.plot:
        from mlic_fast.charts import save
        from mlic_fast.profiling.bench_charts import draw

        save(draw(document), args.plot)
    return 0


def _images(args: argparse.Namespace) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and batch, uint8 [B, 3, H, W]: copies of a file, or synthetic photographs."""
    import torch

    from mlic_fast.images import load_image
    from mlic_fast.profiling.pictures import synthetic_photograph

    for path in args.image or []:
        yield Path(path).name, torch.stack([load_image(path)] * args.batch)
    for width, height in args.size or ([] if args.image else [(768, 512)]):
        pictures = [synthetic_photograph(width, height, seed) for seed in range(args.batch)]
        yield "synthetic", torch.stack(pictures)


def _table(result: dict[str, Any]) -> str:
    engines = result["engines"]
    batch = f", batch of {result['batch']}" if result["batch"] > 1 else ""
    lines = [
        f"\n{result['image']}, {result['width']}x{result['height']}{batch}, "
        f"{result['runs']} runs; streams are correct; "
        f"median milliseconds, {result['clock']} time"
    ]
    sizes = (f"{name} {engine['bits_per_pixel']:.4f}" for name, engine in engines.items())
    lines.append(f"bits a pixel: {', '.join(sizes)}")
    for way in ("encode", "decode"):
        lines.append(f"{way:<16}" + "".join(f"{name:>12}" for name in engines))
        lines[-1] += _note(result, way)
        columns = [engine[way] for engine in engines.values()]
        for label, key in (("all", "median_ms"), ("p10", "p10_ms"), ("p90", "p90_ms")):
            lines.append(_row(label, [column[key] for column in columns]) + _floor(columns[0], key))
        for stage in columns[0]["stages"]:
            found = [column["stages"].get(stage, {}) for column in columns]
            values = [each.get("median_ms", 0.0) for each in found]
            lines.append(_row(stage, values) + _floor(found[0], "median_ms"))
        if all(engine["device"] == "cpu" for engine in engines.values()):
            other = "wall" if result["clock"] == "processor" else "processor"
            lines.append(_row(f"{other} time", [column[f"{other}_ms"] for column in columns]))
        for label, key in (("images/s", "images"), ("megapixels/s", "megapixels")):
            lines.append(_row(label, [column[f"{key}_per_second"] for column in columns]))
        peaks = [column["peak_memory_bytes"] for column in columns]
        if None not in peaks:
            lines.append(_row("peak memory MB", [peak / 1e6 for peak in peaks]))
    return "\n".join(lines)


def _note(result: dict[str, Any], way: str) -> str:
    if "ratio" not in result:
        return ""
    ratio = result["ratio"][way]
    return (
        f"   {ratio['median']:.2f} times as fast "
        f"(p10 to p90 of the runs: {ratio['p10']:.2f} to {ratio['p90']:.2f})"
    )


def _row(label: str, values: list[float]) -> str:
    return f"  {label:<14}" + "".join(f"{value:>12.2f}" for value in values)


def _floor(times: dict[str, Any], key: str) -> str:
    """Beside a median: the first engine's floor."""
    if key != "median_ms" or "floor_ms" not in times:
        return ""
    return f"   floor {times['floor_ms']:.2f}, {times['times_floor']:.1f} times that"
