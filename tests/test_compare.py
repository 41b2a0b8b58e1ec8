"""The page of ``mlic-fast compare``, in a real browser: slider, zoom, difference, odd names."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from browser import CHROMIUM, Browser
from PIL import Image, ImageCms

import mlic_fast
from mlic_fast.cli import main
from mlic_fast.comparison import Entry, page
from mlic_fast.comparison.svg_chart import ticks
from mlic_fast.images import Picture, save_image, to_array

RED, BLUE, GREEN = (200, 40, 30), (30, 60, 210), (20, 160, 60)
EVIL = "</script><b id=evil>\"'&@@ROWS@@\x1b\udcff"


def flat(colour: tuple[int, int, int], height: int = 120, width: int = 200) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, height, width)


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "compare.html"
    entries = [
        Entry("red.png", 9000, Picture(flat(RED))),
        Entry(EVIL, 300, Picture(flat(BLUE)), psnr=31.5, ms_ssim=0.9),
        Entry("green.mlic", 700, Picture(flat(GREEN)), psnr=math.inf),
    ]
    path.write_bytes(page(entries).encode())
    return path


def colour_at(picture: npt.NDArray[np.uint8], browser: Browser, x: float, y: float = 0.2) -> str:
    """Name of the colour at a part of the stage."""
    left, top, width, height = browser.run(
        "(({x, y, width, height}) => [x, y, width, height])(stage.getBoundingClientRect())"
    )
    pixel = picture[round(top + y * height), round(left + x * width)].astype(int)
    names = {"red": RED, "blue": BLUE, "green": GREEN, "black": (0, 0, 0)}
    return min(names, key=lambda name: int(np.abs(pixel - names[name]).sum()))


@needs_chromium
@pytest.mark.parametrize(("width", "height"), [(1200, 900), (390, 844)])
def test_in_a_browser(written: Path, tmp_path: Path, width: int, height: int) -> None:
    with Browser(tmp_path / "profile", written, width, height) as browser:
        assert browser.run("document.querySelector('#evil')") is None
        assert browser.run("document.querySelectorAll('tbody tr').length") == 3
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")

        def row() -> list[str]:
            picture = browser.screenshot()
            return [colour_at(picture, browser, x) for x in (0.1, 0.4, 0.45, 0.55, 0.6, 0.9)]

        assert row() == [*["red"] * 3, *["blue"] * 3]
        # Keys on the slider.
        browser.run("slider.focus()")
        for _ in range(30):
            browser.press("ArrowLeft", 37)
        assert browser.run("Number(slider.value)") == 35
        assert row() == ["red", *["blue"] * 5]
        # Where a mouse takes the divider.
        x, y, wide, high = browser.run(
            "(({x, y, width, height}) => [x, y, width, height])(stage.getBoundingClientRect())"
        )
        browser.drag((x + 0.35 * wide, y + high / 2), (x + 0.57 * wide, y + high / 2))
        assert abs(browser.run("Number(slider.value)") - 57) <= 1
        assert row() == [*["red"] * 4, *["blue"] * 2]
        browser.press("s")
        assert row() == [*["blue"] * 4, *["red"] * 2]
        browser.run("byId('choose-right').value = 2")
        browser.run("byId('choose-right').dispatchEvent(new Event('change', {bubbles: true}))")
        assert row() == [*["blue"] * 4, *["green"] * 2]
        # Zoom keeps the middle where it is; at one to one the picture has its own size.
        fitted = browser.run("scale")
        browser.press("+")
        assert browser.run("scale") == pytest.approx(1.5 * fitted)
        browser.press("1")
        if fitted < 1:
            assert browser.run("scale") == 1
        browser.press("0")
        assert browser.run("scale") == pytest.approx(fitted)
        # The difference of a picture and itself is black; of others it is theirs, times the gain.
        browser.run("show('left', 2)")
        browser.press("d")
        assert browser.screenshot()[round(y + high / 2), round(x + wide / 2)].max() <= 1
        browser.run("byId('gain').value = 2; show('left', 0)")
        browser.run("draw()")
        pixel = browser.screenshot()[round(y + high / 2), round(x + wide / 2)].astype(int)
        expected = np.minimum(2 * np.abs(np.subtract(RED, GREEN)), 255)
        assert np.abs(pixel - expected).max() <= 2


def test_page_loads_nothing(written: Path) -> None:
    text = written.read_text()
    assert "@@" not in text.replace("@@ROWS@@\x1b", "")
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("data:image/png;base64,") == 3
    assert "equal" in text and "31.500" in text


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    image = torch.arange(3 * 170 * 180).reshape(3, 170, 180).to(torch.uint8)
    save_image(image, "a.png")
    save_image(image, "b<i>.jpg")
    Path("c.mlic").write_bytes(mlic_fast.compress(image))  # type: ignore[arg-type]
    assert main(["compare", "a.png", "b<i>.jpg", "c.mlic", "a.png"]) == 0
    text = Path("compare.html").read_text()
    assert text.count("<tr><td>") == 4 and "b&lt;i&gt;.jpg" in text and "<i>" not in text
    assert main(["compare", "a.png", "c.mlic"]) == 2  # it exists
    assert main(["compare", "a.png", "c.mlic", "--force"]) == 0
    save_image(image[:, 1:], "small.png")
    assert main(["compare", "a.png", "small.png", "-o", "new.html"]) == 1
    assert "180x169" in capsys.readouterr().err and not os.path.exists("new.html")
    assert main(["compare", "a.png", "missing.png", "-o", "new.html"]) == 1
    assert main(["compare", "a.png", "c.mlic", "-o", "new.png"]) == 2


def test_profiles_and_transparency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture and its stream are compared in the colours that both are in."""
    monkeypatch.chdir(tmp_path)
    pixels = (torch.arange(4 * 70 * 80) // 90 % 251).reshape(4, 70, 80).to(torch.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(to_array(pixels)).save("a.png", icc_profile=profile)
    Path("b.mlic").write_bytes(mlic_fast.compress("a.png", quality=90))  # type: ignore[arg-type]
    assert main(["compare", "a.png", "b.mlic"]) == 0
    found = re.findall(r"base64,([^\"]+)", Path("compare.html").read_text())
    for data in found:
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.mode == "RGBA" and picture.info["icc_profile"] == profile
            assert np.array_equal(np.array(picture)[..., 3], pixels[3])


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (31.5, 31.5), (0.0, 0.013), (27.1, 44.9), (-3.0, 1e6), (0.0, 0.0)]
)
def test_ticks(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low <= high <= found[-1] and 2 <= len(found) <= 8
