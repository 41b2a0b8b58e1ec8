"""A page that compares pictures of one size, for a browser: one file, which loads nothing else.

The first picture is the original; the others are measured against it.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlic_fast.comparison.svg_chart import Point, chart, escaped

if TYPE_CHECKING:
    from mlic_fast.images import Picture

NO_SIMILARITY = "MS-SSIM needs sides of 161 pixels, and pytorch-msssim (mlic_fast[train])."


@dataclass(frozen=True)
class Entry:
    """A picture with its name, the bytes of its file and its distortion.

    ``psnr`` in dB and ``ms_ssim`` are None for the original; MS-SSIM also where it cannot be had.
    """

    name: str
    size: int
    picture: Picture
    psnr: float | None = None
    ms_ssim: float | None = None

    @property
    def bits_per_pixel(self) -> float:
        """Of the whole file."""
        _, height, width = self.picture.pixels.shape
        return 8 * self.size / (height * width)


def page(entries: Sequence[Entry]) -> str:
    """The page, in UTF-8: of the original, then of at least one other picture."""
    _, height, width = entries[0].picture.pixels.shape
    similar = any(entry.ms_ssim is not None for entry in entries)
    parts = {
        "TITLE": escaped(f"{entries[0].name}, {width}x{height}"),
        "OPTIONS": "".join(
            f'<option value="{number}">{escaped(entry.name)}</option>'
            for number, entry in enumerate(entries)
        ),
        "ROWS": "\n".join(map(_row, entries)),
        "NOTE": "Measured against the first file." + ("" if similar else f" {NO_SIMILARITY}"),
        "CHART": _chart(entries[1:]),
        "WIDTH": str(width),
        "HEIGHT": str(height),
    }
    template = files(__name__).joinpath("page.html").read_text(encoding="utf-8")
    # In one go: nothing that a name holds is taken for a place to fill.
    return re.sub("@@([A-Z]+)@@", lambda match: parts[match[1]], template)


def _row(entry: Entry) -> str:
    name = escaped(entry.name)
    cells = (
        f'<img src="{_data_url(entry.picture)}" alt="{name}">',
        f"{entry.size:,}",
        f"{entry.bits_per_pixel:.4f}",
        "" if entry.psnr is None else "equal" if math.isinf(entry.psnr) else f"{entry.psnr:.3f}",
        "" if entry.ms_ssim is None else f"{entry.ms_ssim:.5f}",
    )
    return f"<tr><td>{name}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _chart(entries: Sequence[Entry]) -> str:
    """PSNR over rate, files of a suffix joined by a line; nothing if all are equal."""
    points = [
        Point(Path(entry.name).suffix.lower(), entry.name, entry.bits_per_pixel, entry.psnr)
        for entry in entries
        if entry.psnr is not None and math.isfinite(entry.psnr)
    ]
    if not points:
        return ""
    drawing = chart(points, "bits a pixel", "PSNR over RGB [dB]")
    return f"<h2>PSNR over rate</h2>\n{drawing}"


def _data_url(picture: Picture) -> str:
    """The picture as a PNG in a data: URL, in the colours of its profile."""
    from mlic_fast.images import as_array, image_bytes
    from mlic_fast.metadata import Metadata

    pixels = as_array(picture.pixels)
    if picture.alpha is not None:
        pixels = np.concatenate([pixels, as_array(picture.alpha)[None]])
    data = image_bytes(pixels, ".png", Metadata(icc_profile=picture.metadata.icc_profile))
    return "data:image/png;base64," + base64.b64encode(data).decode()
