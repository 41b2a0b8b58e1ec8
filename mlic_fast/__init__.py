"""mlic_fast: a fast, portable codec for the MLIC family of learned image compression models.

>>> import mlic_fast
>>> codec = mlic_fast.load("photo")
>>> data = codec.compress("photo.png", quality=60)
>>> image = codec.decompress(data)
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlic_fast.errors import (
    CheckpointError,
    CorruptStreamError,
    DeviceMemoryError,
    EngineError,
    KernelResourcesError,
    MlicError,
    QualityError,
    TooManyPixelsError,
    UnsupportedImageError,
    UnsupportedStreamError,
    WrongModelError,
)

if TYPE_CHECKING:
    from mlic_fast.codec import Codec, Output
    from mlic_fast.inspection import Info
    from mlic_fast.metadata import Metadata

__version__ = "0.1.0"  # pyproject.toml reads it from here

__all__ = [
    "CheckpointError",
    "Codec",
    "CorruptStreamError",
    "DeviceMemoryError",
    "EngineError",
    "Info",
    "KernelResourcesError",
    "Metadata",
    "MlicError",
    "QualityError",
    "TooManyPixelsError",
    "UnsupportedImageError",
    "UnsupportedStreamError",
    "WrongModelError",
    "compress",
    "decompress",
    "info",
    "load",
]


def load(model: Any = "photo", device: str = "auto", engine: str = "auto") -> Codec:
    """A codec; see :func:`mlic_fast.codec.load`."""
    from mlic_fast.codec import load as load_codec

    return load_codec(model, device=device, engine=engine)


def compress(image: Any, quality: int | None = None, **options: Any) -> bytes | list[bytes]:
    """Compress with the photograph model; see :meth:`mlic_fast.codec.Codec.compress`."""
    return _photo().compress(image, quality=quality, **options)


def decompress(data: Any, output: Output = "torch", **options: Any) -> Any:
    """Decompress a stream of the photograph model; see :meth:`mlic_fast.codec.Codec.decompress`."""
    return _photo().decompress(data, output=output, **options)


def info(data: Any) -> Info:
    """What a stream says of itself, without a model; see :func:`mlic_fast.inspection.info`."""
    from mlic_fast.inspection import info as read_info

    return read_info(data)


@cache
def _photo() -> Codec:
    return load("photo")


_LATER = {
    "Codec": "mlic_fast.codec",
    "Info": "mlic_fast.inspection",
    "Metadata": "mlic_fast.metadata",
}


def __getattr__(name: str) -> Any:
    # These are imported on first use, so that ``import mlic_fast`` imports no PyTorch or Pillow.
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    if name == "models":
        return import_module("mlic_fast.models")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
