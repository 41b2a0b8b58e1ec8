"""The sections of a stream: what it carries beside the latents (docs/format.md, section 8).

A section is a kind from 1 to 255 and its content, deflated. Kinds that are unknown are skipped.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .bitstream import LENGTH_BYTES, leb128, read_leb128
from .errors import CorruptStreamError

ICC_PROFILE, EXIF, XMP, CICP, GAMMA, ALPHA = range(1, 7)
NAMES = {
    ICC_PROFILE: "ICC profile",
    EXIF: "EXIF data",
    XMP: "XMP data",
    CICP: "cICP",
    GAMMA: "gamma",
    ALPHA: "transparency",
}
#: Bytes of the content of a section, but for that of transparency.
MAX_BYTES = 1 << 24
_CRC_BYTES = 4

Bytes2D = npt.NDArray[np.uint8]


def join(contents: Mapping[int, bytes]) -> bytes:
    """Contents by kind -> the sections of a stream, empty if there are none."""
    parts = []
    for kind, content in sorted(contents.items()):
        deflate = zlib.compressobj(9, wbits=-15)
        body = deflate.compress(content) + deflate.flush()
        crc = struct.pack("<I", zlib.crc32(body, zlib.crc32(bytes([kind]))))
        parts += [bytes([kind]), leb128(len(body)), crc, body]
    return b"".join(parts)


class Sections:
    """The sections of a stream, each checked when it is asked for.

    Raises CorruptStreamError if they do not follow one another as they must.
    """

    def __init__(self, data: bytes) -> None:
        self._found: dict[int, tuple[int, bytes]] = {}
        at = last = 0
        while at < len(data):
            kind = data[at]
            length, at = read_leb128(data, at + 1, LENGTH_BYTES)
            start = at + _CRC_BYTES
            if kind <= last or start + length > len(data):
                raise CorruptStreamError("the stream is damaged: its sections are out of order")
            (crc,) = struct.unpack_from("<I", data, at)
            self._found[kind] = crc, data[start : start + length]
            last, at = kind, start + length

    def __contains__(self, kind: int) -> bool:
        return kind in self._found

    def get(self, kind: int, most: int = MAX_BYTES) -> bytes | None:
        """The content of a section of at most ``most`` bytes, None if the stream has none.

        Raises CorruptStreamError if it is damaged or larger.
        """
        if kind not in self._found:
            return None
        body = self._checked(kind)
        inflate = zlib.decompressobj(wbits=-15)
        try:
            content = inflate.decompress(body, most + 1)
        except zlib.error as error:
            raise _damaged(kind) from error
        if len(content) > most:
            raise CorruptStreamError(
                f"the stream is invalid: its {NAMES[kind]} has more than {most} bytes"
            )
        if not inflate.eof or inflate.unused_data or not content:
            raise _damaged(kind)
        return content

    def check(self) -> None:
        """Raise CorruptStreamError unless every section is as it was written."""
        for kind in self._found:
            self._checked(kind)

    def _checked(self, kind: int) -> bytes:
        crc, body = self._found[kind]
        if zlib.crc32(body, zlib.crc32(bytes([kind]))) != crc:
            raise _damaged(kind)
        return body


def alpha_content(alpha: Bytes2D) -> bytes:
    """The content of the section of transparency, of alpha [H, W]: what each value adds to the
    plane through its neighbours above, on the left, and between the two.
    """
    rows = np.diff(alpha, axis=0, prepend=np.uint8(0))
    return np.diff(rows, axis=1, prepend=np.uint8(0)).tobytes()


def read_alpha(sections: Sections, height: int, width: int) -> Bytes2D | None:
    """alpha [H, W], None if the picture is opaque. Raises CorruptStreamError if it is damaged."""
    content = sections.get(ALPHA, height * width)
    if content is None:
        return None
    if len(content) != height * width:
        raise _damaged(ALPHA)
    alpha = np.frombuffer(content, np.uint8).reshape(height, width).copy()
    np.cumsum(alpha, axis=1, dtype=np.uint8, out=alpha)
    return np.cumsum(alpha, axis=0, dtype=np.uint8, out=alpha)


def _damaged(kind: int) -> CorruptStreamError:
    name = NAMES.get(kind, f"section of kind {kind}")
    hint = "" if kind == ALPHA else ", or decode without it (--metadata none)"
    return CorruptStreamError(
        f"the stream is damaged: its {name} cannot be read; get a fresh copy of it{hint}"
    )
