"""Files of which Pillow says less than it should."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_files import ODD, Entry, chunk, directory, exif, png
from PIL import Image, PngImagePlugin

from mlic_fast.errors import UnsupportedImageError
from mlic_fast.images import load_image, load_picture


@pytest.mark.parametrize("odd", ODD.values(), ids=list(ODD))
def test_photographs_stand_upright_whatever_else_their_exif_says(odd: dict[str, Any]) -> None:
    rows, columns = np.mgrid[0:8, 0:16]
    pixels = np.stack([rows * 30, columns * 15, rows * 0 + 128], -1).astype(np.uint8)
    turned = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    turned |= {5: pixels.transpose(1, 0, 2), 6: np.rot90(pixels, -1), 8: np.rot90(pixels)}
    turned[7] = turned[5][::-1, ::-1]
    for orientation, right in turned.items():
        file = io.BytesIO()
        data = exif(orientation, *odd.get("entries", ()), gps=odd.get("gps", ()))
        Image.fromarray(pixels).save(file, "PNG", exif=data[6:])
        image = load_image(Image.open(file)).permute(1, 2, 0).numpy()
        assert np.array_equal(image, right), orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif(77)[6:])
    assert load_image(Image.open(file)).shape == (3, 8, 16)


def tiff(tags: list[Entry], data: bytes, also: bytes = b"") -> bytes:
    """Pixels at 4000, something at 3000."""
    head = b"II*\0" + struct.pack("<I", 8) + directory(tags, 8)
    return head.ljust(3000, b"\0") + also.ljust(1000, b"\0") + data


def tags_of(width: int, height: int, bits: int, planar: bool) -> list[Entry]:
    size = width * height * bits // 8
    places = [4000 + i * size for i in range(3)] if planar else [4000]
    sizes = [size] * 3 if planar else [3 * size]
    return [
        (256, 4, 1, struct.pack("<I", width)),
        (257, 4, 1, struct.pack("<I", height)),
        (258, 3, 3, struct.pack("<3H", bits, bits, bits)),
        (259, 3, 1, struct.pack("<H", 1)),
        (262, 3, 1, struct.pack("<H", 2)),
        (273, 4, len(places), struct.pack(f"<{len(places)}I", *places)),
        (277, 3, 1, struct.pack("<H", 3)),
        (278, 4, 1, struct.pack("<I", height)),
        (279, 4, len(sizes), struct.pack(f"<{len(sizes)}I", *sizes)),
        (284, 3, 1, struct.pack("<H", 2 if planar else 1)),
    ]


@pytest.mark.parametrize("planar", [False, True])
def test_tiffs_of_8_and_16_bits(tmp_path: Path, planar: bool) -> None:
    path = tmp_path / "image.tif"
    planes = np.arange(3 * 6 * 10, dtype=np.uint8).reshape(3, 6, 10)
    order = planes if planar else planes.transpose(1, 2, 0)
    path.write_bytes(tiff(tags_of(10, 6, 8, planar), order.tobytes()))
    assert np.array_equal(load_image(path).numpy(), planes)
    path.write_bytes(tiff(tags_of(10, 6, 16, planar), order.astype("<u2").tobytes()))
    if planar:  # Pillow would take two bytes for two pixels
        with pytest.raises(UnsupportedImageError, match="8 bits a channel"):
            load_image(path)
        return
    path.write_bytes(tiff(tags_of(10, 6, 16, planar), (order * np.uint16(257)).tobytes()))
    with pytest.warns(UserWarning, match="rounded"):
        assert np.array_equal(load_image(path).numpy(), planes)


@pytest.mark.parametrize("sign", ["thumbnail", "DNG", "CR2"])
def test_raw_files_are_refused(tmp_path: Path, sign: str) -> None:
    tags = tags_of(10, 6, 8, False)
    if sign == "thumbnail":
        tags += [(254, 4, 1, struct.pack("<I", 1)), (330, 4, 1, struct.pack("<I", 3000))]
    elif sign == "DNG":
        tags.append((50706, 1, 4, b"\1\4\0\0"))
    data = tiff(tags, bytes(range(180)))
    if sign == "CR2":
        data = data[:4] + struct.pack("<I", 16) + b"CR\2\0" + bytes(4)
        data += directory(tags, 16)
        data = data.ljust(4000, b"\0") + bytes(range(180))
    path = tmp_path / "DSC_0001.NEF"
    path.write_bytes(data)
    with pytest.raises(UnsupportedImageError, match="raw file"):
        load_image(path)
    with Image.open(path) as picture, pytest.raises(UnsupportedImageError, match="raw file"):
        load_image(picture)


def test_small_formats(tmp_path: Path) -> None:
    plain = tmp_path / "plain.pbm"
    plain.write_text("P1\n4 2\n0 1 0 1\n1 0 1 0\n")
    assert load_image(plain)[0].tolist() == [[255, 0, 255, 0], [0, 255, 0, 255]]
    (tmp_path / "deep.ppm").write_text("P3\n1 1\n65535\n1 2000 65535\n")
    with pytest.warns(UserWarning, match="rounded"):
        assert load_image(tmp_path / "deep.ppm").flatten().tolist() == [0, 8, 255]
    bitmap = tmp_path / "rgb565.bmp"
    sizes = struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, 16, 3, 16, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    row = struct.pack("<4H", 0xF800, 0x7E0, 0x1F, 0xFFFF)
    bitmap.write_bytes(b"BM" + struct.pack("<IHHI", 82, 0, 0, 66) + sizes + masks + 2 * row)
    assert load_image(bitmap)[:, 0].T.tolist() == [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [255, 255, 255],
    ]


@pytest.mark.parametrize(
    ("depth", "row", "levels"),
    [
        (1, b"\x50", [0, 255, 0, 255]),
        (2, b"\x1b", [0, 85, 170, 255]),
        (4, b"\x01\x23", [0, 17, 34, 51]),
        (8, b"\0\1\2\3", [0, 1, 2, 3]),
    ],
)
def test_transparent_grey(tmp_path: Path, depth: int, row: bytes, levels: list[int]) -> None:
    path = tmp_path / "image.png"
    there, absent = (1, 0) if depth == 1 else (3 if depth == 4 else 1, 9 if depth > 2 else 4)
    path.write_bytes(png(4, 1, depth, b"\0" + row, chunk(b"tRNS", struct.pack(">H", there))))
    with pytest.raises(UnsupportedImageError, match="transparent"):
        load_image(path)
    picture = load_picture(path)
    clear = there * 255 // (2**depth - 1)
    assert picture.pixels[0].tolist() == [levels]
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[0 if level == clear else 255 for level in levels]]
    if depth > 2:
        path.write_bytes(png(4, 1, depth, b"\0" + row, chunk(b"tRNS", struct.pack(">H", absent))))
        assert load_image(path)[0, 0].tolist() == levels


@pytest.mark.parametrize("lace", [0, 1])
def test_pngs_whose_pixels_end_early(tmp_path: Path, lace: int) -> None:
    path = tmp_path / "image.png"
    sizes = [(3, 5)] if not lace else [(1, 1), (0, 1), (1, 1), (1, 2), (2, 1), (1, 3), (3, 2)]
    if lace:  # of 3x5: passes by their columns and rows
        sizes = [(1, 1), (0, 1), (1, 1), (1, 2), (2, 1), (1, 3), (3, 2)]
    pixels = b"".join((b"\0" + bytes([40] * w)) * h for w, h in sizes if w)
    path.write_bytes(png(3, 5, 8, pixels, lace=lace))
    assert load_image(path).unique().tolist() == [40]
    path.write_bytes(png(3, 5, 8, pixels[:-1], lace=lace))
    with pytest.raises(UnsupportedImageError, match="end after"):
        load_image(path)


def test_long_texts_are_no_matter(tmp_path: Path) -> None:
    """Before the pixels and after, from several threads; Pillow's limits stay what they were."""
    limits = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2 << 20)))
    data = png(3, 5, 8, 5 * b"\0\1\2\3", text)
    late = data[:-12] + text + data[-12:]
    for name, content in (("early.png", data), ("late.png", late)):
        (tmp_path / name).write_bytes(content)
    found: list[torch.Tensor] = []
    work = [
        threading.Thread(target=lambda n=name: found.append(load_image(tmp_path / n)))
        for name in 4 * ["early.png", "late.png"]
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(found) == 8 and all(image[0, 0].tolist() == [1, 2, 3] for image in found)
    now = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    assert now == limits
