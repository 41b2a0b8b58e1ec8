"""The plug-in, used by what knows of Pillow alone."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lively import photograph
from PIL import Image, ImageOps

import mlic_fast
import mlic_fast.pillow


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = (photograph(70, 99)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def stream(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "MLIC", quality=30)
    return file.getvalue()


def test_there_and_back(picture: Image.Image, stream: bytes, tmp_path: Path) -> None:
    assert stream == mlic_fast.compress(picture, quality=30)
    path = tmp_path / "picture.mlic"
    picture.save(path, quality=30)
    assert path.read_bytes() == stream
    right = mlic_fast.decompress(stream, output="numpy")
    for source in (path, str(path), io.BytesIO(stream), path.open("rb")):
        with Image.open(source) as opened:
            assert (opened.format, opened.mode, opened.size) == ("MLIC", "RGB", (99, 70))
            assert opened.info["quality"] == 30 and opened.get_format_mimetype() == "image/x-mlic"
            assert opened.draft("L", (10, 10)) is None
            opened.seek(0)
            with pytest.raises(EOFError):
                opened.seek(1)
            assert np.array_equal(np.asarray(opened), right)
            assert np.array_equal(np.asarray(ImageOps.mirror(opened)), right[:, ::-1])
            assert np.array_equal(np.asarray(opened.copy()), right)
        if hasattr(source, "close"):
            source.close()
    opened = Image.open(path)
    opened.load()  # closes the file, as of other formats
    assert np.array_equal(np.asarray(opened.crop((0, 0, 9, 9))), right[:9, :9])
    thumbnail = Image.open(path)
    thumbnail.thumbnail((20, 20))
    assert thumbnail.size == (20, 14)


def test_registered() -> None:
    assert Image.registered_extensions()[".mlic"] == "MLIC"
    assert Image.MIME["MLIC"] == "image/x-mlic"


def test_nothing_is_loaded_until_pixels_are_needed(stream: bytes, tmp_path: Path) -> None:
    path = tmp_path / "picture.mlic"
    path.write_bytes(stream)
    code = (
        "import sys, mlic_fast.pillow; from PIL import Image;"
        "assert Image.open(sys.argv[1]).size == (99, 70);"
        "Image.open(sys.argv[1]).verify(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, path], check=True)


def test_damage_is_an_os_error(stream: bytes, tmp_path: Path) -> None:
    for damaged in (stream[:-1], stream[:-9] + b"\0" + stream[-8:]):
        opened = Image.open(io.BytesIO(damaged))
        with pytest.raises(OSError, match="cut short or altered"):
            opened.load()
        with pytest.raises(OSError, match="cut short or altered"):
            Image.open(io.BytesIO(damaged)).verify()
    for nothing in (stream[:9], stream[:2]):
        with pytest.raises(Image.UnidentifiedImageError):
            Image.open(io.BytesIO(nothing))


@pytest.mark.parametrize("end", ["close", "verify"])
def test_closed_images(end: str, stream: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mlic").write_bytes(stream)
    for source in (tmp_path / "a.mlic", io.BytesIO(stream)):
        opened = Image.open(source)
        getattr(opened, end)()
        with pytest.raises(ValueError, match="closed"):
            opened.load()


def test_bombs_are_pillows_business(stream: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(stream))


@pytest.mark.parametrize(("mode", "options"), [("LAB", {}), ("F", {}), ("RGB", {"quality": 0})])
def test_what_cannot_be_saved(mode: str, options: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "picture.mlic"
    with pytest.raises(OSError):
        Image.new(mode, (8, 8)).save(path, **options)
    assert not path.exists()
    Image.new("L", (8, 8), 77).save(path)
    assert abs(int(np.asarray(Image.open(path)).mean()) - 77) <= 2
