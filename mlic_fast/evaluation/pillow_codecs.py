"""JPEG, WebP, AVIF and JPEG XL through Pillow: what photographs are stored in today."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image, features
from torch import Tensor

from mlic_fast.errors import EvaluationError
from mlic_fast.images import load_image, to_array

# Colour at full resolution, as PSNR is taken over RGB, wherever the format has it (lossy WebP does
# not), at an effort that takes about a second an image on an idle core.
_OPTIONS: dict[str, dict[str, Any]] = {
    "jpeg": {"subsampling": "4:4:4", "optimize": True},
    "webp": {"method": 6},
    "avif": {"subsampling": "4:4:4", "speed": 4},
    "jxl": {"effort": 7},
}
PILLOW_CODECS = tuple(_OPTIONS)

# Spread over 0.1 to 2.5 bits a pixel on photographs.
CURVE_QUALITIES: dict[str, tuple[int, ...]] = {
    "jpeg": (5, 10, 15, 25, 40, 60, 75, 85, 92),
    "webp": (1, 10, 25, 45, 65, 80, 88, 94),
    "avif": (15, 25, 35, 45, 55, 65, 75, 85),
    "jxl": (5, 10, 20, 30, 45, 60, 75, 85),
}


class PillowCodec:
    """One format, with the two methods of :class:`mlic_fast.Codec` that are measured.

    Raises :class:`EvaluationError` if the format is unknown or this Pillow lacks it.
    """

    def __init__(self, name: str) -> None:
        if name not in _OPTIONS:
            known = ", ".join(PILLOW_CODECS)
            raise EvaluationError(f"unknown codec {name!r}: choose among {known}")
        _check_present(name)
        self.name = name

    def compress(self, image: Tensor, quality: int | None = None) -> bytes:
        """uint8 [3, H, W] -> the bytes of a file; ``quality`` is Pillow's, 75 if not given."""
        file = io.BytesIO()
        options = _OPTIONS[self.name]
        picture = Image.fromarray(to_array(image))
        picture.save(file, self.name.upper(), quality=75 if quality is None else quality, **options)
        return file.getvalue()

    def decompress(self, data: bytes) -> Tensor:
        """The bytes of a file -> uint8 [3, H, W]."""
        with Image.open(io.BytesIO(data)) as picture:
            image: torch.Tensor = load_image(picture)
        return image


def _check_present(name: str) -> None:
    if name == "jxl":
        try:
            import pillow_jxl  # noqa: F401  (its import teaches Pillow the format)
        except ImportError as error:
            raise EvaluationError(
                "this Pillow has no JXL: pip install 'mlic_fast[jxl]' (pillow-jxl-plugin)"
            ) from error
    elif name != "jpeg" and not features.check(name):
        raise EvaluationError(f"this Pillow has no {name.upper()}: install pillow>=11.3")
