"""``mlic-fast compare``: a page that shows pictures side by side."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlic_fast.bitstream import DECODED_PIXELS
from mlic_fast.cli import UsageError
from mlic_fast.cli.encode import SUFFIX
from mlic_fast.cli.files import check_outputs
from mlic_fast.cli.options import add_force_option, add_model_options, pixels
from mlic_fast.errors import MlicError

if TYPE_CHECKING:
    from torch import Tensor

    from mlic_fast.codec import Codec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.epilog = (
        "The page is one file, to be opened in any browser: two pictures with a slider between,\n"
        "zoom and difference; size, PSNR and MS-SSIM of each against the first; PSNR over rate.\n"
        "All pictures must have the size of the first."
    )
    parser.add_argument("original", metavar="ORIGINAL", help="image that others are compared with")
    parser.add_argument("files", nargs="+", metavar="FILE", help="images and .mlic files")
    parser.add_argument(
        "-o",
        "--output",
        default="compare.html",
        metavar="FILE",
        help="the page (default: %(default)s)",
    )
    add_force_option(parser)
    parser.add_argument(
        "--max-pixels",
        type=pixels,
        default=DECODED_PIXELS,
        metavar="N",
        help="refuse larger .mlic files before they are decoded (default: %(default)s)",
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page."""
    names = [args.original, *args.files]
    check_outputs([args.output], names, args.force)
    if Path(args.output).suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{args.output} is to be a page: give a name that ends in .html")

    from mlic_fast.comparison import Entry, page
    from mlic_fast.images import write_atomically

    read = _Reader(args)
    original = read(args.original)
    entries = [Entry(args.original, Path(args.original).stat().st_size, original)]
    for name in args.files:
        image = read(name)
        if image.shape != original.shape:
            sizes = (f"{each.shape[2]}x{each.shape[1]}" for each in (image, original))
            raise MlicError("{} has {} pixels, {} has {}".format(name, *sizes, args.original))
        entries.append(Entry(name, Path(name).stat().st_size, image, *_distortion(original, image)))
    text = page(entries)
    write_atomically(args.output, text.encode())
    print(f"{args.output}: {len(entries)} pictures, {len(text)} bytes")
    return 0


class _Reader:
    """Pictures of files; a codec is loaded for the first stream."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._codec: Codec | None = None

    def __call__(self, name: str) -> Tensor:
        import mlic_fast
        from mlic_fast.images import load_image

        if Path(name).suffix.lower() != SUFFIX:
            return load_image(name)
        args = self._args
        if self._codec is None:
            self._codec = mlic_fast.load(args.model, device=args.device, engine=args.engine)
        image: Tensor = self._codec.decompress(name, max_pixels=args.max_pixels).cpu()
        return image


def _distortion(original: Tensor, image: Tensor) -> tuple[float, float | None]:
    """PSNR, and MS-SSIM if it can be had."""
    from mlic_fast.evaluation.errors import EvaluationError
    from mlic_fast.evaluation.metrics import SMALLEST_SIDE, ms_ssim, psnr

    similarity = None
    if min(image.shape[1:]) >= SMALLEST_SIDE:
        with suppress(EvaluationError):  # the page says what is missing
            similarity = ms_ssim(original, image)
    return psnr(original, image), similarity
