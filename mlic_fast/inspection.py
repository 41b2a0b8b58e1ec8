"""What a stream says of itself, without a model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import bitstream, sections
from .engine.bands import bands
from .errors import CorruptStreamError
from .metadata import Metadata, from_sections
from .models.config import ALIGNMENT, PRESETS

#: Bytes that decoding took (docs/using.md, "Memory"), rounded up: the process itself; the
#: transforms, for each pixel that they take at a time and for each pixel of the picture; coding,
#: for each pixel of the picture.
_BYTES, _AT_A_TIME, _MORE, _CODED = 178_000_000, 54, 10, 19.2


@dataclass(frozen=True)
class Info:
    """What a stream says of itself.

    Attributes:
        size: of the whole stream in bytes; ``payload_size`` of the latents alone.
        width: of the picture in pixels; ``height`` likewise.
        quality: 1 to 100, None for a model with a single rate.
        alpha: whether the picture is not opaque.
        metadata: what it carries.
        model_id: the 4 bytes that name the model.
        model: the name of a model that comes with the package, None for another one.
        arithmetic_version: see docs/format.md; 0 is provisional.
        lanes: of the range coder.
    """

    size: int
    payload_size: int
    width: int
    height: int
    quality: int | None
    alpha: bool
    metadata: Metadata
    model_id: bytes
    model: str | None
    arithmetic_version: int
    lanes: int

    @property
    def memory(self) -> int | None:
        """About how many bytes a process takes at most while it decodes on a CPU.

        None for models that do not come with the package.
        """
        if self.model is None:
            return None
        config = PRESETS[self.model]
        halo = config.transform_kind.synthesis_halo(config)
        width, height = (-(-side // ALIGNMENT) * ALIGNMENT for side in (self.width, self.height))
        pixels = width * height
        seen = [band.seen for band in bands(height // 16, width // 16, halo)]
        at_a_time = 16 * width * max(rows.stop - rows.start for rows in seen)
        transforms = _AT_A_TIME * at_a_time + _MORE * pixels
        beside = 2 * self.size + (pixels if self.alpha else 0)
        return _BYTES + round(max(transforms, _CODED * pixels)) + beside

    @property
    def bits_per_pixel(self) -> float:
        """Of the whole stream."""
        return 8 * self.size / (self.width * self.height)


def info(data: Any) -> Info:
    """What a stream says of itself; every byte of it is checked, but no pixel decoded.

    Args:
        data: bytes, the path of a file, or an open file.

    Raises CorruptStreamError or UnsupportedStreamError for what is no sound stream, OSError for a
    file that cannot be read.
    """
    data = stream_bytes(data)
    header, carried, payload = bitstream.split(data)
    found = sections.Sections(carried)
    found.check()
    return Info(
        size=len(data),
        payload_size=len(payload),
        width=header.width,
        height=header.height,
        quality=header.quality or None,
        alpha=sections.ALPHA in found,
        metadata=from_sections(found),
        model_id=header.model_id,
        model=_shipped_models().get(header.model_id),
        arithmetic_version=header.arithmetic_version,
        lanes=header.lanes,
    )


def stream_bytes(data: Any) -> Any:
    """What a file holds, or a path; anything else as it is."""
    if isinstance(data, (str, os.PathLike)):
        return Path(data).read_bytes()
    if not hasattr(data, "read"):
        return data
    read = data.read()
    if len(read) == 0:
        raise CorruptStreamError(
            "the stream is empty, or its file was read to its end before; call its seek(0) first"
        )
    return read


def _shipped_models() -> dict[bytes, str]:
    """Names of the models that come with the package, by what identifies them in a stream.

    The identity is read from the files' metadata, so that no model is loaded.
    """
    from safetensors import safe_open

    import mlic_fast

    names = {}
    for path in (Path(mlic_fast.__file__).parent / "weights").glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            identity = (file.metadata() or {}).get("identity", "")
        names[bytes.fromhex(identity)[: bitstream.MODEL_ID_BYTES]] = path.stem
    return names
