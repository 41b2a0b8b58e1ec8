"""What a stream carries besides its latents: profile, EXIF, XMP, colour codes, transparency."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lively import photograph
from made_files import ODD, chunk, cmyk_profile, exif, grey_profile, matrix_profile, png
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin

import mlic_fast
import mlic_fast.pillow
from mlic_fast import Metadata, bitstream, sections
from mlic_fast.cli import main
from mlic_fast.errors import CorruptStreamError, MlicError, UnsupportedImageError
from mlic_fast.images import load_image, load_picture
from mlic_fast.sections import Sections

RGB = (photograph(33, 50)[0] * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
ALPHA = np.add.outer(np.arange(33) * 5, np.arange(50) * 7).astype(np.uint8)
RGBA = np.dstack([RGB, ALPHA])
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta tiff:Orientation="6" note="\xc3\xa9">' + 900 * b" " + b"</x:xmpmeta>"
MAKE = (0x10F, 2, 6, b"Canon\0")
ALL = Metadata(SRGB, exif(1, MAKE), XMP.replace(b'"6"', b'"1"'), b"\x0c\x0d\x00\x01", 0.45455)


@pytest.fixture(autouse=True, scope="module")
def loaded_once() -> Iterator[None]:
    """However often the command line asks for the model."""
    codec = mlic_fast.load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlic_fast, "load", lambda *_, **__: codec)
        yield


@pytest.fixture(scope="module")
def stream() -> bytes:
    """With all kinds of sections."""
    data = mlic_fast.compress(RGBA, quality=20, metadata=ALL)
    assert isinstance(data, bytes)
    return data


def test_all_there_and_back(stream: bytes) -> None:
    found = mlic_fast.info(io.BytesIO(stream))
    assert found.metadata == ALL and found.alpha and (found.width, found.height) == (50, 33)
    large = bitstream.write(bitstream.Header(1, 8, found.model_id, 20, 9000, 9000), b"")
    assert found.memory and found.memory < 200e6 < 10 * 9000**2 < (
        mlic_fast.info(large).memory or 0
    )
    assert found.size == len(stream) == mlic_fast.info(stream).size
    plain = mlic_fast.compress(RGB, quality=20)
    assert isinstance(plain, bytes)
    assert bitstream.read(stream) == bitstream.read(plain)
    assert mlic_fast.info(plain).metadata == Metadata() and not mlic_fast.info(plain).alpha
    array = mlic_fast.decompress(stream, output="numpy")
    assert array.shape == RGBA.shape and np.array_equal(array[:, :, 3], ALPHA)
    assert np.array_equal(array[:, :, :3], mlic_fast.decompress(plain, output="numpy"))
    tensors = mlic_fast.decompress([stream, plain])
    assert tensors[0].shape == (4, 33, 50) and tensors[1].shape == (3, 33, 50)
    assert mlic_fast.compress(torch.from_numpy(RGBA).permute(2, 0, 1), 20, metadata=ALL) == stream
    picture = mlic_fast.decompress(stream, output="pil")
    assert picture.mode == "RGBA" and np.array_equal(np.asarray(picture), array)
    for key, value in ALL.to_info().items():
        assert picture.info[key] == value
    opaque = np.dstack([RGB, np.full_like(ALPHA, 255)])
    assert mlic_fast.compress(opaque, quality=20) == plain


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("odd", ODD.values(), ids=list(ODD))
def test_orientation_becomes_1_and_all_else_stays(odd: dict[str, Any], order: int) -> None:
    before = exif(6, MAKE, *odd.get("entries", ()), gps=odd.get("gps", ()))
    after = exif(1, MAKE, *odd.get("entries", ()), gps=odd.get("gps", ()))
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG" if order else "JPEG", exif=before)
    picture = load_picture(file.getvalue())
    assert picture.pixels.shape == (3, 50, 33)
    assert picture.metadata == Metadata(exif=after)
    if order == 0:
        assert Metadata(exif=before[6:]).upright() == Metadata(exif=after)
    assert load_picture(file.getvalue(), metadata=False).metadata == Metadata()


def test_big_endian_and_damaged_exif() -> None:
    data = Image.Exif()
    data.endian = ">"
    data[ExifTags.Base.Orientation], data[ExifTags.Base.Model] = 8, "X"
    found = Metadata(exif=data.tobytes()).upright().exif
    again = Image.Exif()
    assert found is not None
    again.load(found)
    assert again[ExifTags.Base.Orientation] == 1 and again[ExifTags.Base.Model] == "X"
    for damaged in (b"garbage", b"II*\0", exif(6)[:20], b"MM\0*\xff\xff\xff\xff", exif(6)[:-9]):
        assert Metadata(exif=damaged).upright().exif is not None


def test_pixels_that_xmp_turns_are_turned_once() -> None:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "JPEG", xmp=XMP)
    picture = mlic_fast.decompress(mlic_fast.compress(file.getvalue(), quality=1), output="pil")
    assert picture.size == (33, 50)
    assert ImageOps.exif_transpose(picture).size == (33, 50)


def test_profiles_leave_pixels_alone_where_they_travel(tmp_path: Path) -> None:
    path, wide = tmp_path / "image.png", matrix_profile("bgr")
    for profile in (SRGB, wide, b"rubbish"):
        Image.fromarray(RGB).save(path, icc_profile=profile)
        picture = load_picture(path)
        assert picture.metadata == Metadata(icc_profile=profile)
        assert np.array_equal(picture.pixels.transpose(1, 2, 0), RGB)
    Image.fromarray(RGB).save(path, icc_profile=wide)
    data = mlic_fast.compress(path, quality=20)
    assert data == mlic_fast.compress(RGB, quality=20, metadata=Metadata(icc_profile=wide))
    converted = load_image(path)
    assert not np.array_equal(converted.permute(1, 2, 0), RGB)
    assert mlic_fast.compress(path, 20, metadata="none") == mlic_fast.compress(converted, 20)
    for mode, profile in (("L", grey_profile(1.0)), ("CMYK", cmyk_profile())):
        Image.fromarray(RGB).convert(mode).save(path.with_suffix(".tif"), icc_profile=profile)
        picture = load_picture(path.with_suffix(".tif"))
        assert picture.metadata.icc_profile is None
        assert np.array_equal(picture.pixels, load_image(path.with_suffix(".tif")))
    with pytest.raises(ValueError, match="metadata must be"):
        mlic_fast.compress(RGB, metadata="some")


def test_colour_codes_of_png(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    codes = chunk(b"cICP", ALL.cicp or b""), chunk(b"gAMA", struct.pack(">I", 45455))
    path.write_bytes(png(3, 1, 8, b"\0\1\2\3", *codes))
    assert load_picture(path).metadata == Metadata(cicp=ALL.cicp, gamma=0.45455)


def test_exif_that_is_elsewhere(tmp_path: Path) -> None:
    """As tags of a TIFF file, and as text in a PNG."""
    tags = Image.Exif()
    tags[ExifTags.Base.Make], tags[ExifTags.Base.Orientation] = "Canon", 6
    tags[ExifTags.Base.ExifOffset] = {ExifTags.Base.ISOSpeedRatings: 200}
    Image.fromarray(RGB).save(tmp_path / "image.tif", exif=tags.tobytes())
    text = PngImagePlugin.PngInfo()
    text.add_text(
        "Raw profile type exif", f"\nexif\n {len(tags.tobytes())}\n{tags.tobytes().hex()}"
    )
    Image.fromarray(RGB).save(tmp_path / "image.png", pnginfo=text)
    for name in ("image.tif", "image.png"):
        picture = load_picture(tmp_path / name)
        assert picture.pixels.shape == (3, 50, 33) and picture.metadata.exif
        found = Image.Exif()
        found.load(picture.metadata.exif)
        assert found[ExifTags.Base.Make] == "Canon"
        assert found.get_ifd(ExifTags.Base.ExifOffset)[ExifTags.Base.ISOSpeedRatings] == 200
        assert found.get(ExifTags.Base.Orientation, 1) == 1 and len(picture.metadata.exif) < 200


# -- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".jpg", ".avif", ".bmp", ".ppm"])
def test_the_command_line_restores_it(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = replace(ALL, cicp=None, gamma=None)
    Image.fromarray(RGB).save("in.jpg", exif=exif(1, MAKE), xmp=given.xmp, icc_profile=SRGB)
    assert main(["encode", "in.jpg", "out.mlic", "-q", "1"]) == 0
    assert mlic_fast.info("out.mlic").metadata == given
    assert main(["info", "out.mlic"]) == 0
    assert f"icc profile {len(SRGB)} bytes, exif " in capsys.readouterr().out
    assert main(["decode", "out.mlic", f"all{suffix}"]) == 0
    found = load_picture(f"all{suffix}").metadata
    if suffix in (".bmp", ".ppm"):
        assert found == Metadata()
    elif suffix in (".tif", ".avif"):  # which write EXIF data in their own order
        assert (found.icc_profile, found.xmp) == (given.icc_profile, given.xmp)
        assert found.exif and b"Canon\0" in found.exif
    else:
        assert found == given
    assert main(["decode", "out.mlic", f"none{suffix}", "--metadata", "none"]) == 0
    assert load_picture(f"none{suffix}").metadata == Metadata()
    assert main(["encode", "in.jpg", "bare.mlic", "--metadata", "none"]) == 0
    assert mlic_fast.info("bare.mlic").metadata == Metadata()


def test_transparent_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(RGBA).save("in.png")
    assert main(["encode", "in.png", "-q", "1"]) == 0 and main(["info", "in.mlic"]) == 0
    assert "50x33 pixels with transparency" in capsys.readouterr().out
    for suffix in (".webp", ".tif", ".PNG", ".avif"):
        assert main(["decode", "in.mlic", f"out{suffix}"]) == 0
        decoded = np.asarray(Image.open(f"out{suffix}"))
        assert suffix == ".avif" or np.array_equal(decoded[:, :, 3], ALPHA)
    for suffix in (".jpg", ".bmp", ".ppm"):
        assert main(["decode", "in.mlic", f"out{suffix}"]) == 1
        assert "transparent pixels, which" in capsys.readouterr().err
        assert not Path(f"out{suffix}").exists()


# -- the plug-in ------------------------------------------------------------------------------


def test_the_plug_in_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "a.mlic"
    picture = Image.fromarray(RGBA)
    picture.info |= ALL.to_info()
    picture.save(path, quality=20)
    with Image.open(path) as opened:
        assert opened.mode == "RGBA" and opened.getexif()[ExifTags.Base.Make] == "Canon"
        assert ALL.to_info().items() <= opened.info.items()
        assert np.array_equal(np.asarray(opened.getchannel("A")), ALPHA)
        opened.save(tmp_path / "b.png")
    assert load_picture(tmp_path / "b.png").metadata.icc_profile == SRGB
    tags = Image.Exif()
    tags[ExifTags.Base.Model] = "X"
    picture.save(path, quality=1, exif=tags, icc_profile=None, xmp="<é/>")
    with Image.open(path) as opened:
        assert opened.info["xmp"] == "<é/>".encode() and "icc_profile" not in opened.info
        assert dict(opened.getexif()) == dict(tags)
    tags[ExifTags.Base.Orientation] = 6
    picture.save(path, quality=1, exif=tags, target_bytes=None)
    with Image.open(path) as opened:
        assert opened.size == (33, 50) and opened.getexif()[ExifTags.Base.Orientation] == 1
    with pytest.raises(UnsupportedImageError, match="above the limit"):
        mlic_fast.compress(RGB, metadata=Metadata(xmp=bytes((1 << 24) + 1)))


# -- damage -----------------------------------------------------------------------------------


def test_every_altered_byte_is_noticed(stream: bytes) -> None:
    whole = mlic_fast.info(stream)
    assert whole.alpha
    start = len(stream) - len(bitstream.split(stream).sections) - whole.payload_size
    for at in range(14, start + len(bitstream.split(stream).sections), 7):
        damaged = bytearray(stream)
        damaged[at] ^= 1 << at % 8
        for read in (mlic_fast.info, lambda data: mlic_fast.decompress(data, output="pil")):
            if read is mlic_fast.info or at % 5 == 0:
                with pytest.raises(CorruptStreamError):
                    read(damaged)


def carrying(carried: bytes) -> bytes:
    plain = mlic_fast.compress(RGB[:8, :9], quality=1)
    assert isinstance(plain, bytes)
    return bitstream.write(*bitstream.read(plain), carried)


def section(kind: int, body: bytes) -> bytes:
    crc = zlib.crc32(body, zlib.crc32(bytes([kind])))
    return bytes([kind]) + bitstream.leb128(len(body)) + struct.pack("<I", crc) + body


def deflated(content: bytes) -> bytes:
    deflate = zlib.compressobj(9, wbits=-15)
    return deflate.compress(content) + deflate.flush()


def test_unknown_sections_are_skipped() -> None:
    known = section(3, deflated(b"<x/>"))
    data = carrying(known + section(77, b"anything") + section(255, b""))
    assert mlic_fast.info(data).metadata == Metadata(xmp=b"<x/>")
    assert mlic_fast.decompress(data).shape == (3, 8, 9)
    assert Image.open(io.BytesIO(data)).info["xmp"] == b"<x/>"


GOOD = deflated(b"content")
BOMB = deflated(bytes((1 << 24) + 1))


@pytest.mark.parametrize(
    "carried",
    [
        *(section(2, body) for body in (GOOD[:-1], GOOD + b"\0", b"", deflated(b""), BOMB)),
        *(section(4, deflated(bytes(n))) for n in (5, 1 << 20)),
        *(section(6, deflated(bytes(n))) for n in (71, 73, 1 << 24)),
        section(3, GOOD) + section(2, GOOD),
        section(2, GOOD) + section(2, GOOD),
        section(0, GOOD),
        section(2, GOOD)[:-1],
        b"\x02",
        b"\x02\xff\xff\xff\xff\xff",
        b"\x02\xff\xff\xff\xff\x0f" + bytes(4),
    ],
)
def test_invalid_sections_are_errors(carried: bytes) -> None:
    data = carrying(carried)
    with pytest.raises(CorruptStreamError):
        mlic_fast.decompress(data, output="pil")
    with pytest.raises(OSError):
        Image.open(io.BytesIO(data)).load()


def test_a_picture_outlives_its_metadata(tmp_path: Path) -> None:
    """Damaged, it can be left out; damaged transparency cannot."""
    (tmp_path / "a.mlic").write_bytes(carrying(section(2, GOOD[:-1])))
    target = tmp_path / "a.png"
    assert main(["decode", str(tmp_path / "a.mlic")]) == 1 and not target.exists()
    assert main(["decode", str(tmp_path / "a.mlic"), "--metadata", "none"]) == 0
    assert load_image(target).shape == (3, 8, 9)
    with pytest.raises(CorruptStreamError, match="transparency"):
        mlic_fast.decompress(carrying(section(6, GOOD)))


def test_sections_that_end_the_file() -> None:
    head = bitstream.write(bitstream.Header(1, 8, b"abcd", 5, 9, 8), b"", section(2, GOOD))
    for cut in range(1, len(head)):
        with pytest.raises(MlicError):
            bitstream.split(head[:cut])
        with pytest.raises(MlicError):
            bitstream.peek(io.BytesIO(head[:cut]))
    assert bitstream.split(head) == (bitstream.peek(io.BytesIO(head))[0], section(2, GOOD), b"")
    empty = bytearray(bitstream.write(bitstream.Header(1, 8, b"abcd", 5, 9, 8), b"x"))
    empty[7] |= 128
    empty[10:14] = struct.pack("<I", zlib.crc32(b"x", zlib.crc32(empty[:10])))
    with pytest.raises(CorruptStreamError, match="no length"):
        bitstream.split(bytes(empty[:14]) + b"\0x")


def test_names_of_sections_are_those_of_the_text() -> None:
    text = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    kinds = re.findall(r"^\| (\d) \|", text[text.index("## 8. Sections") :], re.MULTILINE)
    assert [int(kind) for kind in kinds] == sorted(sections.NAMES)
    assert Sections(sections.join({})).get(2) is None
