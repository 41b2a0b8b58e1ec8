"""The format MLIC for Pillow: ``import mlic_fast.pillow`` registers it.

>>> import mlic_fast.pillow
>>> from PIL import Image
>>> Image.open("photo.png").save("photo.mlic", quality=60)
>>> Image.open("photo.mlic").show()

Opening reads the header alone; the model is loaded when pixels are first needed. Pillow's own limit
of pixels applies. What cannot be read or written is an OSError, as of Pillow's own formats.
"""

from __future__ import annotations

from typing import IO, Any

from PIL import Image, ImageFile

import mlic_fast
from mlic_fast import bitstream
from mlic_fast.errors import MlicError

FORMAT = "MLIC"


class MlicImageFile(ImageFile.ImageFile):
    """A stream whose pixels are decoded when they are first needed."""

    format = FORMAT
    format_description = "MLIC learned image compression"

    def _open(self) -> None:
        assert self.fp is not None
        try:
            header = bitstream.peek(self.fp.read(bitstream.HEADER_BYTES))
        except MlicError as error:
            raise SyntaxError(str(error)) from error  # which is how Pillow asks the next format
        self._size = header.width, header.height
        self._mode = "RGB"
        if header.quality:
            self.info["quality"] = header.quality
        self.tile = []
        self._coded = True

    def load(self) -> Image.core.PixelAccess | None:
        if self._coded:
            try:
                picture = mlic_fast.decompress(
                    self._stream(), output="pil", max_pixels=bitstream.MAX_PIXELS
                )
            except MlicError as error:
                raise OSError(str(error)) from error
            self.im = picture.im
            self._coded = False
            if self._exclusive_fp and self.fp is not None:
                self.fp.close()
            self.fp = None
        return super().load()

    def verify(self) -> None:
        """Raises OSError unless every byte is as it was written."""
        try:
            bitstream.read(self._stream())
        except MlicError as error:
            raise OSError(str(error)) from error
        super().verify()

    def _stream(self) -> bytes:
        assert self.fp is not None
        self.fp.seek(0)
        data: bytes = self.fp.read()
        return data


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(bitstream.MAGIC)


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    quality: Any = image.encoderinfo.get("quality")
    try:
        data = mlic_fast.compress(image, quality=quality)
    except MlicError as error:
        raise OSError(str(error)) from error
    assert isinstance(data, bytes)
    file.write(data)


Image.register_open(FORMAT, MlicImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".mlic")
Image.register_mime(FORMAT, "image/x-mlic")
