"""Compress photographs with the photograph model and show what became of them.

    python examples/demo.py [--quality 60] [--photo astronaut|chelsea|coffee] [--output demo]

The folder receives the stream, the decoded photograph, and a picture of the original and the
decoded photograph beside each other, with a part of both magnified below.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage.data
from PIL import Image, ImageDraw, ImageFont

import mlic_fast

PHOTOS = ("astronaut", "chelsea", "coffee")
#: Centre of the magnified part, as a fraction of width and height: the eyes, an eye, the rim.
CENTRES = {"astronaut": (0.44, 0.22), "chelsea": (0.42, 0.42), "coffee": (0.50, 0.35)}
MAGNIFICATION = 3
MARGIN = 12
CAPTION = 28

Pixels = npt.NDArray[np.uint8]


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio over RGB, in dB."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def magnified(pixels: Pixels, centre: tuple[float, float]) -> Image.Image:
    """A part of the photograph, about as wide as all of it once magnified."""
    height, width = pixels.shape[:2]
    part_width, part_height = width // MAGNIFICATION, height // MAGNIFICATION // 2
    left = int(np.clip(centre[0] * width - part_width / 2, 0, width - part_width))
    top = int(np.clip(centre[1] * height - part_height / 2, 0, height - part_height))
    part = Image.fromarray(pixels[top : top + part_height, left : left + part_width])
    size = (part_width * MAGNIFICATION, part_height * MAGNIFICATION)
    return part.resize(size, Image.Resampling.NEAREST)


def beside_each_other(
    columns: list[tuple[str, Pixels]], centre: tuple[float, float]
) -> Image.Image:
    """A column for each caption and photograph: caption, photograph, magnified part."""
    height, width = columns[0][1].shape[:2]
    parts = [magnified(pixels, centre) for _, pixels in columns]
    total = (
        MARGIN + len(columns) * (width + MARGIN),
        CAPTION + height + MARGIN + parts[0].height + MARGIN,
    )
    sheet = Image.new("RGB", total, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for i, ((caption, pixels), part) in enumerate(zip(columns, parts, strict=True)):
        left = MARGIN + i * (width + MARGIN)
        draw.text((left, CAPTION / 2), caption, fill="black", font=font, anchor="lm")
        sheet.paste(Image.fromarray(pixels), (left, CAPTION))
        sheet.paste(part, (left, CAPTION + height + MARGIN))
    return sheet


def demonstrate(codec: mlic_fast.Codec, name: str, quality: int | None, folder: Path) -> None:
    """Encode and decode one photograph, write the results and print one line."""
    original: Pixels = getattr(skimage.data, name)()
    height, width = original.shape[:2]

    start = time.perf_counter()
    stream = codec.compress(original, quality=quality)
    encoded = time.perf_counter()
    decoded = codec.decompress(stream, output="numpy")
    end = time.perf_counter()
    assert isinstance(stream, bytes)  # a list only for a batch

    bits = 8 * len(stream) / (height * width)
    ratio = original.nbytes / len(stream)
    (folder / f"{name}.mlic").write_bytes(stream)
    Image.fromarray(decoded).save(folder / f"{name}.decoded.png")
    columns = [
        (f"original, {original.nbytes:,} bytes as RGB", original),
        (f"decoded from {len(stream):,} bytes, {bits:.3f} bits a pixel", decoded),
    ]
    beside_each_other(columns, CENTRES[name]).save(folder / f"{name}.png")
    print(
        f"{name:<10} {f'{width}x{height}':>9} {len(stream):8,} {ratio:6.1f}x {bits:6.3f} "
        f"{psnr(original, decoded):6.2f} {encoded - start:8.2f} {end - encoded:8.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compress photographs with the photograph model.")
    parser.add_argument("--quality", type=int, help="1 (smallest) .. 100 (best)")
    parser.add_argument("--photo", choices=PHOTOS, help="only this one")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the results")
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    codec = mlic_fast.load("photo")
    print(f"{codec}, loaded in {time.perf_counter() - start:.2f} s")
    print(
        f"{'photograph':<10} {'size':>9} {'bytes':>8} {'ratio':>7} {'bpp':>6} {'PSNR':>6} "
        f"{'encode s':>8} {'decode s':>8}"
    )
    for name in [args.photo] if args.photo else PHOTOS:
        demonstrate(codec, name, args.quality, args.output)
    print(f"Look at the pictures: {args.output}/*.png; the streams lie beside them.")


if __name__ == "__main__":
    main()
