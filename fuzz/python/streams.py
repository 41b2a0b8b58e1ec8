"""Streams: the container, its sections, and the whole decoder with a tiny model.

Most inputs have a right checksum around damage, so that what lies behind it is reached. All ways to
read a stream give what they promise, or a subclass of `MlicError`; the engines `cpu` and `spec`
give the same latents, or errors of one type.
"""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import torch
from lively import BLOCKS, lively_model
from PIL import Image

import mlic_fast
import mlic_fast.pillow  # registers the format
from mlic_fast import bitstream, sections
from mlic_fast.sections import Sections

torch.set_num_threads(1)
MODEL = lively_model(BLOCKS)
CODEC, SPEC = (mlic_fast.load(MODEL, device="cpu", engine=name) for name in ("cpu", "spec"))
#: A decode costs time for each pixel that a header claims.
MAX_PIXELS = 1 << 14
Bend = Callable[[bytes], bytes]


def seeds() -> list[bytes]:
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a name"
    made = []
    for height, width, channels in ((1, 1, 3), (3, 9, 4), (9, 70, 4)):
        pixels = random.integers(0, 256, (height, width, channels), np.uint8) // 32 * 32
        picture = Image.fromarray(pixels)
        picture.info.update({"exif": exif.tobytes(), "xmp": b"<x/>", "icc_profile": bytes(200)})
        made += [CODEC.compress(pixels, 1), CODEC.compress(picture, 60)]
    return made


SEEDS = seeds()


def mutate(data: bytes, source: random.Random, bend: Bend) -> bytes:
    """A few parts of a stream are bent, and its checksums mended."""
    if source.random() < 0.1:
        return bend(data)
    try:
        header, carried, payload = bitstream.split(data)
    except mlic_fast.MlicError:
        header, carried, payload = bitstream.split(source.choice(SEEDS))
    odd = [0, 1, 2, 63, 64, 65, 127, 128, 16383, 65535, 65536, 1 << 20]
    width, height, quality = header.width, header.height, header.quality
    kind = header.arithmetic_version << 4 | header.lanes.bit_length() - 1
    if source.random() < 0.3:
        width = source.choice([*odd, width])
        height = source.choice([*odd, height])
    if source.random() < 0.2:
        kind = source.randrange(64)
    if source.random() < 0.2:
        quality = source.randrange(128)
    if source.random() < 0.5:
        payload = bend(payload)
    if source.random() < 0.5:
        carried = _other_sections(carried, source, bend)
    identity = header.model_id if source.random() < 0.95 else bytes(4)
    head = b"".join(
        (
            bitstream.MAGIC,
            bytes([kind]),
            identity,
            bytes([quality | 128 * bool(carried)]),
            bitstream.leb128(width),
            bitstream.leb128(height),
        )
    )
    crc = struct.pack("<I", zlib.crc32(payload, zlib.crc32(head)))
    length = len(carried) if source.random() < 0.9 else source.choice([0, 1 << 31, (1 << 35) - 1])
    return head + crc + (bitstream.leb128(length) + carried if carried else b"") + payload


def _other_sections(carried: bytes, source: random.Random, bend: Bend) -> bytes:
    if source.random() < 0.2:
        return bend(carried)
    contents = {}
    try:
        found = Sections(carried)
        for kind in sections.NAMES:
            if content := found.get(kind, MAX_PIXELS):
                contents[kind] = content
    except mlic_fast.MlicError:
        pass
    kind = source.choice([*sections.NAMES, 7, 255])
    contents[kind] = bend(contents.get(kind, b"Exif\0\0II*\0\x08\0\0\0"))
    if source.random() < 0.05:
        contents[kind] = bytes((1 << 24) + 1)  # deflates to little
    return sections.join(contents)


def check(data: bytes) -> None:
    seen = [
        _outcome(lambda: mlic_fast.info(data).metadata.summary()),
        _outcome(lambda: CODEC.decompress(data, "numpy", max_pixels=MAX_PIXELS)),
        _outcome(lambda: CODEC.decompress(data, "pil", max_pixels=MAX_PIXELS)),
    ]
    latents = _outcome(lambda: CODEC.decode_latents(data, max_pixels=MAX_PIXELS))
    if zlib.crc32(data) % 8 == 0:  # the specification takes its time
        again = _outcome(lambda: SPEC.decode_latents(data, max_pixels=MAX_PIXELS))
        same = (
            torch.equal(latents, again)
            if isinstance(latents, torch.Tensor) and isinstance(again, torch.Tensor)
            else latents is again
        )
        if not same:
            raise AssertionError(f"cpu: {latents}; spec: {again}")
    if isinstance(seen[1], np.ndarray) and not isinstance(latents, torch.Tensor):
        raise AssertionError(f"a picture, but no latents: {latents}")
    with warnings.catch_warnings():  # Pillow warns of sizes
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as picture:
                picture.verify()
        except (OSError, Image.DecompressionBombError):
            pass


def _outcome(work: Callable[[], object]) -> object:
    """What comes of it, or the type of the error."""
    try:
        return work()
    except mlic_fast.MlicError as error:
        return type(error)
