"""Files of pictures: any bytes become a picture, or `UnsupportedImageError`.

Seeds are of every format that is written, in odd modes and with odd metadata. The checksums of PNG
chunks are mended mostly.
"""

from __future__ import annotations

import contextlib
import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from mlic_fast import image_files, images, metadata
from mlic_fast.errors import UnsupportedImageError

assert image_files and metadata  # imported here, so that their coverage guides
FORMATS = ("PNG", "TIFF", "WEBP", "BMP", "PPM", "JPEG", "GIF", "TGA", "JPEG2000", "SGI", "AVIF")
#: A header of a few bytes may claim 2^28 pixels, which are decoded: not here.
images.MAX_PIXELS = 1 << 20
_PNG = b"\x89PNG\r\n\x1a\n"


def seeds() -> list[bytes]:
    source = np.random.default_rng(0)
    grey, colours = source.integers(0, 256, (5, 7), np.uint8), source.integers(0, 256, (5, 7, 4))
    colours = colours.astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"cICP", bytes([9, 16, 0, 1]))
    chunks.add_itxt("XML:com.adobe.xmp", "<x/>")
    pictures = [
        Image.fromarray(grey),
        Image.fromarray(grey.astype(np.uint16) * 257),
        Image.fromarray(colours),
        Image.fromarray(colours[..., :3]),
        Image.fromarray(grey > 99),
        Image.fromarray(colours[..., :3]).quantize(5),
        Image.fromarray(colours).convert("CMYK"),
    ]
    made = []
    for name in FORMATS:
        for picture in pictures:
            file = io.BytesIO()
            options = {"icc_profile": profile, "exif": exif, "pnginfo": chunks}
            try:
                picture.save(file, name, **options)
            except (OSError, ValueError, KeyError):
                continue  # a mode that the format has not
            made.append(file.getvalue())
    for depth, colour, samples in ((16, 0, 1), (16, 2, 3), (16, 4, 2), (16, 6, 4), (2, 0, 1)):
        row = b"\0" + source.bytes((9 * samples * depth + 7) // 8)
        made.append(
            _PNG
            + _chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 3, depth, colour, 0, 0, 0))
            + _chunk(b"tRNS", bytes(2 * samples) if colour in (0, 2) else b"")
            + _chunk(b"IDAT", zlib.compress(row * 3))
            + _chunk(b"IEND", b"")
        )
    return made


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def mutate(data: bytes, source: random.Random, bend: Callable[[bytes], bytes]) -> bytes:
    if not data.startswith(_PNG) or source.random() < 0.2:
        return bend(data)
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    if not chunks:
        return bend(data)
    number = source.randrange(len(chunks))
    name, content = chunks[number]
    if source.random() < 0.2:
        chunks.insert(source.randrange(len(chunks)), chunks[number])
    elif name == b"IDAT":
        with contextlib.suppress(zlib.error):
            content = zlib.decompressobj().decompress(content, 1 << 16)
        chunks[number] = name, zlib.compress(bend(content))
    else:
        chunks[number] = name, bend(content)
    return _PNG + b"".join(_chunk(*chunk) for chunk in chunks)


def check(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for wanted in (True, False):
            try:
                picture = images.load_picture(data, metadata=wanted)
            except UnsupportedImageError:
                continue
            pixels = picture.pixels
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and len(pixels) == 3
            assert pixels.flags.c_contiguous
            assert picture.alpha is None or picture.alpha.shape == pixels.shape[1:]
            assert wanted or not picture.metadata
