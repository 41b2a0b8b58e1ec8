"""``mlic-fast profile``: where the time goes, and what to make faster next."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.epilog = (
        "Times every stage, network, pass and kernel: median of the runs. A kernel's floor is\n"
        "its products (each with its addition) over the measured arithmetic peak of this machine,\n"
        "or the bytes it reads and writes over the measured bandwidth, whichever is longer. What\n"
        "is furthest above its floor is what to make faster next.\n"
        "With --threads 1 times are those on the processor: other work matters little."
    )
    add_benchmark_options(parser)
    parser.add_argument(
        "--decode", action="store_true", help="take decoding apart (default: encoding)"
    )
    parser.add_argument(
        "--size",
        type=picture_size,
        default=(768, 512),
        metavar="WxH",
        help="of a synthetic photograph (default: 768x512)",
    )
    parser.add_argument("--image", metavar="FILE", help="image to use instead")
    parser.add_argument("--against", metavar="ENGINE", help="show another's stages, e.g. reference")
    parser.add_argument(
        "--runs", type=count, default=5, metavar="N", help="of each (default: %(default)s)"
    )
    parser.add_argument(
        "--top", type=count, default=12, metavar="N", help="kernels to list (default: %(default)s)"
    )
    parser.add_argument(
        "--layers", action="store_true", help="list all layers in the order of their calls"
    )
    parser.add_argument(
        "--before", metavar="FILE", help="an earlier --json: show which kernels got slower since"
    )
    parser.add_argument(
        "--trace", metavar="FILE", help="write a trace for chrome://tracing or ui.perfetto.dev"
    )
    add_force_option(parser)
    parser.add_argument("--json", metavar="FILE", help="write all rows of all tables")


def run(args: argparse.Namespace) -> int:
    """Profile, print the tables and write the files."""
    check_outputs((args.json, args.trace), [args.image] if args.image else (), args.force)
    before = json.loads(Path(args.before).read_text()) if args.before else None
    set_threads(args)

    from mlic_fast.atomic_files import write_atomically
    from mlic_fast.images import load_image
    from mlic_fast.profiling import breakdown
    from mlic_fast.profiling.machine import describe_machine
    from mlic_fast.profiling.pictures import synthetic_photograph
    from mlic_fast.profiling.side_by_side import check_arithmetic
    from mlic_fast.profiling.spans import processor_time
    from mlic_fast.profiling.trace_file import chrome_trace

    codecs = load_codecs(args)
    peaks = breakdown.measure_peaks(codecs[0])
    check_arithmetic(codecs)
    image = load_image(args.image) if args.image else synthetic_photograph(*args.size)
    way = "decode" if args.decode else "encode"
    profiles = breakdown.profile(codecs, way, image, args.runs, peaks)
    document = {
        "model": Path(args.model).stem,
        "machine": describe_machine(codecs[0].device),
        "way": way,
        "width": image.shape[2],
        "height": image.shape[1],
        "runs": args.runs,
        "clock": "processor" if processor_time(codecs[0].device) else "wall",
        "engine": codecs[0].engine,
        "baseline": codecs[1].engine if len(codecs) > 1 else None,
        **breakdown.describe(profiles, peaks),
        "device_kernels": breakdown.device_kernels(codecs[0], way, image),
    }
    _print(document, args.top, args.layers)
    if before is not None:
        _print_changes(before, document, args.top)
    if args.json:
        write_atomically(args.json, (json.dumps(document, indent=2) + "\n").encode())
    if args.trace:
        named = dict(zip((codec.engine for codec in codecs), profiles, strict=True))
        write_atomically(args.trace, json.dumps(chrome_trace(named)).encode())
    return 0


def _print(document: dict[str, Any], top: int, all_layers: bool) -> None:
    peaks = document["peaks"]
    baseline = document["baseline"]
    print(describe(document["machine"]))
    print(
        f"measured peaks: {peaks['matrix_products_per_second'] / 1e9:.0f} giga-products/s in g_a, "
        f"h_a, g_s; {peaks['integer_products_per_second'] / 1e9:.0f} in the entropy path; "
        f"{peaks['bytes_per_second'] / 1e9:.1f} GB/s"
        + "".join(
            f"; PyTorch's matrix product {name}: {peak / 1e9:.0f}"
            for name, peak in peaks["matrices"].items()
        )
    )
    print(
        f"\n{document['way']} of {document['width']}x{document['height']}, model "
        f"{document['model']}, engine {document['engine']}, median of {document['runs']} runs, "
        f"{document['clock']} time: "
        f"{document['total_ms']:.2f} ms ({document['unwatched_ms']:.2f} ms when not watched)"
        + _versus(document, baseline)
    )
    beside = f"{baseline:>12}{'ratio':>8}" if baseline else ""
    print("products, bytes and their shares of the measured peaks; the floor and what is above it")
    if any("waiting_ms" in row for row in document["layers"]):
        print(
            "of that, ms in which not all threads computed: waiting for each other, layout (moving "
            "data),\nserial (outside the threads)"
        )
    print(f"\n{'stage':<34}{'ms':>9}{'share':>7}{beside}")
    for row in document["stages"]:
        print(f"{row['stage']:<34}{row['ms']:>9.2f}{row['share']:>7.1%}{_beside(row)}")
    print(f"\n{'network':<34}{_COLUMNS}{beside}")
    for row in document["networks"]:
        print(f"{row['network']:<34}{_numbers(row)}{_beside(row)}")
    print(f"\n{'pass of the entropy path':<34}{'ms':>9}{'calls':>7}{beside}")
    for row in document["passes"]:
        print(f"{row['pass']:<34}{row['ms']:>9.2f}{row['calls']:>7}{_beside(row)}")
    print(f"\n{'kernels, furthest above floor first':<48}{_COLUMNS}")
    for row in document["kernels"][:top]:
        print(f"{_kernel_name(row):<48}{_numbers(row)}")
    layers, title = document["layers"][:top], "single layers, likewise"
    if all_layers:
        layers = sorted(document["layers"], key=lambda row: row["order"])
        title = "layers in the order of their calls"
    print(f"\n{title:<48}{_COLUMNS}")
    for row in layers:
        print(f"{row['operation']} {row['layer']}"[:47].ljust(48) + _numbers(row))
    launched = document["device_kernels"]
    if launched:
        print(f"\n{sum(row['launches'] for row in launched)} launches on the device; the longest")
    for row in launched[:top]:
        print(f"{row['kernel'][:64]:<66}{row['launches']:>7}{row['ms']:>9.3f} ms")
    print(f"\n{_advice(document)}")


def _print_changes(before: dict[str, Any], after: dict[str, Any], top: int) -> None:
    """Kernels that got slower, the most milliseconds first."""
    earlier = {_kernel_name(row): row["ms"] for row in before["kernels"]}
    rows = [(_kernel_name(row), row["ms"]) for row in after["kernels"]]
    slower = sorted(
        ((now - earlier[name], name, now) for name, now in rows if now > earlier.get(name, now)),
        reverse=True,
    )
    print(f"\n{'slower than before':<48}{'ms':>9}{'before':>9}{'ratio':>7}")
    for _, name, now in slower[:top]:
        print(f"{name:<48}{now:>9.2f}{earlier[name]:>9.2f}{now / max(earlier[name], 1e-9):>7.2f}")


_COLUMNS = (
    f"{'ms':>9}{'share':>7}{'calls':>7}{'MB':>9}{'GB/s':>7}{'peak':>6}"
    f"{'Gprod':>8}{'/s':>7}{'peak':>6}{'floor':>8}{'above':>8}{'waiting':>9}{'layout':>8}{'serial':>8}"
)


def _numbers(row: dict[str, Any]) -> str:
    return (
        f"{row['ms']:>9.2f}{row['share']:>7.1%}{row['calls']:>7}{row['bytes'] / 1e6:>9.1f}"
        f"{row['gigabytes_per_second']:>7.1f}{row['bandwidth_share']:>6.0%}"
        f"{row['products'] / 1e9:>8.2f}{row['giga_products_per_second']:>7.0f}"
        f"{row['arithmetic_share']:>6.0%}{row['floor_ms']:>8.2f}{row['above_floor_ms']:>8.2f}"
        + _lost(row)
    )


def _lost(row: dict[str, Any]) -> str:
    if "waiting_ms" not in row:
        return " " * 25
    return f"{row['waiting_ms']:>9.2f}{row['layout_ms']:>8.2f}{row['serial_ms']:>8.2f}"


def _beside(row: dict[str, Any]) -> str:
    return f"{row['baseline_ms']:>12.2f}{row['ratio']:>8.2f}" if "ratio" in row else ""


def _versus(document: dict[str, Any], baseline: str | None) -> str:
    if baseline is None:
        return ""
    return f", {baseline} {document['baseline_ms']:.2f} ms, {document['ratio']:.2f} times as long"


def _kernel_name(row: dict[str, Any]) -> str:
    return f"{row['network']}: {row['operation']}" if row["operation"] else row["network"]


def _advice(document: dict[str, Any]) -> str:
    """What is furthest above its floor, and its slowest layer."""
    first = document["kernels"][0]
    text = (
        f"Next: {_kernel_name(first)}. It takes {first['ms']:.2f} ms in {first['calls']} calls, "
        f"{first['above_floor_ms']:.2f} ms above its floor: "
        f"{first['above_floor_ms'] / document['total_ms']:.0%} of the whole."
    )
    layers = [
        row
        for row in document["layers"]
        if row["operation"] == first["operation"] and row["network"] == first["network"]
    ]
    if layers:
        worst = layers[0]
        text += (
            f"\nIts furthest layer: {worst['layer']}, {worst['ms']:.2f} ms, at "
            f"{worst['arithmetic_share']:.0%} of the arithmetic peak and "
            f"{worst['bandwidth_share']:.0%} of the bandwidth."
        )
    return text
