"""Pictures of photographs compressed to the same size by JPEG, WebP, AVIF and the photograph model,
and figures for what the eye looks for first: shifted colours and seams.

    python benchmarks/compare_pictures.py PHOTOGRAPHS.. --output sheets --json artefacts.json

A sheet shows, for each quality of the model, the part of a photograph that has the most detail, as
each codec leaves it; the other codecs' qualities are those whose files come nearest in size.

The figures are means over the photographs: of the error of each channel (in levels of 0 .. 255),
and of the energy of the error's steps between pixels across the borders of blocks of 8, 16 and 64
pixels, over that of all other steps: 1 where there are no seams.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import mlic_fast
from mlic_fast.evaluation import PillowCodec
from mlic_fast.evaluation.metrics import psnr
from mlic_fast.images import load_image, to_array

OTHERS = ("jpeg", "webp", "avif")
BLOCKS = (8, 16, 64)
MAGNIFICATION = 2
MARGIN = 8
CAPTION = 40


def same_size(compress: Callable[[int], bytes], size: int) -> bytes:
    """The file of ``compress(quality)``, quality 1 .. 100, whose size is nearest to ``size``."""
    low, high = 1, 100
    while low < high:
        middle = (low + high) // 2
        if len(compress(middle)) < size:
            low = middle + 1
        else:
            high = middle
    files = [compress(quality) for quality in {max(low - 1, 1), low}]
    return min(files, key=lambda data: abs(len(data) - size))


def most_detail(image: Tensor, side: int) -> tuple[int, int]:
    """Top and left of the square part with the largest gradients, on a grid of half its side."""
    grey = image.float().mean(0)
    energy = grey.diff(dim=0)[:, :-1].abs() + grey.diff(dim=1)[:-1].abs()
    sums = torch.nn.functional.avg_pool2d(energy[None], side - 1, side // 2)[0]
    top, left = divmod(int(sums.argmax()), sums.shape[1])
    return top * (side // 2), left * (side // 2)


def colour_error(image: Tensor, decoded: Tensor) -> list[float]:
    """Mean error of red, green and blue."""
    return [float(value) for value in (decoded.float() - image.float()).mean((1, 2))]


def seams(image: Tensor, decoded: Tensor, block: int) -> float:
    """Energy of the error's steps across borders of blocks, over that of all other steps."""
    error = decoded.double() - image.double()
    across, elsewhere = [], []
    for steps in (error.diff(dim=2), error.diff(dim=1).transpose(1, 2)):
        energy = steps.square().mean((0, 1))
        border = torch.arange(1, len(energy) + 1) % block == 0
        across.append(energy[border])
        elsewhere.append(energy[~border])
    return float(torch.cat(across).mean() / torch.cat(elsewhere).mean())


def sheet(rows: list[list[tuple[str, Tensor]]], top: int, left: int, side: int) -> Image.Image:
    """Rows of captions and the same part of each image."""
    cell = side * MAGNIFICATION
    size = (MARGIN + len(rows[0]) * (cell + MARGIN), MARGIN + len(rows) * (cell + CAPTION))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=16)
    for i, row in enumerate(rows):
        for j, (caption, image) in enumerate(row):
            x, y = MARGIN + j * (cell + MARGIN), MARGIN + i * (cell + CAPTION)
            draw.text((x, y + CAPTION / 2), caption, fill="black", font=font, anchor="lm")
            part = to_array(image[:, top : top + side, left : left + side])
            scaled = Image.fromarray(part).resize((cell, cell), Image.Resampling.NEAREST)
            picture.paste(scaled, (x, y + CAPTION - MARGIN))
    return picture


def compare(codec: mlic_fast.Codec, image: Tensor, quality: int) -> dict[str, tuple[int, Tensor]]:
    """Bytes and decoded image of every codec, the model's quality deciding the size."""
    stream = codec.compress(image, quality=quality)
    assert isinstance(stream, bytes)  # a list only for a batch
    results = {}
    for name in OTHERS:
        other = PillowCodec(name)
        data = same_size(lambda q, other=other: other.compress(image, q), len(stream))  # type: ignore[misc]
        results[name] = len(data), other.decompress(data)
    results["mlic_fast"] = len(stream), codec.decompress(stream).cpu()
    return results


def artefacts(image: Tensor, decoded: Tensor) -> dict[str, Any]:
    return {
        "colour_error": colour_error(image, decoded),
        "seams": {str(block): seams(image, decoded, block) for block in BLOCKS},
    }


def mean(values: list[Any]) -> Any:
    """Mean of numbers, or of equal structures of them."""
    if isinstance(values[0], dict):
        return {key: mean([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], list):
        return [mean(list(column)) for column in zip(*values, strict=True)]
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("photographs", nargs="+", type=Path, metavar="PHOTOGRAPH")
    parser.add_argument("--model", default="photo")
    parser.add_argument("--quality", nargs="+", type=int, default=[10, 50, 100])
    parser.add_argument("--side", type=int, default=192, help="of the part shown, in pixels")
    parser.add_argument("--output", type=Path, help="folder for the sheets")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args()

    codec = mlic_fast.load(args.model)
    found: dict[int, dict[str, list[Any]]] = {}
    for path in args.photographs:
        image = load_image(path)
        pixels = image[0].numel()
        rows = []
        for quality in args.quality:
            row = []
            for name, (size, decoded) in compare(codec, image, quality).items():
                found.setdefault(quality, {}).setdefault(name, []).append(artefacts(image, decoded))
                caption = f"{name}: {8 * size / pixels:.3f} bpp, {psnr(image, decoded):.2f} dB"
                row.append((caption, decoded))
            rows.append([*row, ("original", image)])
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)
            side = min(args.side, *image.shape[1:])
            sheet(rows, *most_detail(image, side), side).save(
                args.output / f"{path.stem}.webp", quality=95
            )
    figures = {
        str(quality): {name: mean(values) for name, values in codecs.items()}
        for quality, codecs in found.items()
    }
    for quality, codecs in figures.items():
        for name, values in codecs.items():
            colours = " ".join(f"{value:+.2f}" for value in values["colour_error"])
            ratios = " ".join(f"{block}: {value:.3f}" for block, value in values["seams"].items())
            print(f"quality {quality:>3}  {name:<10} colour {colours}   seams {ratios}")
    if args.json:
        args.json.write_text(json.dumps({"model_id": codec.model_id.hex(), "means": figures}))


if __name__ == "__main__":
    main()
