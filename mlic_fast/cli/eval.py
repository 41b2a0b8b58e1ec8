"""``mlic-fast eval``: rate, distortion and time on real files."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlic_fast.cli import UsageError, explain, print_error
from mlic_fast.cli.files import INPUTS_TEXT, check_outputs, find_inputs
from mlic_fast.cli.options import add_force_option
from mlic_fast.errors import MlicError

if TYPE_CHECKING:
    from torch import Tensor

    from mlic_fast.evaluation import Curve, Measurement
    from mlic_fast.evaluation.measuring import Setting
    from mlic_fast.evaluation.published import Points

_CURVE = (1, 20, 40, 60, 80, 100)
_METRICS = {"PSNR": "psnr", "MS-SSIM": "ms_ssim_db", "SSIMULACRA 2": "ssimulacra2"}
_WIDTH = 36
_HEADER = f"{'bpp':>8} {'PSNR':>7} {'MS-SSIM':>8} {'dB':>6} {'SSIMU2':>6} {'enc s':>8} {'dec s':>8}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.epilog = (
        "Files are compressed and decompressed in memory; nothing is written beside the images.\n\n"
        + INPUTS_TEXT.format(what="images", example=".png")
    )
    parser.add_argument("paths", nargs="+", metavar="INPUT", help="images, folders, patterns")
    parser.add_argument(
        "--model",
        nargs="+",
        default=["photo"],
        metavar="photo|FILE",
        help="several single-rate models form one curve (default: photo)",
    )
    parser.add_argument(
        "--quality", nargs="+", type=int, metavar="1..100", help="of a model with several rates"
    )
    parser.add_argument(
        "--against",
        type=_names,
        default=[],
        metavar="jpeg,webp,avif,jxl",
        help="BD-rate against these, of which jxl needs pillow-jxl-plugin",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--engine", default="auto", help="what computes (default: the best here)")
    parser.add_argument(
        "--ssimulacra2", action="store_true", help="measure SSIMULACRA 2 too, which takes longer"
    )
    add_force_option(parser)
    parser.add_argument("--json", metavar="FILE", help="write all measurements as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write all measurements as CSV")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw rate, distortion and time into a .png or .svg"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables and write the files."""
    check_outputs((args.json, args.csv, args.plot), args.paths, args.force)
    if args.plot:
        from mlic_fast.charts import check_chart

        check_chart(args.plot)

    from mlic_fast.evaluation import PillowCodec, measure_curves
    from mlic_fast.evaluation.pillow_codecs import CURVE_QUALITIES
    from mlic_fast.images import IMAGE_SUFFIXES

    jobs = find_inputs(args.paths, IMAGE_SUFFIXES)
    for job in jobs:
        if job.problem is not None:
            print_error(job.problem)
    files = [job.source for job in jobs if job.problem is None]
    if not files:
        raise UsageError("there is no image to measure")
    curves: list[tuple[str, list[Setting]]] = [("mlic_fast", _settings(args))]
    for name in args.against:
        codec = PillowCodec(name)
        curves.append((name, [(str(q), codec, q) for q in CURVE_QUALITIES[name]]))
    steps = sum(len(settings) for _, settings in curves)
    with _progress(steps * len(files)) as bar:
        images = _Images(files, lambda: bar.update(steps))
        measured = measure_curves(curves, images, bar.update, perceptual=args.ssimulacra2)
    if not images.read:
        raise UsageError("there is no image to measure")
    published = _published(images.read)
    rates = _bd_rates(measured, published)
    _print_images(measured[0])
    _print_means(measured)
    for other, values in rates.items():
        shown = ", ".join(f"{m} {v:+.2f} %" for m, v in values.items()) or "no common quality"
        print(f"BD-rate of mlic_fast against {other}: {shown}")
    _write(args, measured, rates)
    if args.plot:
        from mlic_fast.charts import save
        from mlic_fast.evaluation.rate_distortion_chart import draw

        save(draw(measured, rates, published, len(images.read)), args.plot)
    if failures := len(jobs) - len(images.read):
        print_error(f"{failures} of {len(jobs)} images were left out")
    return 1 if failures else 0


def _names(text: str) -> list[str]:
    return [name.strip().lower() for name in text.split(",") if name.strip()]


class _Images:
    """Name and pixels of the images that can be read, one after the other.

    Each that cannot be read gets a line.

    Attributes:
        read: the files of those that have been read.
    """

    def __init__(self, files: Sequence[Path], failed: Callable[[], object]) -> None:
        self._files, self._failed = files, failed
        self.read: list[Path] = []

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        from mlic_fast.images import load_image

        for file in self._files:
            try:
                image = load_image(file)
            except (MlicError, OSError) as error:
                print_error(explain(error))
                self._failed()
                continue
            self.read.append(file)
            yield file.name, image
            del image  # before the next one is read


def _settings(args: argparse.Namespace) -> list[Setting]:
    """Every point of our curve."""
    import mlic_fast

    codecs = {
        name: mlic_fast.load(name, device=args.device, engine=args.engine) for name in args.model
    }
    settings: list[Setting] = []
    for name, codec in codecs.items():
        qualities: Sequence[int | None] = args.quality or [None]
        if codec.model.config.rates and not args.quality and args.against:
            qualities = _CURVE
        for quality in qualities:
            label = Path(name).stem if quality is None else f"{Path(name).stem} quality {quality}"
            settings.append((label, codec, quality))
    return settings


def _progress(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="image", leave=False, disable=None)


def _published(files: list[Path]) -> dict[str, Points]:
    """Curves of the papers, if the images are those that they were measured on: all of Kodak."""
    from mlic_fast.evaluation.published import KODAK, KODAK_IMAGES

    names = {file.name for file in files}
    whole = {f"kodim{i:02}.png" for i in range(1, KODAK_IMAGES + 1)}
    return KODAK if names == whole else {}


def _bd_rates(curves: list[Curve], published: dict[str, Points]) -> dict[str, dict[str, float]]:
    """Against every other codec by what was measured, where the curves have a common range.

    By PSNR against the published curves too.
    """
    from mlic_fast.evaluation import EvaluationError, bd_rate

    rates: dict[str, dict[str, float]] = {}
    for other in curves[1:]:
        rates[other.name] = {}
        for label, metric in _METRICS.items():
            with suppress(EvaluationError):
                rates[other.name][label] = curves[0].bd_rate_against(other, metric)
    for name, points in published.items():
        rates[f"{name} as published"] = {}
        with suppress(EvaluationError):
            rates[f"{name} as published"]["PSNR"] = bd_rate(points, curves[0].rates("psnr"))
    return rates


def _print_images(curve: Curve) -> None:
    for point in curve.points:
        print(f"{point.setting}\n{'image':{_WIDTH}}{_HEADER}")
        for image in point.images:
            print(_line(image.image, image))
        print(_line("mean", point.mean) + "\n")


def _print_means(curves: list[Curve]) -> None:
    """One line a setting; with a single one the table above has said it."""
    if sum(len(curve.points) for curve in curves) == 1:
        return
    print(f"{'mean of all images':{_WIDTH}}{_HEADER}")
    for curve in curves:
        for point in curve.points:
            print(_line(f"{curve.name} {point.setting}", point.mean))


def _line(name: str, m: Measurement) -> str:
    similarity = "-" if m.ms_ssim is None else f"{m.ms_ssim:.4f}"
    decibel = "-" if m.ms_ssim_db is None else f"{m.ms_ssim_db:.2f}"
    perceptual = "-" if m.ssimulacra2 is None else f"{m.ssimulacra2:.2f}"
    return (
        f"{name:{_WIDTH}}{m.bits_per_pixel:8.4f} {m.psnr:7.3f} {similarity:>8} {decibel:>6} "
        f"{perceptual:>6} "
        f"{m.encode_seconds:8.3f} {m.decode_seconds:8.3f}"
    )


def _write(
    args: argparse.Namespace, curves: list[Curve], rates: dict[str, dict[str, float]]
) -> None:
    from mlic_fast.atomic_files import write_atomically

    rows = list(_rows(curves))
    if args.json:
        from mlic_fast.profiling.machine import describe_machine

        document = {
            "model": ", ".join(Path(name).stem for name in args.model),
            "images": len(curves[0].points[0].images),
            "machine": describe_machine(),
            "measurements": rows,
            "bd_rate_percent": rates,
        }
        # Equal images have an infinite PSNR, which JSON cannot say: null.
        text = json.dumps(_finite(document), indent=2, allow_nan=False)
        write_atomically(args.json, (text + "\n").encode())
    if args.csv:
        import io

        text_file = io.StringIO(newline="")
        writer = csv.DictWriter(text_file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(args.csv, text_file.getvalue().encode())


def _rows(curves: list[Curve]) -> Iterator[dict[str, Any]]:
    for curve in curves:
        for point in curve.points:
            for measurement in [*point.images, point.mean]:
                yield {
                    "codec": curve.name,
                    "setting": point.setting,
                    **dataclasses.asdict(measurement),
                }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value
