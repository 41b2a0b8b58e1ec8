"""Images in and out: files, PIL images, numpy arrays and tensors <-> uint8 RGB tensors [3, H, W].

What happens to an image on its way in (files and PIL images):

- EXIF orientation is applied, so the tensor stands upright.
- An ICC profile goes with the pixels, which are left alone; where it cannot (greyscale, CMYK, no
  metadata wanted, no stream to carry it) they are converted to sRGB (relative colorimetric, black
  point compensation). Pixels whose profile is sRGB already stay as they are, and so do those with a
  profile that is damaged or of another kind of pixels, which browsers show as sRGB too.
- Black and white, greyscale and palette images become RGB, and so do CMYK images that carry their
  profile.
- An alpha channel is dropped if every pixel is opaque, and goes its own way if not.

- More than 8 bits a channel are rounded to the nearest of 8, and a note says so. (Down, as Pillow
  does it, are colours of JPEG 2000 and SGI files, and of PIL images that are read already.) AVIF
  files of 10 and 12 bits become 8 in Pillow without a note.

Refused with `UnsupportedImageError`: channels of real numbers, of 32 bits, or of 16 in a TIFF file
plane by plane, which Pillow does not read right; CMYK without a profile, Lab, animations and files
of several pages (an MPO photograph, as phones and cameras write them, counts as its first picture),
cameras' raw files, of which Pillow sees a preview, and more than `bitstream.MAX_PIXELS` pixels,
which is found before anything is decoded.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Union

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from .atomic_files import write_atomically
from .bitstream import MAX_PIXELS, check_size
from .errors import UnsupportedImageError
from .image_files import (
    can_be_rounded,
    check_png_is_whole,
    grey_level_of_transparency,
    has_deep_channels,
    is_camera_raw,
    lower_bytes,
    png_cicp,
)
from .metadata import NONE, Metadata, exif_elsewhere, from_info
from .pillow_pictures import (
    COLOUR_MODES,
    GREY_MODES,
    apart,
    in_mode,
    raised_limits,
    rounded,
    rounded_colours,
    to_srgb,
    turn_of,
)

if TYPE_CHECKING:
    import torch

#: uint8, a tensor where one was given; else an array, so that PyTorch need not be imported.
Pixels = Union[npt.NDArray[np.uint8], "torch.Tensor"]


@dataclass(frozen=True)
class Picture:
    """An image and what goes with it.

    Attributes:
        pixels: uint8 [3, H, W], RGB, upright.
        alpha: uint8 [H, W], not premultiplied; None if every pixel is opaque.
        metadata: what is known of it. Without a profile the pixels are sRGB.
        notes: what was changed that its owner may want to know, a sentence each.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    metadata: Metadata = NONE
    notes: tuple[str, ...] = ()

    def warn(self) -> None:
        """The notes as warnings."""
        for note in self.notes:
            warnings.warn(note, stacklevel=3)


class Handover:
    """A picture for its codec alone: the memory of its pixels is free when they are analysed."""

    def __init__(self, picture: Picture) -> None:
        self._given = [picture]

    def take(self) -> Picture:
        """The picture. It can be taken once."""
        return self._given.pop()


ImageSource = Union[
    str,
    "os.PathLike[str]",
    bytes,
    IO[bytes],
    Image.Image,
    npt.NDArray[Any],
    "torch.Tensor",
    Picture,
    Handover,
]

# Suffix -> Pillow's format and options. The lossy formats are written at a quality that adds little
# to what is lost.
_SAVE_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".bmp": ("BMP", {}),
    ".ppm": ("PPM", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    ".avif": ("AVIF", {"quality": 90, "subsampling": "4:4:4"}),
}
_WITH_ALPHA = ("PNG", "WEBP", "TIFF", "AVIF")
_WITH_METADATA = (*_WITH_ALPHA, "JPEG")
_TIFF_XMP = 700
SAVE_SUFFIXES = tuple(_SAVE_FORMATS)

# Suffixes taken as images when a folder is searched.
_READ_ONLY = (".jpe", ".jfif", ".pgm", ".pbm", ".pnm", ".gif", ".jp2", ".j2k", ".tga", ".mpo")
IMAGE_SUFFIXES = SAVE_SUFFIXES + _READ_ONLY

_STILL_FORMATS = ("MPO", "PSD")  # their further frames are previews or layers, not further pictures


def load_image(source: ImageSource) -> torch.Tensor:
    """Return an image as a contiguous uint8 tensor of shape [3, H, W], RGB (sRGB), upright.

    ``source`` is what `load_picture` takes. Raises `UnsupportedImageError` for transparency too.
    """
    picture = load_picture(source, metadata=False)
    if picture.alpha is not None:
        raise UnsupportedImageError(
            "the image has transparent pixels; flatten it onto a background first"
        )
    picture.warn()
    return as_tensor(picture.pixels)


def load_picture(source: ImageSource, *, metadata: bool = True) -> Picture:
    """Return an image with its transparency and, unless ``metadata`` is false, what it carries.

    ``source`` is a path, the bytes of a file, an open file, a PIL image (its current frame), a
    uint8 array of shape [H, W, 3], [H, W, 4] (with alpha) or [H, W] (greyscale), or a uint8 tensor
    of shape [3, H, W] or [4, H, W], which keeps its device, or what gives one through DLPack.
    Raises `UnsupportedImageError` for what the text at the top of this module refuses, and for
    files that are missing, damaged or not images.
    """
    if isinstance(source, Handover):
        source = source.take()
    if isinstance(source, Picture):
        return source if metadata else replace(source, metadata=NONE)
    if isinstance(source, Image.Image):
        return _from_pil(source, "the image", metadata)
    if is_tensor(source):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source), metadata)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_open(io.BytesIO(source), "the image", metadata)
    if hasattr(source, "read"):  # all of it at once: pipes cannot be sought in
        return _from_open(io.BytesIO(_read_all(source)), "the image", metadata)
    if hasattr(source, "__dlpack__"):
        import torch

        with _reading("the array"):
            return _from_tensor(torch.from_dlpack(source))
    raise UnsupportedImageError(
        f"cannot take an image from an object of the type {type(source).__name__}; give a path, "
        "bytes, a file, a PIL image, a uint8 array [H, W, 3] or a uint8 tensor [3, H, W]"
    )


def _read_all(file: Any) -> bytes:
    data: bytes | str = file.read()
    if isinstance(data, str):
        raise UnsupportedImageError("the file is open as text; open it with the mode 'rb'")
    if not data:
        raise UnsupportedImageError(
            "the file is empty, or was read to its end before; call its seek(0) first"
        )
    return data


def is_several(source: Any) -> bool:
    """Whether it is a list of images, or an array or tensor of several."""
    if isinstance(source, np.ndarray) or is_tensor(source):
        return bool(source.ndim == 4)
    return isinstance(source, (list, tuple))


def is_tensor(x: object) -> bool:
    """Whether it is a tensor of PyTorch, which is not imported for this."""
    if "torch" not in sys.modules:
        return False
    import torch

    return isinstance(x, torch.Tensor)


def as_tensor(x: Any) -> torch.Tensor:
    """An array as a tensor on the CPU, whatever the default device is; a tensor as it is."""
    import torch

    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def as_array(x: Any) -> npt.NDArray[Any]:
    """A tensor on any device as an array; an array as it is."""
    return x if isinstance(x, np.ndarray) else x.cpu().numpy()


def contiguous(x: Any) -> Any:
    """An array or tensor with its elements in order, copied where they are not."""
    return np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x.contiguous()


def pad(x: Any, multiple: int = 64) -> Any:
    """Repeat the last column and row of [..., H, W] up to multiples of ``multiple``.

    Edges that go on cost fewer bits, and look better near them, than a step to black.
    """
    height, width = x.shape[-2:]
    if height % multiple == width % multiple == 0:
        return x
    rows: Any = np.minimum(np.arange(height + -height % multiple), height - 1)
    columns: Any = np.minimum(np.arange(width + -width % multiple), width - 1)
    if not isinstance(x, np.ndarray):
        rows, columns = as_tensor(rows).to(x.device), as_tensor(columns).to(x.device)
    return x[..., rows, :][..., columns]


def crop(x: Any, height: int, width: int) -> Any:
    """Undo `pad`: the top left [..., height, width] of ``x`` (a view)."""
    return x[..., :height, :width]


def to_array(image: Pixels) -> npt.NDArray[np.uint8]:
    """uint8 [3 or 4, H, W] on any device -> contiguous uint8 array [H, W, 3 or 4]."""
    if _dtype_name(image.dtype) != "uint8" or image.ndim != 3 or image.shape[0] not in (3, 4):
        raise UnsupportedImageError(
            f"expected a uint8 tensor [3, H, W], got {_dtype_name(image.dtype)} {list(image.shape)}"
        )
    planes = image if isinstance(image, np.ndarray) else image.cpu().numpy()
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def to_pil(image: Pixels, metadata: Metadata) -> Image.Image:
    """uint8 [3 or 4, H, W] -> RGB or RGBA image that has the metadata in its ``info``."""
    picture = Image.fromarray(to_array(image))
    picture.info.update(metadata.to_info())
    return picture


def check_save_suffix(path: str | os.PathLike[str]) -> None:
    """Raise `UnsupportedImageError` if `save_image` cannot write a file of this name."""
    suffix = Path(path).suffix
    if suffix.lower() not in _SAVE_FORMATS:
        raise UnsupportedImageError(
            f"cannot write {os.fspath(path)}: {suffix or 'a name without a suffix'} is not an "
            f"image format that can be written; use one of {' '.join(SAVE_SUFFIXES)}"
        )


def save_image(image: Pixels, path: str | os.PathLike[str]) -> None:
    """Write uint8 [3 or 4, H, W] to a file whose suffix, one of `SAVE_SUFFIXES`, is the format.

    .jpg and .avif lose a little (quality 95 and 90, 4:4:4), all others are lossless. Raises
    `UnsupportedImageError` for other suffixes and for an image that the format cannot hold, and
    `OSError` if the file cannot be written.
    """
    check_save_suffix(path)
    write_atomically(path, image_bytes(image, Path(path).suffix))


def image_bytes(image: Pixels, suffix: str, metadata: Metadata = NONE) -> bytes:
    """What `save_image` writes of uint8 [3 or 4, H, W], with the metadata that the format holds:
    .bmp and .ppm none, cICP and gamma .png alone.
    """
    picture = Image.fromarray(to_array(image))
    name, options = _SAVE_FORMATS[suffix.lower()]
    if picture.mode == "RGBA" and name not in _WITH_ALPHA:
        raise UnsupportedImageError(
            f"the picture has transparent pixels, which {name} cannot hold; use .png"
        )
    buffer = io.BytesIO()
    try:
        picture.save(buffer, format=name, **options, **_metadata_options(name, metadata))
    except Exception as error:  # KeyError: a Pillow without this format; of odd EXIF data anything
        hint = " or leave metadata out (--metadata none)" if metadata else ""
        raise UnsupportedImageError(
            f"cannot write {picture.width}x{picture.height} pixels as {name}: {error}; use .png"
            + hint
        ) from error
    return buffer.getvalue()


def _metadata_options(name: str, metadata: Metadata) -> dict[str, Any]:
    """Options of Pillow's ``save`` that make it write the metadata."""
    if name not in _WITH_METADATA:
        return {}
    options: dict[str, Any] = {
        key: value
        for key in ("icc_profile", "exif", "xmp")
        if (value := getattr(metadata, key)) is not None
    }
    if name == "TIFF" and (xmp := options.pop("xmp", None)):
        tags = Image.Exif()
        tags.load(options.pop("exif", b""))
        tags[_TIFF_XMP] = xmp
        options["exif"] = tags
    if name == "PNG":
        chunks = PngImagePlugin.PngInfo()
        if xmp := options.pop("xmp", None):
            chunks.add_itxt("XML:com.adobe.xmp", xmp.decode(errors="replace"))
        if metadata.cicp:
            chunks.add(b"cICP", metadata.cicp)
        if metadata.gamma:
            chunks.add(b"gAMA", struct.pack(">I", round(metadata.gamma * 100000)))
        options["pnginfo"] = chunks
    return options


def _from_file(path: Path, metadata: bool) -> Picture:
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise UnsupportedImageError(f"{path} {what}; give the path of an image file")
    # Opened here: files that Pillow maps into memory it reads wrong where EXIF turns them (13.0).
    with _reading(str(path)), open(path, "rb") as file:
        return _from_open(file, str(path), metadata)


def _from_open(file: IO[bytes], name: str, metadata: bool) -> Picture:
    with _reading(name), raised_limits, Image.open(file) as picture:
        frames = getattr(picture, "n_frames", 1)
        if frames > 1 and picture.format not in _STILL_FORMATS:
            raise UnsupportedImageError(
                f"{name} has {frames} frames or pages; extract the one to compress first"
            )
        return _from_pil(picture, name, metadata)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises on a damaged file, which is nearly anything, into one error."""
    try:
        yield
    except (UnsupportedImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnsupportedImageError(
            f"{name} has more than {MAX_PIXELS} pixels, the limit; crop or resize it first"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise UnsupportedImageError(
            f"{name} is not an image, or of a format that Pillow cannot read"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # not of what is in the file
            raise UnsupportedImageError(f"{name} cannot be read: {error.strerror}") from error
        raise UnsupportedImageError(
            f"{name} cannot be read as an image, it may be damaged: {error}"
        ) from error


def _from_pil(picture: Image.Image, name: str, wanted: bool) -> Picture:
    check_size(picture.width, picture.height)
    cicp: bytes | None = None
    notes: tuple[str, ...] = ()
    with _reading(name):
        if is_camera_raw(picture):
            raise UnsupportedImageError(
                f"{name} is a camera's raw file, of which only a preview could be read; develop it "
                "to TIFF, PNG or JPEG first"
            )
        if has_deep_channels(picture):
            if not can_be_rounded(picture):
                raise UnsupportedImageError(
                    f"{name} has more than 8 bits a channel in a way that cannot be read; convert "
                    "it to 8 bits a channel first"
                )
            notes = (f"{name} has more than 8 bits a channel; they are rounded to 8",)
        file = getattr(picture, "fp", None)
        if picture.format == "PNG" and file is not None:
            check_png_is_whole(file)
            cicp = png_cicp(file)
        transparent = grey_level_of_transparency(picture)
        lower = lower_bytes(picture)
        exif = exif_elsewhere(picture) if wanted else None
        picture.load()
        turn = turn_of(picture)
        if picture.mode.startswith("I"):
            picture = rounded(picture)
        elif lower is not None:
            picture = rounded_colours(picture, lower)
    profile = picture.info.get("icc_profile")
    if picture.mode == "CMYK" and not profile:
        raise UnsupportedImageError(
            f"{name} has CMYK pixels without a colour profile; convert it to RGB first"
        )
    if picture.mode not in (*GREY_MODES, *COLOUR_MODES, "CMYK"):
        raise UnsupportedImageError(f"{name} has {picture.mode} pixels; convert it to RGB first")
    metadata = NONE
    if wanted:
        metadata = from_info({"exif": exif, "cicp": cicp} | picture.info).upright()
    if transparent is not None:
        picture = picture.copy()
        picture.info["transparency"] = transparent
    opaque, alpha = apart(picture if turn is None else picture.transpose(turn))
    if profile and (opaque.mode != "RGB" or not wanted):
        opaque = to_srgb(opaque, profile, name)
        metadata = replace(metadata, icc_profile=None, cicp=None, gamma=None)
    pixels = np.array(np.asarray(in_mode(opaque, "RGB")).transpose(2, 0, 1), order="C")
    return Picture(pixels, None if alpha is None else _unless_opaque(alpha), metadata, notes)


def _unless_opaque(alpha: Any) -> Pixels | None:
    return contiguous(alpha) if 0 not in alpha.shape and int(alpha.min()) < 255 else None


def _from_array(array: npt.NDArray[Any]) -> Picture:
    _check_uint8(array.dtype == np.uint8, array.dtype)
    if array.ndim == 2:
        array = np.broadcast_to(array[:, :, None], (*array.shape, 3))
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        raise UnsupportedImageError(
            f"an array must have the shape [H, W, 3], [H, W, 4] or [H, W], not "
            f"{list(array.shape)}; a single image with its channels first can be given as a tensor"
        )
    check_size(array.shape[1], array.shape[0])
    return _from_channels(np.array(array.transpose(2, 0, 1), order="C"))


def _from_tensor(tensor: Any) -> Picture:
    _check_uint8(_dtype_name(tensor.dtype) == "uint8", tensor.dtype)
    if tensor.device.type == "meta":
        raise UnsupportedImageError("a tensor on the device 'meta' has no pixels")
    if str(tensor.layout) != "torch.strided":
        raise UnsupportedImageError(
            "a sparse tensor has no rows of pixels; call its to_dense() first"
        )
    if tensor.ndim != 3 or tensor.shape[0] not in (3, 4):
        raise UnsupportedImageError(
            f"a tensor must have the shape [3, H, W] or [4, H, W], not {list(tensor.shape)}; an "
            "image with its channels last can be given as a numpy array"
        )
    check_size(tensor.shape[2], tensor.shape[1])
    return _from_channels(tensor)


def _from_channels(image: Any) -> Picture:
    """uint8 [3 or 4, H, W]."""
    return Picture(contiguous(image[:3]), _unless_opaque(image[3]) if len(image) == 4 else None)


def _check_uint8(right: bool, dtype: object) -> None:
    if not right:
        name = _dtype_name(dtype)
        hint = " (multiply values in 0 .. 1 by 255 and round)" if "float" in name else ""
        raise UnsupportedImageError(f"pixels must be uint8, not {name}; convert them first{hint}")


def _dtype_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
