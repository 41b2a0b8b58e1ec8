"""The examples of the README and of docs/using.md run as they are written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import skimage.data
import torch
from lively import SMALL, lively_model
from PIL import ExifTags, Image, ImageCms

from mlic_fast.cli import main

ROOT = Path(__file__).resolve().parents[1]
README, USING = ((ROOT / name).read_text() for name in ("README.md", "docs/using.md"))


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the examples take for granted, as the working directory."""
    monkeypatch.chdir(tmp_path)
    photograph = Image.fromarray(skimage.data.chelsea()[100:197, 150:281])
    photograph.save("photo.png")
    Path("photos").mkdir()
    for name in ("a.png", "b.webp"):
        photograph.save(Path("photos") / name)
    state = lively_model(SMALL["mlic_plus_plus"]).state_dict()
    torch.save({"state_dict": state}, "mlicpp.pth.tar")
    return tmp_path


def test_python_examples(files: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert tuple(names["image"].shape) == (3, 97, 131)
    assert tuple(names["x_hat"].shape) == (1, 3, 128, 192)


@pytest.mark.gpu
def test_examples_on_a_gpu(files: Path) -> None:
    names: dict[str, object] = {}
    for block in [*blocks("python"), *blocks("python cuda")]:
        exec(compile(block, "README.md", "exec"), names)
    assert [tuple(image.shape) for image in names["images"]] == [(3, 512, 768)] * 4


def run_commands(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in [line for block in blocks("console", text) for line in block.splitlines()]:
        program, *arguments = shlex.split(command, comments=True)
        assert program == "mlic-fast"
        assert main(arguments) == 0, capsys.readouterr().err


def test_using(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):  # of one size with the photograph
        Image.open("photo.png").save(f"photos/{name}.png")
    Path("photos/b.webp").unlink()
    exif, profile = Image.Exif(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    exif[ExifTags.Base.Make] = "a camera"
    Image.open("photo.png").save("photo.jpg", exif=exif, icc_profile=profile.tobytes())
    run_commands(USING, capsys)
    assert Path("compared.html").read_text().count("<tr><td>") == 3
    examples = blocks("python", USING)
    for number, example in enumerate(examples):
        Path(f"{number}.py").write_text(example)
        subprocess.run([sys.executable, f"{number}.py"], check=True, timeout=300)
    assert Path("photo.mlic").is_file()


def test_commands(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_commands(README, capsys)
    with Image.open("decoded.png") as decoded:
        assert decoded.size == (131, 97)
    assert sorted(path.name for path in Path("decoded").iterdir()) == ["a.png", "b.png"]
