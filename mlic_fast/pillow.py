"""The format MLIC for Pillow: ``import mlic_fast.pillow`` registers it.

>>> import mlic_fast.pillow
>>> from PIL import Image
>>> Image.open("photo.png").save("photo.mlic", quality=60)
>>> Image.open("photo.mlic").show()

Opening reads the header and the metadata; the model is loaded when pixels are first needed.
Pillow's own limit of pixels applies. What cannot be read or written is an OSError, as of Pillow's
own formats. Saving takes ``quality``, ``target_bytes`` or ``target_psnr``; and ``exif``,
``icc_profile`` and ``xmp``, which are those of ``image.info`` if not given.
"""

from __future__ import annotations

from contextlib import suppress
from typing import IO

from PIL import Image, ImageFile

import mlic_fast
from mlic_fast import bitstream
from mlic_fast.errors import MlicError
from mlic_fast.metadata import from_sections
from mlic_fast.sections import ALPHA, Sections

FORMAT = "MLIC"
_RATE_OPTIONS = ("quality", "target_bytes", "target_psnr")
_METADATA_OPTIONS = ("exif", "icc_profile", "xmp")


class MlicImageFile(ImageFile.ImageFile):
    """A stream whose pixels are decoded when they are first needed."""

    format = FORMAT
    format_description = "MLIC learned image compression"

    def _open(self) -> None:
        assert self.fp is not None
        try:
            header, carried = bitstream.peek(self.fp)
            sections = Sections(carried)
        except MlicError as error:
            raise SyntaxError(str(error)) from error  # which is how Pillow asks the next format
        self._size = header.width, header.height
        self._mode = "RGBA" if ALPHA in sections else "RGB"
        with suppress(MlicError):  # which is raised when pixels are needed
            self.info.update(from_sections(sections).to_info())
        if header.quality:
            self.info["quality"] = header.quality
        self.tile = []
        self._coded = True

    def load(self) -> Image.core.PixelAccess | None:
        """Decodes the pixels, once. Raises OSError for a damaged stream."""
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
            Sections(bitstream.split(self._stream()).sections).check()
        except MlicError as error:
            raise OSError(str(error)) from error
        super().verify()

    def _stream(self) -> bytes:
        if self.fp is None:
            raise ValueError("the image is closed: its pixels cannot be read any more")
        self.fp.seek(0)
        data: bytes = self.fp.read()
        return data


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(bitstream.MAGIC)


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    options = image.encoderinfo
    rate = {key: options[key] for key in _RATE_OPTIONS if key in options}
    metadata = {key: options[key] for key in _METADATA_OPTIONS if key in options}
    if metadata:
        image = image.copy()  # with an info of its own
        if "exif" in metadata:
            image.info.pop("Raw profile type exif", None)
        for key, value in metadata.items():
            if isinstance(value, Image.Exif):
                value = value.tobytes()
            image.info[key] = value.encode() if isinstance(value, str) else value
    try:
        data = mlic_fast.compress(image, **rate)
    except MlicError as error:
        raise OSError(str(error)) from error
    assert isinstance(data, bytes)
    file.write(data)


Image.register_open(FORMAT, MlicImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".mlic")
Image.register_mime(FORMAT, "image/x-mlic")
