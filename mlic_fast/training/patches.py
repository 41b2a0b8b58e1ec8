"""Training patches: every photograph is decoded once, a step only copies pixels.

They are drawn on the device of the network, by torch's generator. The trainer seeds it with (seed,
step, rank), so a run resumes at any step without a stored position.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mlic_fast.errors import UnsupportedImageError
from mlic_fast.images import IMAGE_SUFFIXES, load_image
from mlic_fast.training.run_config import TrainingError

# Photographs are reduced by 2/3: finer detail, and fewer traces of the codec they came through.
REDUCTION = (3, 2)

# Part of a batch that is graphics, and how much each of them counts beside a photograph.
GRAPHICS_PART, GRAPHICS_WEIGHT = 0.1, 0.25


def list_images(folder: str | Path) -> list[Path]:
    """The image files below a folder in a fixed order; :class:`TrainingError` if there are none."""
    root = Path(folder)
    if not root.is_dir():
        raise TrainingError(f"{root} is not a folder: give a folder of images")
    files = sorted(
        path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not files:
        raise TrainingError(f"{root} holds no images: give a folder of photographs")
    return files


@dataclass(frozen=True)
class ImageCache:
    """Decoded images, one after the other in a single file that all processes map.

    Attributes:
        pixels: uint8, flat; image i is H x W x 3 (rows, columns, RGB) from ``offsets[i]``.
        sizes: (height, width) of each image.
        offsets: first byte of each image.
    """

    pixels: NDArray[np.uint8]
    sizes: list[tuple[int, int]]
    offsets: list[int]

    @classmethod
    def build(cls, folder: str | Path, cache: str | Path) -> ImageCache:
        """Maps the images below ``folder``, decoded into ``cache`` unless they lie there already.

        Files that cannot be read as images are left out with one warning.
        """
        files = list_images(folder)
        stats = [(str(path), path.stat()) for path in files]
        key = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        cache = Path(cache)
        index = cache / "images.json"
        if not index.is_file() or json.loads(index.read_text())["key"] != key:
            _decode(files, key, cache)
        return cls.open(cache)

    @classmethod
    def open(cls, cache: str | Path) -> ImageCache:
        """Maps a cache made by :meth:`build`."""
        sizes = [(h, w) for h, w in json.loads((Path(cache) / "images.json").read_text())["sizes"]]
        ends = np.cumsum([h * w * 3 for h, w in sizes]).tolist()
        pixels = np.memmap(Path(cache) / "images.rgb", dtype=np.uint8, mode="c")
        return cls(pixels, sizes, [0, *ends[:-1]])

    @classmethod
    def of(cls, pictures: Sequence[NDArray[np.uint8]]) -> ImageCache:
        """Holds pictures H x W x 3 in memory."""
        sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
        ends = np.cumsum([picture.size for picture in pictures]).tolist()
        return cls(np.concatenate([p.ravel() for p in pictures]), sizes, [0, *ends[:-1]])

    def image(self, i: int) -> NDArray[np.uint8]:
        """A view of image ``i``, H x W x 3."""
        height, width = self.sizes[i]
        start = self.offsets[i]
        return self.pixels[start : start + height * width * 3].reshape(height, width, 3)


def _decode(files: list[Path], key: list[list[object]], cache: Path) -> None:
    from tqdm import tqdm

    cache.mkdir(parents=True, exist_ok=True)
    sizes: list[tuple[int, int]] = []
    refused: list[str] = []
    part, index = cache / "images.rgb.part", cache / "images.json.part"
    # A few threads at a time keep few decoded images in memory; Pillow decodes without the
    # interpreter's lock.
    with part.open("wb") as out, ThreadPoolExecutor(4) as pool:
        progress = tqdm(total=len(files), desc="decoding", unit="image", disable=None)
        for first in range(0, len(files), 16):
            for pixels in pool.map(_load, files[first : first + 16]):
                if isinstance(pixels, str):
                    refused.append(pixels)
                else:
                    sizes.append((pixels.shape[0], pixels.shape[1]))
                    out.write(pixels.tobytes())
                progress.update()
        progress.close()
    if refused:
        _warn(f"left out {len(refused)} unusable files, the first: {refused[0]}")
    if not sizes:
        raise TrainingError("none of the images can be read: give a folder of photographs")
    index.write_text(json.dumps({"key": key, "sizes": sizes}))
    (cache / "images.json").unlink(missing_ok=True)  # it must never stand beside other pixels
    os.replace(part, cache / "images.rgb")
    os.replace(index, cache / "images.json")


def _load(path: Path) -> NDArray[np.uint8] | str:
    """The pixels of a file, H x W x 3, or why there are none."""
    try:
        pixels: NDArray[np.uint8] = load_image(path).permute(1, 2, 0).contiguous().numpy()
    except (UnsupportedImageError, OSError) as error:
        return f"{path}: {error}"
    return pixels


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


class Pool:
    """Decoded images on a device.

    Attributes:
        pixels: uint8 [n, 3], of all images one after the other.
        sizes: (height, width) of each image, int64 [images, 2], on the host.
        offsets: first pixel of each image, int64 [images], on the host.
    """

    def __init__(self, images: ImageCache, device: torch.device) -> None:
        self.pixels = torch.from_numpy(images.pixels).view(-1, 3).to(device)
        self.sizes = torch.tensor(images.sizes)
        self.offsets = torch.tensor(images.offsets) // 3

    def count(self, side: int) -> int:
        """How many images hold a square of this side."""
        return int((self.sizes.amin(1) >= side).sum())

    def check(self, side: int, warn: bool) -> None:
        """Raises :class:`TrainingError` if there are no squares of this side to be drawn."""
        count, small = self.count(side), len(self.sizes) - self.count(side)
        if not count:
            raise TrainingError(
                f"every image is smaller than the patch of {side} pixels: lower --patch-size"
            )
        if small and warn:
            _warn(f"left out {small} images smaller than the patch of {side} pixels")


class Cut(NamedTuple):
    """What to cut out of a pool: ``number`` squares of a side."""

    pool: Pool
    side: int
    number: int


class Squares:
    """Draws squares, of several pools and sides in one go.

    An image is drawn in proportion to its area, the position uniformly, and one of the eight
    symmetries of the square uniformly. Random numbers come from torch's generator of the device.
    """

    def __init__(self, cuts: Sequence[Cut]) -> None:
        self._cuts = cuts
        device = cuts[0].pool.pixels.device
        usable = [cut.pool.sizes.amin(1) >= cut.side for cut in cuts]
        sizes = [cut.pool.sizes[which] for cut, which in zip(cuts, usable, strict=True)]
        offsets = [cut.pool.offsets[which] for cut, which in zip(cuts, usable, strict=True)]
        areas = [each.prod(1).double().cumsum(0) for each in sizes]
        # The shares of the images of cut i end at i + 1.
        self._shares = torch.cat([i + area / area[-1] for i, area in enumerate(areas)]).to(device)
        self._sizes, self._offsets = torch.cat(sizes).to(device), torch.cat(offsets).to(device)
        counts = torch.tensor([cut.number for cut in cuts])
        each = torch.arange(len(cuts)).repeat_interleave(counts)
        self._first = each.double().to(device)
        self._most = torch.tensor([len(size) for size in sizes]).cumsum(0)[each].to(device) - 1
        self._last = torch.tensor([cut.side - 1 for cut in cuts])[each][:, None].to(device)
        self._grids = [torch.arange(cut.side, device=device) for cut in cuts]
        self._bits = torch.arange(3, device=device)

    def draw(self) -> list[Tensor]:
        """The squares of each cut: uint8 [count, 3, side, side], channels last."""
        which, *place, turn = torch.rand(4, len(self._first), device=self._first.device)
        i = torch.searchsorted(self._shares, which + self._first, right=True).minimum(self._most)
        most = self._sizes[i] - self._last
        corner = (torch.stack(place, 1) * most).long().minimum(most - 1)
        # The steps of a symmetry in memory: down and to the right, back where it mirrors.
        width = self._sizes[i, 1]
        steps = torch.stack([width, torch.ones_like(width)], 1)
        symmetry = ((turn * 8).long()[:, None] >> self._bits) & 1
        mirrored, turned = symmetry[:, :2], symmetry[:, 2:].bool()
        firsts = (torch.addcmul(corner, mirrored, self._last) * steps).sum(1) + self._offsets[i]
        steps = steps * (1 - 2 * mirrored)
        steps = torch.where(turned, steps.flip(1), steps)

        squares, begin = [], 0
        for (pool, side, number), grid in zip(self._cuts, self._grids, strict=True):
            part = slice(begin, begin := begin + number)
            first, down, right = firsts[part, None, None], *steps[part, :, None, None].unbind(1)
            places = torch.addcmul(torch.addcmul(first, grid[:, None], down), grid, right)
            pixels = pool.pixels.index_select(0, places.flatten())
            squares.append(pixels.view(number, side, side, 3).permute(0, 3, 1, 2))
        return squares


class Patches:
    """The patches of a step: photographs as they are, reduced ones, and graphics.

    Attributes:
        shares: how much the loss of each patch counts, [batch].
    """

    def __init__(
        self, photographs: Pool, graphics: Pool | None, side: int, batch: int, reduced: float
    ) -> None:
        large = side * REDUCTION[0] // REDUCTION[1]
        drawn = round(batch * GRAPHICS_PART) if graphics is not None else 0
        reductions = round(batch * reduced) if photographs.count(large) else 0
        self._side = side
        cuts = [
            Cut(photographs, side, batch - reductions - drawn),
            Cut(photographs, large, reductions),
        ]
        if graphics is not None:
            cuts.append(Cut(graphics, side, drawn))
        self._squares = Squares([cut for cut in cuts if cut.number])
        self.shares = torch.ones(batch)
        self.shares[batch - drawn :] = GRAPHICS_WEIGHT
        self.shares = self.shares.to(photographs.pixels.device)

    def draw(self) -> Tensor:
        """float32 [batch, 3, side, side] in 0..1, channels last."""
        parts = []
        for squares in self._squares.draw():
            part = squares.float()
            if part.shape[2] != self._side:
                size = (self._side, self._side)
                part = F.interpolate(part, size, mode="bicubic", antialias=True).clamp(0, 255)
            parts.append(part)
        return (torch.cat(parts) / 255).contiguous(memory_format=torch.channels_last)
