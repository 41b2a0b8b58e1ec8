"""What Pillow does not say of an image file: what would be lost, or is not the picture at all."""

from __future__ import annotations

import io
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

_BITS_PER_SAMPLE = 258
_SUBFILE_TYPE = 254
_DNG_VERSION = 50706
_PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 262, 284, 339
#: Modes of one channel of 16 bits.
_WHOLE_GREY = ("I;16", "I;16B", "I;16L", "I;16N")
#: Pillow's names of pixels of 16 bits a channel; ``BGR;16`` is one of 5, 6 and 5.
_DEEP = re.compile(r"^[IL]A?;16|;16[BLN]")
#: Left and top, and steps, of the passes of an interlaced PNG.
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
#: Of bytes: big-endian, little-endian, this machine's.
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_PNG_RGBA = 6
_PIECE_BYTES = 1 << 15
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def has_deep_channels(picture: Image.Image) -> bool:
    """Whether there are more than 8 bits a channel: Pillow may drop some without a word."""
    if picture.mode.startswith(("I", "F")):
        return True
    if picture.format == "JPEG2000":
        return _jpeg2000_depth(picture) > 8
    if picture.format == "TIFF":
        bits = _tiff_tag(picture, _BITS_PER_SAMPLE)
        return any(b > 8 for b in (bits if isinstance(bits, tuple) else (bits or 1,)))
    for tile in getattr(picture, "tile", []):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(a, str) and _DEEP.search(a) for a in arguments) or tile[0] == "SGI16":
            return True
        limit = arguments[-1] if arguments else None
        if tile[0].startswith("ppm") and isinstance(limit, int) and limit > 255:
            return True
    return False


def can_be_rounded(picture: Image.Image) -> bool:
    """Whether Pillow reads such channels right, as 16 bits or the upper 8 of them."""
    if picture.mode == "I":
        right = picture.format in ("PPM", "PNG")
    else:
        right = picture.mode in (*_WHOLE_GREY, "L", "LA", "RGB", "RGBA", "RGBX")
    if "transparency" in picture.info:  # a level of 16 bits
        return False
    if picture.format != "TIFF":
        return right
    bits, layout = _tiff_tag(picture, _BITS_PER_SAMPLE), _tiff_tag(picture, _PLANAR)
    colours, kinds = _tiff_tag(picture, _PHOTOMETRIC), _tiff_tag(picture, _SAMPLE_FORMAT)
    return (
        right
        and set(bits if isinstance(bits, tuple) else (bits,)) == {16}
        and layout in (None, 1)
        and colours in (1, 2)
        and set(kinds if isinstance(kinds, tuple) else (kinds or 1,)) == {1}
    )


def lower_bytes(picture: Image.Image) -> npt.NDArray[np.uint8] | None:
    """Of 16 bits a channel, the lower 8, in the shape of the array of the picture, which Pillow
    makes of the upper 8; to be asked before it is loaded. None for what is not PNG or TIFF in
    colour or with alpha.

    Pillow reads the file once more, as if its bytes had the other order.
    """
    file = getattr(picture, "fp", None)
    if picture.format not in ("PNG", "TIFF") or file is None:
        return None
    modes = {tile[3] if isinstance(tile[3], str) else tile[3][0] for tile in _tiles(picture)}
    if len(modes) != 1:
        return None
    (mode,) = modes
    place = file.tell()
    file.seek(0)
    data = bytearray(file.read())
    file.seek(place)
    if mode == "LA;16B":  # read as four channels of 8 bits
        data[24:26] = bytes([8, _PNG_RGBA])
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        grey, alpha = np.split(np.asarray(Image.open(io.BytesIO(data)))[..., 1::2], 2, axis=-1)
        return np.concatenate([grey] * (len(picture.getbands()) - 1) + [alpha], axis=-1)
    colours, _, order = str(mode).partition(";16")
    if colours not in ("RGB", "RGBA", "RGBX") or order not in _OTHER_ORDER:
        return None
    again = Image.open(io.BytesIO(data))
    again.seek(picture.tell())
    other = f"{colours};16{_OTHER_ORDER[order]}"
    again.tile = [
        tile._replace(args=other if isinstance(tile[3], str) else (other, *tile[3][1:]))
        for tile in _tiles(again)
    ]
    return np.asarray(again)


def _tiles(picture: Image.Image) -> list[Any]:
    """What Pillow knows of where pixels are, and of their kind; nothing once it has read them."""
    return list(getattr(picture, "tile", []))


def is_camera_raw(picture: Image.Image) -> bool:
    """Whether it is a camera's raw file, of which Pillow would read a small preview: their first
    directory is that of a thumbnail, or they say what they are.
    """
    if picture.format != "TIFF":
        return False
    reduced = _tiff_tag(picture, _SUBFILE_TYPE)
    if isinstance(reduced, int) and reduced & 1:
        return True
    return _tiff_tag(picture, _DNG_VERSION) is not None or _head(picture, 10)[8:] == b"CR"


def grey_level_of_transparency(picture: Image.Image) -> int | None:
    """Of a grey PNG of 2 or 4 bits, the level that is transparent, among the levels that Pillow
    makes of its pixels; to be asked before they are loaded. None if there is none.
    """
    level = picture.info.get("transparency")
    if picture.format != "PNG" or picture.mode != "L" or not isinstance(level, int):
        return None
    modes = {tile[3] for tile in getattr(picture, "tile", []) if isinstance(tile[3], str)}
    for depth in (2, 4):
        if f"L;{depth}" in modes:
            return level * 255 // (2**depth - 1)
    return None


def check_png_is_whole(file: BinaryIO) -> None:
    """Raise ValueError unless the pixel data of a PNG give all its rows.

    Pillow takes a stream that ends early, and leaves the rest black.
    """
    inflate, found, expected = zlib.decompressobj(), 0, 0
    for name, length in _png_chunks(file):
        if name == b"IHDR":
            expected = _png_bytes(*struct.unpack(">IIBBBBB", file.read(13)))
        elif name == b"IDAT":
            with suppress(zlib.error):  # of a checksum perhaps: the rows count
                # In pieces, as reading n bytes takes memory for n, whatever the file has.
                while found < expected and (data := file.read(min(length, _PIECE_BYTES))):
                    length -= len(data)
                    while data and found < expected:
                        found += len(inflate.decompress(data, 1 << 20))
                        data = inflate.unconsumed_tail
    if found < expected:
        raise ValueError(f"its pixel data end after {found} of {expected} bytes")


def png_cicp(file: BinaryIO) -> bytes | None:
    """The 4 bytes of the cICP chunk of a PNG, which Pillow does not look at; None without one."""
    for name, length in _png_chunks(file):
        if name == b"cICP" and length == 4:
            return file.read(4)
        if name == b"IDAT":
            break
    return None


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Name and length of each chunk but the last, whose data may be read then."""
    place = file.tell()
    try:
        at = 8
        while True:
            file.seek(at)
            head = file.read(8)
            if len(head) < 8 or head[4:] == b"IEND":
                break
            (length,) = struct.unpack_from(">I", head)
            yield head[4:], length
            at += length + 12
    finally:
        file.seek(place)


def _png_bytes(
    width: int, height: int, depth: int, colour: int, _compression: int, _filter: int, lace: int
) -> int:
    """Bytes of all rows before compression, each with the byte of its filter."""
    bits = depth * _PNG_CHANNELS.get(colour, 1)
    passes = _ADAM7 if lace else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _tiff_tag(picture: Image.Image, tag: int) -> Any:
    tags: Any = getattr(picture, "tag_v2", {})
    return tags.get(tag)


def _head(picture: Image.Image, size: int) -> bytes:
    """The first bytes of the file; none once the pixels are loaded."""
    file = getattr(picture, "fp", None)
    if file is None:
        return b""
    place = file.tell()
    file.seek(0)
    head: bytes = file.read(size)
    file.seek(place)
    return head


def _jpeg2000_depth(picture: Image.Image) -> int:
    """Bits of the deepest channel, from the SIZ marker that begins every JPEG 2000 codestream."""
    head = _head(picture, 1 << 16)
    siz = head.find(b"\xff\x4f\xff\x51")
    if siz < 0 or len(head) < siz + 42:
        return 8
    (channels,) = struct.unpack_from(">H", head, siz + 40)
    depths = head[siz + 42 : siz + 42 + 3 * channels : 3]
    return max(((depth & 127) + 1 for depth in depths), default=8)
