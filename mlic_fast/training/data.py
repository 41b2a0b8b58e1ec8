"""Training patches: every photograph is decoded once, a step only copies pixels.

Batches are a pure function of (seed, step, rank), so a run resumes at any step without a stored
sampler position.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mlic_fast.errors import UnsupportedImageError
from mlic_fast.images import IMAGE_SUFFIXES, load_image
from mlic_fast.training.config import TrainingError


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
        pixels = np.memmap(Path(cache) / "images.rgb", dtype=np.uint8, mode="r")
        return cls(pixels, sizes, [0, *ends[:-1]])

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


class PatchSampler:
    """Random square patches of cached images.

    An image is drawn in proportion to its area, the position uniformly, and one of the eight
    symmetries of the square uniformly. Images smaller than the patch are left out with one warning.
    """

    def __init__(
        self, images: ImageCache, patch_size: int, batch_size: int, seed: int, rank: int = 0
    ) -> None:
        usable = [i for i, size in enumerate(images.sizes) if min(size) >= patch_size]
        if not usable:
            raise TrainingError(
                f"every image is smaller than the patch of {patch_size} pixels: lower --patch-size"
            )
        if len(usable) < len(images.sizes) and rank == 0:
            skipped = len(images.sizes) - len(usable)
            _warn(f"left out {skipped} images smaller than the patch of {patch_size} pixels")
        areas = np.array([images.sizes[i][0] * images.sizes[i][1] for i in usable], np.float64)
        self._images = images
        self._usable = np.array(usable)
        self._cumulative = np.cumsum(areas) / areas.sum()
        self._patch = patch_size
        self._batch = batch_size
        self._key = (seed, rank)

    def batch(self, step: int) -> torch.Tensor:
        """The patches of a step: uint8 [batch, 3, patch, patch], channels last in memory."""
        seed, rank = self._key
        generator = np.random.default_rng([seed, step, rank])
        patches = [self._draw(generator) for _ in range(self._batch)]
        return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2)

    def _draw(self, generator: np.random.Generator) -> NDArray[np.uint8]:
        i = self._usable[np.searchsorted(self._cumulative, generator.random(), side="right")]
        image = self._images.image(int(i))
        top, left = (int(generator.integers(side - self._patch + 1)) for side in image.shape[:2])
        patch = image[top : top + self._patch, left : left + self._patch]
        symmetry = int(generator.integers(8))
        patch = np.rot90(patch, symmetry % 4)
        return patch[:, ::-1] if symmetry >= 4 else patch
