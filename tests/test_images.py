"""Reading and writing images: every kind of file a person has, and clear refusals of the others."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from made_files import cmyk_profile, grey_profile, matrix_profile, png16, png_of
from PIL import Image, ImageCms

from mlic_fast.atomic_files import write_atomically
from mlic_fast.errors import UnsupportedImageError
from mlic_fast.images import crop, load_image, load_picture, pad, save_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (13, 21, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (13, 21), dtype=np.uint8)


def chw(array: npt.NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(array.transpose(2, 0, 1).copy())


def grey(array: npt.NDArray[np.uint8]) -> torch.Tensor:
    return chw(np.stack([array] * 3, axis=-1))


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm"])
def test_lossless_files_round_trip(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image{suffix.upper()}"
    save_image(chw(RGB), path)
    back = load_image(path)
    assert back.dtype == torch.uint8 and back.is_contiguous() and torch.equal(back, chw(RGB))
    assert torch.equal(load_image(str(path)), back)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".avif"])
def test_lossy_files_come_close(suffix: str, tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(30), np.arange(40)).astype(np.uint8)
    save_image(grey(smooth), tmp_path / f"image{suffix}")
    back = load_image(tmp_path / f"image{suffix}")
    assert back.shape == (3, 30, 40)
    assert (back.int() - grey(smooth).int()).abs().max() <= 4


def test_arrays_tensors_and_pil_images_are_taken() -> None:
    expected = chw(RGB)
    assert torch.equal(load_image(RGB), expected)
    assert torch.equal(load_image(Image.fromarray(RGB)), expected)
    assert torch.equal(load_image(GREY), grey(GREY))
    assert torch.equal(load_image(expected), expected)
    assert torch.equal(load_image(RGB[::-1, ::2]), chw(RGB[::-1, ::2]))
    from_strided = load_image(torch.from_numpy(RGB).permute(2, 0, 1))
    assert from_strided.is_contiguous() and torch.equal(from_strided, expected)


def test_arrays_are_copied() -> None:
    array = RGB.copy()
    loaded = load_image(array)
    array[:] = 0
    assert torch.equal(loaded, chw(RGB))


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "PA", "RGBA", "RGBX", "La", "RGBa", "YCbCr", "HSV"]
)
def test_pil_modes_become_rgb(mode: str) -> None:
    base = Image.fromarray(GREY if mode in ("1", "L", "LA", "La") else RGB)
    if mode in ("La", "RGBa"):
        picture = base.convert(mode.upper()).convert(mode)
    elif mode == "PA":
        picture = base.quantize(16).convert("PA")
    else:
        picture = base.convert(mode)
    assert picture.mode == mode
    straight = picture.convert(mode.upper()) if mode in ("La", "RGBa") else picture
    expected = straight.convert("RGBA").convert("RGB")
    assert torch.equal(load_image(picture), chw(np.array(expected)))


@pytest.mark.parametrize("save_as", ["P", "L", "RGB", "RGBA", "LA"])
def test_transparency_is_refused_and_opacity_dropped(save_as: str, tmp_path: Path) -> None:
    path = tmp_path / "alpha.png"
    picture = Image.fromarray(GREY % 200 if save_as in ("L", "LA") else RGB // 2)
    if save_as.endswith("A"):
        picture = picture.convert(save_as)
        picture.save(path)
        assert load_image(path).shape == (3, 13, 21)
        alpha = Image.new("L", picture.size, 255)
        alpha.putpixel((20, 12), 254)
        picture.putalpha(alpha)
        picture.save(path)
    elif save_as == "P":
        picture = picture.quantize(8)
        picture.save(path, transparency=b"\xff" * 8)
        assert torch.equal(load_image(path), chw(np.array(picture.convert("RGB"))))
        picture.save(path, transparency=bytes([255, 0, 255, 255, 255, 255, 255, 255]))
    else:
        unused = 201 if save_as == "L" else (255, 255, 255)
        picture.save(path, transparency=unused)
        assert torch.equal(load_image(path), load_image(np.array(picture)))
        picture.save(path, transparency=picture.getpixel((3, 3)))
    with pytest.raises(UnsupportedImageError, match="transparent"):
        load_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    upright = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: RGB[::-1].transpose(1, 0, 2),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: RGB[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    assert torch.equal(load_image(tmp_path / "turned.png"), chw(upright))


def test_damaged_exif_data_do_not_matter(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "odd.png", exif=b"Exif\0\0garbage")
    assert torch.equal(load_image(tmp_path / "odd.png"), chw(RGB))


# ---- colour


def test_a_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    path = tmp_path / "swapped.png"
    Image.fromarray(RGB).save(path, icc_profile=matrix_profile("bgr"))
    difference = load_image(path).int() - chw(RGB[:, :, ::-1]).int()
    assert difference.abs().max() <= 12  # gamma 2.2 is not quite the curve of sRGB
    Image.fromarray(RGB).save(path, icc_profile=matrix_profile("rgb", gamma=1.0))
    assert load_image(path)[chw(RGB) == 55].min() > 120


def test_srgb_profiles_leave_every_pixel_alone(tmp_path: Path) -> None:
    every_level = np.arange(256, dtype=np.uint8).reshape(16, 16)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "srgb.png"
    Image.fromarray(RGB).save(path, icc_profile=srgb)
    assert torch.equal(load_image(path), chw(RGB))
    for profile in (
        srgb,
        b"rubbish",
        matrix_profile("bgr"),
    ):  # the last is not for greyscale pixels
        Image.fromarray(every_level).save(path, icc_profile=profile)
        assert torch.equal(load_image(path), grey(every_level))


def test_greyscale_profiles_are_converted(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "linear.png", icc_profile=grey_profile(1.0))
    converted = load_image(tmp_path / "linear.png")
    linear = GREY / 255
    expected = 255 * np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    assert np.abs(converted.numpy() - expected).max() < 1


def test_cmyk_needs_a_usable_profile(tmp_path: Path) -> None:
    inks = np.zeros((8, 16, 4), dtype=np.uint8)
    inks[:, 8:, 3] = 255
    picture = Image.frombytes("CMYK", (16, 8), inks.tobytes())
    picture.save(tmp_path / "print.tif", icc_profile=cmyk_profile())
    loaded = load_image(tmp_path / "print.tif")
    assert loaded[:, :, :8].min() >= 250 and loaded[:, :, 8:].max() <= 5
    picture.save(tmp_path / "plain.jpg")
    with pytest.raises(UnsupportedImageError, match="CMYK pixels without a colour profile"):
        load_image(tmp_path / "plain.jpg")
    picture.save(tmp_path / "odd.jpg", icc_profile=matrix_profile("rgb"))
    with pytest.raises(UnsupportedImageError, match="cannot be used"):
        load_image(tmp_path / "odd.jpg")


# ---- what is refused


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_png_is_rounded(colour_type: int, channels: int, tmp_path: Path) -> None:
    path = png16(tmp_path / "deep.png", colour_type, channels)
    with pytest.warns(UserWarning, match="deep.png has more than 8 bits a channel"):
        picture = load_picture(path)
        picture.warn()
    levels = [0, 1, 127, 255]
    assert np.array_equal(picture.pixels, np.broadcast_to(levels, (3, 3, 4)))
    assert (picture.alpha is None) == (channels % 2 == 1)
    assert picture.alpha is None or picture.alpha[0].tolist() == levels


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bits_are_rounded_to_the_nearest(
    colour_type: int, channels: int, interlaced: int, tmp_path: Path
) -> None:
    """With every filter of a PNG, interlaced or not."""
    levels = np.random.default_rng(0).integers(0, 1 << 16, (19, 13, channels), np.uint16)
    levels[0, :5] = np.array([128, 129, 385, 386, 65407])[:, None]
    path = tmp_path / "deep.png"
    path.write_bytes(png_of(levels, colour_type, interlaced))
    expected = np.rint(levels / 257).astype(np.uint8)
    with pytest.warns(UserWarning, match="rounded to 8"):
        picture = load_picture(path)
        picture.warn()
    colours = expected[..., :1].repeat(3, -1) if channels == 2 else expected[..., :3]
    assert np.array_equal(picture.pixels, colours.transpose(2, 0, 1))
    assert picture.alpha is None or np.array_equal(picture.alpha, expected[..., -1])
    assert (picture.alpha is None) == (channels == 3)


@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"compression": "zlib"}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiffs_upright(options: dict[str, Any], dtype: Any, tmp_path: Path) -> None:
    """Pillow turns them itself, but not grey ones that it maps into memory."""
    tifffile = pytest.importorskip("tifffile")
    largest = np.iinfo(dtype).max
    levels = np.random.default_rng(0).integers(0, largest, (19, 13, 3), dtype, endpoint=True)
    turned = (274, "H", 1, 6, True)
    for pixels, kind in ((levels, "rgb"), (levels[..., 0], "minisblack")):
        path = tmp_path / "turned.tif"
        tifffile.imwrite(path, pixels, photometric=kind, extratags=[turned], **options)
        expected = np.rot90(np.rint(pixels / (largest / 255)).astype(np.uint8), -1)
        found = load_picture(path).pixels
        assert np.array_equal(found[0], expected[..., 0] if kind == "rgb" else expected)


def test_other_deep_images(tmp_path: Path) -> None:
    levels = np.array([[0, 128, 129, 40000, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.tif")
    Image.fromarray(levels).save(tmp_path / "deep.jp2", irreversible=False)
    (tmp_path / "deep.pgm").write_bytes(b"P5 5 1 65535\n" + levels.astype(">u2").tobytes())
    for source in (*(tmp_path / name for name in ("deep.tif", "deep.jp2", "deep.pgm")), levels):
        image = Image.fromarray(levels) if source is levels else source
        with pytest.warns(UserWarning, match="rounded to 8"):
            assert load_image(image).tolist() == [[[0, 0, 1, 156, 255]]] * 3
    (tmp_path / "ten.pgm").write_bytes(b"P5 2 1 1023\n" + bytes([0, 0, 3, 255]))
    (tmp_path / "deep.ppm").write_bytes(b"P6 1 1 65535\n" + bytes([0, 0, 156, 64, 255, 255]))
    with pytest.warns(UserWarning):
        assert load_image(tmp_path / "ten.pgm")[0].tolist() == [[0, 255]]
        assert load_image(tmp_path / "deep.ppm").flatten().tolist() == [0, 156, 255]
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(GREY.astype(np.int32)).save(tmp_path / "wide.tif")
    for source in (tmp_path / "float.tif", tmp_path / "wide.tif", Image.new("I", (4, 4))):
        with pytest.raises(UnsupportedImageError, match="more than 8 bits"):
            load_image(source)
    Image.fromarray(RGB).save(tmp_path / "shallow.jp2", irreversible=False)
    assert torch.equal(load_image(tmp_path / "shallow.jp2"), chw(RGB))


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp", "pages.tif", "moving.png"])
def test_several_frames_are_refused(name: str, tmp_path: Path) -> None:
    first, second = Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())
    first.save(tmp_path / name, save_all=True, append_images=[second])
    with pytest.raises(UnsupportedImageError, match="2 frames or pages"):
        load_image(tmp_path / name)


def test_the_first_picture_of_an_mpo_photograph_is_taken(tmp_path: Path) -> None:
    flat = Image.new("RGB", (16, 8), (90, 90, 90))
    flat.save(tmp_path / "phone.mpo", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert load_image(tmp_path / "phone.mpo").shape == (3, 8, 16)


def test_files_that_are_not_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    save_image(chw(RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8)), tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60000])
    for name, message in [
        ("empty.png", "not an image"),
        ("text.png", "not an image"),
        ("cut.png", "damaged"),
        ("missing.png", "does not exist"),
        (".", "is not a file"),
    ]:
        with pytest.raises(UnsupportedImageError, match=message):
            load_image(tmp_path / name)


@pytest.mark.parametrize(
    "format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF", "JPEG2000"]
)
def test_damaged_files_raise_nothing_else(format: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, format=format)
    rng = np.random.default_rng(1)
    for _ in range(60):
        data = np.frombuffer(buffer.getvalue(), dtype=np.uint8).copy()
        data[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
        (tmp_path / "image").write_bytes(data[: rng.integers(1, len(data) + 1)].tobytes())
        try:
            load_image(tmp_path / "image")
        except UnsupportedImageError as error:
            assert "\n" not in str(error)


def test_sources_that_hold_no_pixels() -> None:
    read = io.BytesIO()
    Image.fromarray(RGB).save(read, format="PNG")
    for source, message in [
        (read, r"seek\(0\)"),
        (io.StringIO("text"), "'rb'"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8).to_sparse(), "sparse"),
        (3, "of the type int"),
    ]:
        with pytest.raises(UnsupportedImageError, match=message):
            load_image(source)  # type: ignore[arg-type]


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    for width, height in [(40000, 40000), (16385, 16384), (70000, 1)]:
        (tmp_path / "bomb.pgm").write_bytes(b"P5 %d %d 255\n" % (width, height))
        with pytest.raises(UnsupportedImageError, match="pixels"):
            load_image(tmp_path / "bomb.pgm")
    (tmp_path / "bomb.pgm").write_bytes(
        b"P5 16384 16384 255\n"
    )  # allowed, above what Pillow allows by itself
    with pytest.raises(UnsupportedImageError, match="damaged"):
        load_image(tmp_path / "bomb.pgm")
    with pytest.raises(UnsupportedImageError, match="65536x1"):
        load_image(torch.zeros(3, 1, 65536, dtype=torch.uint8))


def test_the_limit_of_pillow_is_left_as_it_was(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    save_image(chw(RGB), tmp_path / "image.png")
    threads = [
        threading.Thread(target=load_image, args=(tmp_path / "image.png",)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (RGB.astype(np.float32) / 255, "multiply values in 0 .. 1 by 255"),
        (torch.rand(3, 4, 4), "uint8, not float32"),
        (RGB.astype(np.uint16), "uint16"),
        (chw(RGB).numpy(), "channels first"),
        (torch.from_numpy(RGB), "channels last"),
        (np.zeros((4, 4, 5), np.uint8), r"\[4, 4, 5\]"),
        (np.zeros((4, 4, 4), np.uint8), "transparent"),
        (np.zeros((0, 4, 3), np.uint8), "4x0"),
        (torch.zeros(3, 4, 0, dtype=torch.uint8), "0x4"),
        (b"bytes", "not an image"),
        (None, "of the type NoneType"),
    ],
)
def test_unusable_arrays_are_refused(source: Any, message: str) -> None:
    with pytest.raises(UnsupportedImageError, match=message):
        load_image(source)


# ---- padding


@pytest.mark.parametrize(("height", "width"), [(1, 1), (63, 64), (65, 129), (128, 64)])
def test_pad_and_crop(height: int, width: int) -> None:
    image = torch.randint(1, 256, (3, height, width), dtype=torch.uint8)
    padded = pad(image)
    assert padded.shape[-2] % 64 == padded.shape[-1] % 64 == 0
    assert padded.shape[-2] - height < 64 and padded.shape[-1] - width < 64
    assert torch.equal(crop(padded, height, width), image)
    assert torch.equal(
        padded[:, height:, :width], image[:, -1:].expand_as(padded[:, height:, :width])
    )
    assert torch.equal(
        padded[:, :, width:], padded[:, :, width - 1 : width].expand_as(padded[:, :, width:])
    )
    assert pad(image.float()[None], 16).shape[-2:] == (-(-height // 16) * 16, -(-width // 16) * 16)


# ---- what goes out


def test_unknown_suffixes_are_refused_with_a_list(tmp_path: Path) -> None:
    for name in ("image.xyz", "image", "image.gif"):
        with pytest.raises(UnsupportedImageError, match=r"\.png \.webp"):
            save_image(chw(RGB), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedImageError, match=r"use \.png"):
        save_image(torch.zeros(3, 1, 20000, dtype=torch.uint8), tmp_path / "wide.webp")
    with pytest.raises(UnsupportedImageError, match="expected a uint8 tensor"):
        save_image(torch.zeros(3, 4, 4), tmp_path / "float.png")
    assert list(tmp_path.iterdir()) == []


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    (tmp_path / "link").symlink_to(path)
    write_atomically(tmp_path / "link", b"new")
    assert path.read_bytes() == b"new" and (tmp_path / "link").is_symlink()
    (tmp_path / "link").unlink()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"half")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="not a regular file"):
        write_atomically(tmp_path / "pipe", b"data")
    assert (tmp_path / "pipe").is_fifo()


def test_new_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    write_atomically(tmp_path / "written", b"")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
