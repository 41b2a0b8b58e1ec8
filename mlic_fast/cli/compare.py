"""``mlic-fast compare``: a page that shows pictures side by side."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlic_fast.bitstream import DECODED_PIXELS
from mlic_fast.cli import UsageError, print_note
from mlic_fast.cli.encode import SUFFIX
from mlic_fast.cli.files import check_outputs
from mlic_fast.cli.options import add_force_option, add_model_options, pixels
from mlic_fast.errors import MlicError

if TYPE_CHECKING:
    from mlic_fast.codec import Codec
    from mlic_fast.images import Picture


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

    from mlic_fast.atomic_files import write_atomically
    from mlic_fast.comparison import Entry, page
    from mlic_fast.images import load_picture

    read = _Reader(args)
    sources = [read(name) for name in names]
    pictures = [load_picture(source) for source in sources]
    if len({picture.metadata.icc_profile for picture in pictures}) > 1:  # then all as sRGB
        pictures = [load_picture(source, metadata=False) for source in sources]
    for note in (note for picture in pictures for note in picture.notes):
        print_note(note)
    original = pictures[0]
    entries = []
    for name, picture in zip(names, pictures, strict=True):
        if picture.pixels.shape != original.pixels.shape:
            sizes = ("{2}x{1}".format(*each.pixels.shape) for each in (picture, original))
            raise MlicError("{} has {} pixels, {} has {}".format(name, *sizes, args.original))
        distortion = () if picture is original else _distortion(original, picture)
        entries.append(Entry(name, Path(name).stat().st_size, picture, *distortion))
    text = page(entries)
    write_atomically(args.output, text.encode())
    print(f"{args.output}: {len(entries)} pictures, {len(text)} bytes")
    return 0


class _Reader:
    """What pictures are made of: paths, and what streams decode to.

    A codec is loaded for the first stream.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._codec: Codec | None = None

    def __call__(self, name: str) -> Any:
        import mlic_fast

        if Path(name).suffix.lower() != SUFFIX:
            return name
        args = self._args
        if self._codec is None:
            self._codec = mlic_fast.load(args.model, device=args.device, engine=args.engine)
        return self._codec.decompress(name, output="pil", max_pixels=args.max_pixels)


def _distortion(original: Picture, picture: Picture) -> tuple[float, float | None]:
    """PSNR, and MS-SSIM if it can be had: of the colours, not of transparency."""
    from mlic_fast.errors import EvaluationError
    from mlic_fast.evaluation.metrics import SMALLEST_SIDE, ms_ssim, psnr
    from mlic_fast.images import as_tensor

    before, image = as_tensor(original.pixels), as_tensor(picture.pixels)
    similarity = None
    if min(image.shape[1:]) >= SMALLEST_SIDE:
        with suppress(EvaluationError):  # the page says what is missing
            similarity = ms_ssim(before, image)
    return psnr(before, image), similarity
