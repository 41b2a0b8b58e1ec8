"""Pictures of Pillow on their way to RGB of 8 bits: limits, orientation, depth, alpha, profile."""

from __future__ import annotations

import contextlib
import io
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from .bitstream import MAX_PIXELS
from .errors import UnsupportedImageError

GREY_MODES = ("1", "L", "LA", "La")
COLOUR_MODES = ("P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "YCbCr", "HSV")

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: Bytes of text in a PNG, which is not looked at.
_MAX_TEXT = 1 << 28


class _RaisedLimits:
    """Replaces Pillow's global limits by ours while files are opened and read.

    That of pixels gives a warning at 89 million and an error at 179. Opening reads the header only;
    the size is checked exactly before anything is decoded. Several threads may be within at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = Image.MAX_IMAGE_PIXELS, 0, 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = (
                    Image.MAX_IMAGE_PIXELS,
                    PngImagePlugin.MAX_TEXT_CHUNK,
                    PngImagePlugin.MAX_TEXT_MEMORY,
                )
                self._set(MAX_PIXELS, _MAX_TEXT, _MAX_TEXT)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._set(*self._before)

    @staticmethod
    def _set(pixels: int | None, text: int, memory: int) -> None:
        Image.MAX_IMAGE_PIXELS = pixels
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = text, memory


raised_limits = _RaisedLimits()


def rounded(picture: Image.Image) -> Image.Image:
    """A grey picture of 16 bits, rounded to 8."""
    levels = np.asarray(picture).clip(0, 65535).astype(np.uint32)
    grey = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    grey.info = picture.info
    return grey


def rounded_colours(picture: Image.Image, lower: npt.NDArray[np.uint8]) -> Image.Image:
    """Colours of 16 bits, 256 ``picture`` + ``lower`` [H, W, C], rounded to the nearest 257th."""
    upper = np.asarray(picture)
    difference = lower.astype(np.int16) - upper
    levels = upper + (difference > 128) - (difference < -128)
    rounded = Image.frombytes(picture.mode, picture.size, levels.astype(np.uint8).tobytes())
    rounded.info = picture.info
    return rounded


def in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in a mode; itself, not a copy, if it has the mode already."""
    return picture if picture.mode == mode else picture.convert(mode)


def turn_of(picture: Image.Image) -> Image.Transpose | None:
    """The turn that makes a picture upright, by its EXIF data, which may be odd in other ways."""
    orientation: Any = None
    with contextlib.suppress(Exception):
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    return _TRANSPOSES.get(orientation) if isinstance(orientation, int) else None


def apart(picture: Image.Image) -> tuple[Image.Image, npt.NDArray[np.uint8] | None]:
    """The picture in mode L, RGB or CMYK, and its alpha [H, W], None if it has none."""
    grey, alpha = picture.mode in GREY_MODES, None
    if picture.has_transparency_data:
        if picture.mode == "La":  # Pillow has no direct conversion
            picture = picture.convert("LA")
        picture = in_mode(picture, "RGBA")
        alpha = np.array(picture.getchannel("A"))
    if picture.mode == "CMYK":
        return picture, alpha
    return in_mode(picture, "L" if grey else "RGB"), alpha


def to_srgb(picture: Image.Image, profile: bytes, name: str) -> Image.Image:
    """Convert mode L, RGB or CMYK from its ICC profile to sRGB."""
    spaces = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    if picture.mode == "L":  # the interpolated table made for speed is off by 10 levels in shadows
        flags |= ImageCms.Flags.NOOPTIMIZE
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != spaces[picture.mode]:
            raise ValueError("the profile is for another kind of pixels")
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            picture.mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags,
        )
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        if picture.mode == "CMYK":
            raise UnsupportedImageError(
                f"{name} has CMYK pixels and a colour profile that cannot be used ({error}); "
                "convert it to RGB first"
            ) from error
        return picture
    if picture.mode != "CMYK" and _changes_nothing(transform, picture.mode):
        return picture
    converted = ImageCms.applyTransform(picture, transform)
    assert converted is not None  # None only for a conversion in place
    return converted


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a grid of colours stays as it is up to rounding: the profile is one of the many sRGB.

    Such pixels are left alone, so that encoding works on exactly what was given.
    """
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    if mode == "L":
        grid = np.arange(256, dtype=np.uint8).reshape(1, -1, 1)
    before = Image.fromarray(grid.squeeze(-1) if mode == "L" else grid)
    after = ImageCms.applyTransform(before, transform)
    assert after is not None
    return bool(np.abs(np.asarray(after, dtype=np.int16) - grid).max() <= 1)
