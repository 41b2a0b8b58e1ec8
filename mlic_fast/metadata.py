"""What travels with a picture besides its pixels: profile, EXIF, XMP and how colours are coded."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from PIL import ExifTags, Image

from . import sections
from .errors import UnsupportedImageError
from .sections import Sections

_EXIF_PREFIX = b"Exif\0\0"
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))[0-9]')
#: What a TIFF file says of the picture rather than of the file; more is in directories of its own.
_TIFF_TAGS = (
    *(ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model),
    *(ExifTags.Base.XResolution, ExifTags.Base.YResolution, ExifTags.Base.ResolutionUnit),
    *(ExifTags.Base.Software, ExifTags.Base.DateTime, ExifTags.Base.Artist),
    *(ExifTags.Base.HostComputer, ExifTags.Base.Copyright),
    *(ExifTags.Base.ExifOffset, ExifTags.Base.GPSInfo),
)


@dataclass(frozen=True)
class Metadata:
    """What a stream carries, or is to carry, besides the pixels; None for what there is not.

    Attributes:
        icc_profile: the profile that the pixels are to be understood by; without it they are sRGB.
        exif: as Pillow has it, ``b"Exif\\0\\0"`` and a TIFF structure. (It may be given without the
            prefix.) Its orientation is 1, since pixels stand upright.
        xmp: a packet of XMP in UTF-8.
        cicp: the 4 bytes of the cICP chunk of PNG (colour primaries, transfer function ..).
        gamma: as PNG has it, such as 0.45455.
    """

    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    cicp: bytes | None = None
    gamma: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "gamma":
                value = float(value) if value else None
            elif isinstance(value, str):
                value = value.encode()
            else:
                value = bytes(value) if value else None
            object.__setattr__(self, field.name, value)
        if self.exif and not self.exif.startswith(_EXIF_PREFIX):
            object.__setattr__(self, "exif", _EXIF_PREFIX + self.exif)

    def __bool__(self) -> bool:
        return self != Metadata()

    def __repr__(self) -> str:
        sizes = (f"{name}={value!r}" for name, value in self.summary().items())
        return f"Metadata({', '.join(sizes)})"

    def summary(self) -> dict[str, Any]:
        """What there is, by name: the number of bytes of what is long, the others' values."""
        found = {
            "icc_profile": self.icc_profile and len(self.icc_profile),
            "exif": self.exif and len(self.exif) - len(_EXIF_PREFIX),
            "xmp": self.xmp and len(self.xmp),
            "cicp": self.cicp and self.cicp.hex(),
            "gamma": self.gamma,
        }
        return {name: value for name, value in found.items() if value}

    def to_info(self) -> dict[str, Any]:
        """The metadata as Pillow keeps it in ``image.info``."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value}

    def upright(self) -> Metadata:
        """The same for pixels that stand upright: the orientation is 1."""
        return Metadata(
            self.icc_profile,
            self.exif and _upright_exif(self.exif),
            self.xmp and _XMP_ORIENTATION.sub(rb"\g<1>1", self.xmp),
            self.cicp,
            self.gamma,
        )

    def to_contents(self) -> dict[int, bytes]:
        """Contents of sections, by kind. Raises UnsupportedImageError for what is too large."""
        contents = {
            sections.ICC_PROFILE: self.icc_profile,
            sections.EXIF: self.exif and self.exif[len(_EXIF_PREFIX) :],
            sections.XMP: self.xmp,
            sections.CICP: self.cicp,
            sections.GAMMA: self.gamma and struct.pack("<I", round(self.gamma * 100000)),
        }
        for kind, content in contents.items():
            if content and len(content) > sections.MAX_BYTES:
                raise UnsupportedImageError(
                    f"the {sections.NAMES[kind]} of the image has {len(content)} bytes, above the "
                    f"limit of {sections.MAX_BYTES}; leave metadata out (--metadata none)"
                )
        return {kind: content for kind, content in contents.items() if content}


NONE = Metadata()


def from_info(info: Mapping[Any, Any]) -> Metadata:
    """The metadata that the ``info`` of a picture of Pillow holds."""
    gamma, cicp = info.get("gamma"), info.get("cicp")
    return Metadata(
        icc_profile=info.get("icc_profile"),
        exif=info.get("exif"),
        xmp=info.get("xmp"),
        cicp=cicp if isinstance(cicp, bytes) and len(cicp) == 4 else None,
        gamma=gamma if isinstance(gamma, float) and 0 < gamma < 40000 else None,
    )


def from_sections(found: Sections) -> Metadata:
    """The metadata in sections. Raises CorruptStreamError if one of them is damaged."""
    gamma = found.get(sections.GAMMA, 4)
    return Metadata(
        icc_profile=found.get(sections.ICC_PROFILE),
        exif=found.get(sections.EXIF),
        xmp=found.get(sections.XMP),
        cicp=found.get(sections.CICP, 4),
        gamma=int.from_bytes(gamma, "little") / 100000 if gamma else None,
    )


def exif_elsewhere(picture: Image.Image) -> bytes | None:
    """EXIF data that a file has as tags of TIFF, or as text in a PNG; to be asked before the pixels
    are loaded. None if there are none, or none that can be used.
    """
    with suppress(Exception):
        found, exif = picture.getexif(), Image.Exif()
        for tag in _TIFF_TAGS:
            if tag in (ExifTags.Base.ExifOffset, ExifTags.Base.GPSInfo):
                if directory := found.get_ifd(tag):
                    exif[tag] = directory
            elif tag in found:
                exif[tag] = found[tag]
        return exif.tobytes() if len(exif) else None
    return None


def _upright_exif(exif: bytes) -> bytes:
    """EXIF data whose orientation, if there is one, is 1; all other bytes as they are."""
    data = bytearray(exif)
    base = len(_EXIF_PREFIX)
    order = {b"II": "<", b"MM": ">"}.get(exif[base : base + 2])
    if order is None:
        return exif
    with suppress(struct.error):  # damaged: nobody reads an orientation there
        at = base + struct.unpack_from(f"{order}I", data, base + 4)[0]
        (count,) = struct.unpack_from(f"{order}H", data, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, _, _ = struct.unpack_from(f"{order}HHI", data, entry)
            if tag == ExifTags.Base.Orientation:
                struct.pack_into(f"{order}HHIHH", data, entry, tag, 3, 1, 1, 0)
    return bytes(data)
