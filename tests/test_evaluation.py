"""Metrics, BD-rate, codecs of Pillow and ``mlic-fast eval``."""

from __future__ import annotations

import csv
import json
import math
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mlic_fast
from mlic_fast.cli import main
from mlic_fast.cli.eval import _published as published_curves
from mlic_fast.evaluation import (
    PILLOW_CODECS,
    EvaluationError,
    PillowCodec,
    bd_rate,
    measure_curves,
    ms_ssim,
    ms_ssim_db,
    psnr,
    ssimulacra2,
)
from mlic_fast.evaluation.bdrate import pchip_slopes
from mlic_fast.evaluation.published import AGAINST_VTM, KODAK
from mlic_fast.images import load_image, save_image

MLIC, MLIC_PLUS_PLUS = (list(KODAK[name]) for name in ("MLIC", "MLIC++"))


def noise(seed: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return (image * 255).to(torch.uint8)


# ---------------------------------------------------------------------- metrics


def test_psnr() -> None:
    image = torch.full((3, 5, 7), 100, dtype=torch.uint8)
    assert psnr(image, image) == math.inf
    assert psnr(image, image + 1) == pytest.approx(48.1308036)
    assert psnr(image, image - 1) == psnr(image, image + 1)  # uint8 does not wrap around
    assert psnr(torch.zeros_like(image), torch.full_like(image, 255)) == 0
    with pytest.raises(ValueError, match="uint8"):
        psnr(image, image.float())
    with pytest.raises(ValueError, match="same shape"):
        psnr(image, image[:, 1:])


def test_psnr_of_a_large_image_does_not_overflow() -> None:
    black = torch.zeros(3, 2048, 2048, dtype=torch.uint8)
    assert psnr(black, black + 255) == 0


def test_ms_ssim() -> None:
    image = noise(0, 161, 200)
    assert ms_ssim(image, image) == pytest.approx(1)
    near, far = ((image.int() + d).clamp(0, 255).byte() for d in (3, 60))
    assert 0.5 < ms_ssim(image, far) < ms_ssim(image, near) < 1
    with pytest.raises(ValueError, match="161"):
        ms_ssim(image[:, :160], image[:, :160])
    assert ms_ssim_db(0.99) == pytest.approx(20) and ms_ssim_db(1.0) == math.inf


# ---------------------------------------------------------------------- BD-rate


def test_bd_rate_of_scaled_rates_is_the_scale() -> None:
    cheaper = [(0.8 * rate, quality) for rate, quality in MLIC]
    assert bd_rate(MLIC, cheaper) == pytest.approx(-20, abs=1e-9)
    assert bd_rate(cheaper, MLIC) == pytest.approx(25, abs=1e-9)
    assert bd_rate(MLIC, MLIC[::-1]) == 0


def test_bd_rate_of_straight_lines() -> None:
    # log10 rate = q against log10 rate = 0.5 + 0.5 q over q in 0..1: mean difference 0.25.
    anchor = [(10.0**q, q) for q in (-1, 0, 0.4, 1)]
    test = [(10 ** (0.5 + 0.5 * q), q) for q in (0, 0.5, 1, 2)]
    assert bd_rate(anchor, test) == pytest.approx(100 * (10**0.25 - 1), rel=1e-9)


def test_bd_rate_is_scipys_pchip_on_published_curves() -> None:
    interpolate = pytest.importorskip("scipy.interpolate")

    def integral(points: list[tuple[float, float]], low: float, high: float) -> float:
        rate, quality = np.array(points).T
        return float(interpolate.PchipInterpolator(quality, np.log(rate)).integrate(low, high))

    low, high = 29.2291, 37.3229
    mean = (integral(MLIC_PLUS_PLUS, low, high) - integral(MLIC, low, high)) / (high - low)
    result = bd_rate(MLIC, MLIC_PLUS_PLUS)
    assert result == pytest.approx(100 * (math.exp(mean) - 1), abs=1e-9)
    # Both papers' figures are against VTM-17.0.
    expected = (100 + AGAINST_VTM["MLIC++"]) / (100 + AGAINST_VTM["MLIC"])
    assert result == pytest.approx(100 * (expected - 1), abs=1)


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=8), st.integers(0, 2**32 - 1))
def test_slopes_are_scipys(values: list[int], seed: int) -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    x = np.cumsum(np.random.default_rng(seed).uniform(0.1, 3, len(values)))
    y = np.array(values, np.float64)
    expected = interpolate.PchipInterpolator(x, y).derivative()(x)
    assert pchip_slopes(x, y) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (MLIC[:1], "two points"),
        ([(0.1, 50.0), (0.2, 51.0)], "no common quality"),
        ([(0.1, 30.0), (0.2, 30.0)], "grows with rate"),
        ([(0.0, 30.0), (0.2, 31.0)], "positive"),
        ([(0.1, 30.0), (0.2, math.inf)], "finite"),
    ],
)
def test_curves_without_a_bd_rate(test: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        bd_rate(MLIC, test)


# ---------------------------------------------------------------------- measuring


@pytest.mark.parametrize("name", PILLOW_CODECS)
def test_pillow_codecs(name: str) -> None:
    if name == "jxl":
        pytest.importorskip("pillow_jxl", reason="pillow-jxl-plugin is not installed")
    image = noise(1, 61, 93)
    codec = PillowCodec(name)
    sizes, qualities = [], []
    for quality in (20, 90):
        data = codec.compress(image, quality=quality)
        sizes.append(len(data))
        qualities.append(psnr(image, codec.decompress(data)))
    assert sizes[0] < sizes[1] and 25 < qualities[0] < qualities[1]


def test_an_unknown_codec() -> None:
    with pytest.raises(EvaluationError, match="jpeg, webp, avif"):
        PillowCodec("jpg")


class Coarse:
    """Drops low bits; quality 100 drops none."""

    model = SimpleNamespace(config=SimpleNamespace(rates=6))

    def compress(self, image: Tensor, quality: int | None = None) -> bytes:
        shift = (100 - (100 if quality is None else quality)) // 20
        pixels = (image >> shift << shift).contiguous().numpy()
        return bytes(image.shape[1:]) + zlib.compress(pixels.tobytes())

    def decompress(self, data: bytes) -> Tensor:
        pixels = np.frombuffer(zlib.decompress(data[2:]), np.uint8).copy()
        return torch.from_numpy(pixels).reshape(3, data[0], data[1])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate([(40, 51), (170, 200)]):
        save_image(noise(i, *size), folder / f"{i}.png")
    return folder


def test_ssimulacra2() -> None:
    image = noise(1, 64, 80)
    near, far = image // 8 * 8, image // 64 * 64
    assert ssimulacra2(image, image) == pytest.approx(100)
    assert ssimulacra2(image, far) < ssimulacra2(image, near) < 95
    with pytest.raises(ValueError):
        ssimulacra2(image[:, :7], image[:, :7])


def test_measurements_are_of_real_bytes(images: Path) -> None:
    files = sorted(images.iterdir())
    codec = Coarse()
    settings = [("60", codec, 60), ("100", codec, 100)]
    loaded = [(file.name, load_image(file)) for file in files]
    (curve,) = measure_curves([("coarse", settings)], loaded, perceptual=True)
    point, lossless = curve.points
    small, large = point.images
    image = noise(0, 40, 51)
    assert small.bytes == len(codec.compress(image, 60))
    assert small.bits_per_pixel == 8 * small.bytes / (40 * 51)
    assert small.psnr == psnr(image, image >> 2 << 2)
    assert small.ms_ssim is None and large.ms_ssim is not None
    assert large.ms_ssim_db == ms_ssim_db(large.ms_ssim)
    assert point.mean.psnr == (small.psnr + large.psnr) / 2
    assert point.mean.ms_ssim is None
    assert point.mean.ssimulacra2 == (small.ssimulacra2 + large.ssimulacra2) / 2
    assert lossless.mean.psnr == math.inf and lossless.mean.ssimulacra2 == pytest.approx(100)


def call(*arguments: object) -> int:
    return main(["eval", *map(str, arguments)])


def test_command(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mlic_fast, "load", lambda *_, **__: Coarse())
    (images / "0.png").unlink()
    monkeypatch.setattr("mlic_fast.cli.eval._published", lambda files: KODAK)
    files = ["--json", tmp_path / "out.json", "--csv", tmp_path / "out.csv"]
    files += ["--plot", tmp_path / "out.svg"]
    assert call(images, "--quality", 20, 60, 100, "--against", "jpeg", *files) == 0
    printed = capsys.readouterr().out
    assert "mlic_fast photo quality 20" in printed and "jpeg 60" in printed and "BD-rate" in printed
    document = json.loads((tmp_path / "out.json").read_text())
    ours = [row for row in document["measurements"] if row["codec"] == "mlic_fast"]
    assert [row["image"] for row in ours] == ["1.png", "mean"] * 3
    assert ours[-1]["psnr"] is None  # lossless
    with (tmp_path / "out.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(document["measurements"])
    assert set(document["bd_rate_percent"]) == {"jpeg", *(f"{name} as published" for name in KODAK)}
    # Text is drawn as outlines, with the text itself in a comment.
    drawn = (tmp_path / "out.svg").read_text()
    assert all(f"<!-- {text}" in drawn for text in ("jpeg", "MLIC++ as published", "bits a pixel"))


def test_a_bad_image_costs_no_other(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mlic_fast, "load", lambda *_, **__: Coarse())
    read: list[str] = []

    def counted(path: Path) -> Tensor:
        read.append(path.name)
        return load_image(path)

    monkeypatch.setattr("mlic_fast.images.load_image", counted)
    (images / "broken.png").write_bytes((images / "1.png").read_bytes()[:600])
    assert call(images, images / "gone.png", "--json", tmp_path / "out.json") == 1
    assert sorted(read) == ["0.png", "1.png", "broken.png"]  # each of them once
    printed = capsys.readouterr().err
    assert "broken.png" in printed and "gone.png" in printed and "2 of 4 images" in printed
    document = json.loads((tmp_path / "out.json").read_text())
    assert {row["image"] for row in document["measurements"]} == {"0.png", "1.png", "mean"}


@pytest.mark.parametrize("name", ["out.gif", "nowhere/out.png"])
def test_command_that_could_not_write_its_picture(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(mlic_fast, "load", lambda *_, **__: pytest.fail("loaded in vain"))
    assert call(images, "--plot", tmp_path / name) in (1, 2)
    assert not (tmp_path / name).exists()


def test_published_curves_are_kodaks() -> None:
    kodak = [Path(f"kodim{i:02}.png") for i in range(1, 25)]
    assert published_curves(kodak) == KODAK
    assert published_curves(kodak[1:]) == published_curves([*kodak, Path("a.png")]) == {}


def test_command_without_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlic_fast, "load", lambda *_, **__: pytest.fail("loaded in vain"))
    assert call(tmp_path / "nowhere") == 2
