"""The command line: files, folders, patterns, exit codes, and that nothing is half-written.

A codec that only stores the pixels stands in for the real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import mlic_fast
from mlic_fast import bitstream
from mlic_fast.bitstream import Header
from mlic_fast.cli import COMMANDS, main
from mlic_fast.errors import CheckpointError, MlicError, WrongModelError
from mlic_fast.images import ImageSource, load_image, load_picture, save_image

MODEL_ID = b"\xde\xad\xbe\xef"
NO_MEMORY = "there is not enough memory; take a smaller image or a machine with more"


class StoringCodec:
    """Compresses with zlib, in the real container."""

    engine = "cpu"

    def compress(self, source: ImageSource, quality: int | None = None) -> bytes:
        image = load_picture(source).pixels
        _, height, width = image.shape
        header = Header(0, 8, MODEL_ID, quality or 0, width, height)
        return bitstream.write(header, zlib.compress(np.asarray(image).tobytes()))

    def decompress(self, data: bytes, output: str, max_pixels: int = 1 << 27) -> np.ndarray:
        header, payload = bitstream.read(data)
        if header.model_id != MODEL_ID:
            raise WrongModelError("made with another model")
        pixels = np.frombuffer(zlib.decompress(payload), dtype=np.uint8)
        return pixels.reshape(3, header.height, header.width).transpose(1, 2, 0)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Put the storing codec in place; the list receives the arguments of every load."""
    calls: list[tuple[Any, ...]] = []

    def load(model: str, *, device: str, engine: str) -> StoringCodec:
        calls.append((model, device, engine))
        if model == "missing.pth":
            raise CheckpointError("missing.pth cannot be read;\nname another file")
        return StoringCodec()

    monkeypatch.setattr(mlic_fast, "load", load, raising=False)
    return calls


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: two images, a hidden one, one in a subfolder and a text file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more").mkdir()
    for i, name in enumerate(["a.png", "b.c.PNG", ".hidden.png", "more/d.png"]):
        save_image(photograph(i), tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def photograph(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, 5 + seed, 9), dtype=torch.uint8, generator=generator)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("mlic-fast: ") for line in lines)
    return lines


@pytest.mark.usefixtures("folder", "loads")
def test_one_file_there_and_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "a.png", "out.mlic", "--quality", "60"]) == 0
    size = os.path.getsize("out.mlic")
    line = capsys.readouterr().out
    assert line.startswith(f"a.png -> out.mlic  9x5  {size} bytes  {8 * size / 45:.4f} bpp  ")
    assert main(["decode", "out.mlic", "back.webp"]) == 0
    assert torch.equal(load_image("back.webp"), photograph(0))
    assert bitstream.read(Path("out.mlic").read_bytes())[0].quality == 60


def test_model_options_are_handed_on(folder: Path, loads: list[tuple[Any, ...]]) -> None:
    assert main(["encode", "a.png"]) == 0
    options = ["--model", "my.pth", "--device", "cuda", "--engine", "gpu"]
    assert main(["decode", "a.mlic", "x.png", *options]) == 0
    assert loads == [("photo", "auto", "auto"), ("my.pth", "cuda", "gpu")]


@pytest.mark.usefixtures("loads")
def test_folders_stand_for_their_images(folder: Path) -> None:
    before = files(folder)
    assert main(["encode", "."]) == 0
    assert files(folder) - before == {"a.mlic", "b.c.mlic"}
    assert main(["decode", ".", "--output-dir", "out/deep"]) == 0
    assert files(folder / "out") == {"deep/a.png", "deep/b.c.png"}
    assert torch.equal(load_image("out/deep/b.c.png"), photograph(1))


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize(
    ("patterns", "made"),
    [
        (["*.png"], {"a.mlic"}),
        (["**/*.png"], {"a.mlic", "d.mlic"}),
        (["**"], {"a.mlic", "b.c.mlic", "d.mlic"}),
        (["a.*", "./a.png", "more"], {"a.mlic", "d.mlic"}),
    ],
)
def test_quoted_patterns(patterns: list[str], made: set[str], folder: Path) -> None:
    (folder / "notes.txt").unlink()
    assert main(["encode", *patterns, "--output-dir", "out"]) == 0
    assert files(folder / "out") == made


@pytest.mark.usefixtures("loads")
def test_a_name_with_brackets_is_a_name(folder: Path) -> None:
    (folder / "a.png").rename(folder / "a[1].png")
    assert main(["encode", "a[1].png"]) == 0
    assert main(["decode", "a[1].mlic", "back.png"]) == 0


@pytest.mark.usefixtures("loads")
def test_json_is_a_line_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "a.png", "notes.txt", "--json"]) == 1
    captured = capsys.readouterr()
    good, bad = map(json.loads, captured.out.splitlines())
    size = (folder / "a.mlic").stat().st_size
    assert good.pop("seconds") >= 0
    assert good == {
        "input": "a.png",
        "output": "a.mlic",
        "bytes": size,
        "width": 9,
        "height": 5,
        "bits_per_pixel": 8 * size / 45,
    }
    assert bad["input"] == "notes.txt" and "not an image" in bad["error"]
    assert main(["encode", "a.png", "-", "--json"]) == 2
    assert capsys.readouterr().out == ""
    assert captured.err.count("\n") == 2


@pytest.mark.usefixtures("loads")
def test_others_go_on_after_a_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "z.png").write_bytes(b"")
    assert main(["encode", "missing.png", "z.png", "nothing*", "a.png"]) == 1
    assert (folder / "a.mlic").exists() and not (folder / "z.mlic").exists()
    missing, empty, nothing, count = errors(capsys)
    assert "missing.png does not exist" in missing
    assert "z.png is not an image" in empty
    assert "nothing matches nothing*" in nothing
    assert count.endswith("3 of 4 files failed")


@pytest.mark.usefixtures("loads")
def test_existing_files_are_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.mlic").write_text("precious")
    assert main(["encode", "a.png"]) == 1
    assert errors(capsys) == [
        "mlic-fast: error: a.mlic exists already; use --force to overwrite it"
    ]
    assert (folder / "a.mlic").read_text() == "precious"
    assert main(["encode", "a.png", "--force"]) == 0
    assert main(["decode", "a.mlic", "--force"]) == 0
    assert torch.equal(load_image("a.png"), photograph(0))


def test_no_model_is_loaded_where_there_is_no_work(
    folder: Path, loads: list[tuple[Any, ...]]
) -> None:
    (folder / "more" / "empty").mkdir()
    assert main(["encode", "missing.png"]) == 1
    assert main(["encode", "more/empty"]) == 1
    assert loads == []


@pytest.mark.usefixtures("loads")
def test_a_model_that_cannot_be_loaded_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", ".", "--model", "missing.pth"]) == 1
    assert errors(capsys) == ["mlic-fast: error: missing.pth cannot be read; name another file"]


@pytest.mark.usefixtures("folder", "loads")
@pytest.mark.parametrize(
    "arguments",
    [
        ["encode"],
        ["encode", "a.png", "--quality", "0"],
        ["encode", "a.png", "--quality", "sharp"],
        ["encode", "a.png", "--unknown"],
        ["encode", "a.png", "more/d.png", "one.mlic"],
        ["encode", "a.png", "one.mlic", "--output-dir", "out"],
        ["encode", "a.png", "nowhere/one.mlic"],
        ["decode", ".", "one.png"],
        ["unknown"],
        [],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], folder: Path) -> None:
    (folder / "x.mlic").touch()
    (folder / "y.mlic").touch()
    before = files(folder)
    try:
        code: Any = main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert files(folder) == before


@pytest.mark.usefixtures("loads")
def test_names_that_differ_in_their_suffix_alone(folder: Path) -> None:
    save_image(photograph(3), folder / "a.jpg")
    assert main(["encode", "."]) == 0
    assert {path.name for path in folder.glob("*.mlic")} == {
        *("a.jpg.mlic", "a.png.mlic", "b.c.mlic")
    }


@pytest.mark.usefixtures("loads")
def test_the_second_of_one_name_is_left(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sub").mkdir(exist_ok=True)
    save_image(photograph(3), folder / "sub" / "a.png")
    assert main(["encode", "a.png", "sub/a.png", "b.c.PNG", "--output-dir", "out"]) == 1
    assert "sub/a.png would be written to out/a.mlic, as a.png is" in capsys.readouterr().err
    assert {path.name for path in (folder / "out").iterdir()} == {"a.mlic", "b.c.mlic"}


@pytest.mark.usefixtures("loads")
def test_links(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has a result of its own; what leads nowhere is said."""
    (folder / "link.png").symlink_to("a.png")
    (folder / "lost.png").symlink_to("nowhere.png")
    assert main(["encode", "."]) == 1
    assert "lost.png is a link to nowhere.png, which does not exist" in capsys.readouterr().err
    assert {path.name for path in folder.glob("*.mlic")} == {"a.mlic", "b.c.mlic", "link.mlic"}


@pytest.mark.usefixtures("loads")
def test_odd_names_cost_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (b"caf\xe9.png", b"x" * 251 + b".png", b"bell\a\x1b[31m.png"):
        (folder / os.fsdecode(name)).write_bytes((folder / "a.png").read_bytes())
    assert main(["encode", ".", "y" * 300 + ".png"]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("File name too long") == 2
    assert r"bell\x07\x1b[31m.png" in printed.out and "\x1b" not in printed.out
    made = {os.fsencode(path.name) for path in folder.glob("*.mlic")}
    assert made == {b"caf\xe9.mlic", b"bell\a\x1b[31m.mlic", b"a.mlic", b"b.c.mlic"}


def test_names_that_the_locale_cannot_print(folder: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("no image")
    done = subprocess.run(
        [sys.executable, "-m", "mlic_fast.cli", "encode", os.fsdecode(b"caf\xe9.txt"), "gone"],
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        cwd=folder,
    )
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert rb"caf\udce9.txt" in done.stderr and b"gone does not exist" in done.stderr


def test_a_folder_without_permission_and_odd_names_cost_nothing_else(folder: Path) -> None:
    """In a strict locale; root is held to permissions, too."""
    stream = StoringCodec().compress(load_picture(folder / "a.png"))
    odd = os.fsdecode(b"caf\xe9.mlic")
    (folder / "closed").mkdir()
    for name in ("a.mlic", odd, "closed/b.mlic"):
        (folder / name).write_bytes(stream)
    (folder / "closed").chmod(0)
    capabilities = "-dac_override,-dac_read_search"
    held = ["setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}"]
    done = subprocess.run(
        [
            *(held if os.geteuid() == 0 else []),
            *(sys.executable, "-m", "mlic_fast.cli", "info"),
            *("closed/b.mlic", odd, "a.mlic", "--json"),
        ],
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        cwd=folder,
    )
    (folder / "closed").chmod(0o700)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert "Permission denied" in results[0]["error"]
    assert [result["input"] for result in results[1:]] == [odd, "a.mlic"]
    assert all(result["width"] == 9 for result in results[1:])


@pytest.mark.usefixtures("loads")
def test_empty_arguments_name_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "", "a.png"]) == 1
    assert "names no file" in capsys.readouterr().err
    assert {path.name for path in folder.glob("*.mlic")} == {"a.mlic"}
    assert main(["encode", ""]) == 1
    assert main(["encode", "b.c.PNG", ""]) == 1
    assert main(["decode", "a.mlic", "--output-dir", ""]) == 2


@pytest.mark.usefixtures("loads")
def test_a_folder_in_the_place_of_the_output(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "photos").mkdir()
    assert main(["encode", "a.png", "photos"]) == 2
    assert "--output-dir photos" in capsys.readouterr().err
    assert not list(folder.glob("**/*.mlic"))


def test_standard_streams(folder: Path, loads: list[tuple[Any, ...]]) -> None:
    """Through real pipes, with the storing codec in a process of its own."""
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import mlic_fast, test_cli;"
        "mlic_fast.load = lambda *a, **k: test_cli.StoringCodec();"
        "from mlic_fast.cli import main; sys.exit(main())"
    )

    def run(*arguments: str, data: bytes) -> bytes:
        command = [sys.executable, "-c", code, str(Path(__file__).parent), *arguments]
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout

    image = (folder / "a.png").read_bytes()
    stream = run("encode", "-", "-", data=image)
    assert stream == run("encode", "a.png", "-", data=b"") == run("encode", "-", data=image)
    (folder / "a.mlic").write_bytes(stream)
    for decoded in (run("decode", "-", data=stream), run("decode", "a.mlic", "-", data=b"")):
        assert torch.equal(load_image(decoded), load_image(image))
    run("decode", "-", "out.png", data=stream)
    assert torch.equal(load_image(folder / "out.png"), load_image(image))


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
def test_closed_streams(folder: Path, closed: str) -> None:
    """A second file is not there: the exit code tells."""
    command = f"{sys.executable} -m mlic_fast.cli info a.mlic b.mlic {closed}"
    stream = StoringCodec().compress(load_picture(folder / "a.png"))
    (folder / "a.mlic").write_bytes(stream)
    assert subprocess.run(command, shell=True, cwd=folder).returncode == 1
    (folder / "b.mlic").write_bytes(stream)
    assert subprocess.run(command, shell=True, cwd=folder).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("encode a.png -o - >&-", "standard output is closed"),
        ("encode - out.mlic <&-", "standard input is closed"),
        ("info - <&-", "standard input is closed"),
    ],
)
def test_results_for_closed_streams_are_errors(folder: Path, arguments: str, problem: str) -> None:
    command = f"{sys.executable} -m mlic_fast.cli {arguments}"
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
    assert done.returncode != 0 and problem in done.stderr and "Traceback" not in done.stderr


@pytest.mark.usefixtures("loads")
def test_notes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was changed is said, beside the results."""
    Image.fromarray(np.full((5, 9), 40000, np.uint16)).save(folder / "deep.png")
    assert main(["encode", "deep.png", "a.png", "--json"]) == 0
    printed = capsys.readouterr()
    note = "deep.png has more than 8 bits a channel; they are rounded to 8"
    assert printed.err == f"mlic-fast: note: {note}\n"
    deep, shallow = map(json.loads, printed.out.splitlines())
    assert deep["notes"] == [note] and "notes" not in shallow
    assert main(["encode", "deep.png", "--quiet", "--force"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["decode", "deep.mlic", "--force"]) == 0
    assert torch.equal(load_image("deep.png"), torch.full((3, 5, 9), 156, dtype=torch.uint8))


@pytest.mark.usefixtures("loads")
def test_trees(folder: Path) -> None:
    (folder / "more" / ".hidden").mkdir()
    (folder / "more" / ".hidden" / "e.png").write_bytes((folder / "a.png").read_bytes())
    assert main(["encode", ".", "-r", "--output-dir", "out", "--quiet", "-j", "1"]) == 0
    assert files(folder / "out") == {"a.mlic", "b.c.mlic", "more/d.mlic"}
    assert main(["decode", "out", "--recursive"]) == 0
    assert {name for name in files(folder / "out") if name.endswith(".png")} == {
        *("a.png", "b.c.png", "more/d.png")
    }


@pytest.mark.usefixtures("loads")
def test_skipping_what_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.mlic").write_bytes(b"there")
    assert main(["encode", ".", "--skip-existing"]) == 0
    assert (folder / "a.mlic").read_bytes() == b"there" and (folder / "b.c.mlic").is_file()
    assert capsys.readouterr().out.endswith("1 of 2 files were left, as their results exist\n")
    assert main(["encode", ".", "--skip-existing", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"input": name, "output": f"{name[:-4]}.mlic", "left": True}
        for name in ("a.png", "b.c.PNG")
    ]
    # Problems of another kind than a result that exists stay problems.
    assert main(["encode", "a.mlic", "--skip-existing"]) == 1
    assert "mlic-fast decode a.mlic" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["encode", ".", "--skip-existing", "--force"])
    capsys.readouterr()
    assert main(["encode", "a.png", "-o", "new.mlic", "--quiet"]) == 0
    assert main(["decode", "new.mlic", "-o", "new.bmp", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert torch.equal(load_image(folder / "new.bmp"), load_image(folder / "a.png"))
    assert main(["decode", "new.mlic", "-o", "new.xyz"]) == 1


@pytest.mark.usefixtures("loads")
def test_force_keeps_the_mode(folder: Path) -> None:
    target = folder / "a.mlic"
    target.write_bytes(b"")
    target.chmod(0o640)
    assert main(["encode", "a.png", "--force"]) == 0
    assert target.stat().st_mode & 0o777 == 0o640 and target.stat().st_size > 0


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("encod", "did you mean encode?"),
        ("enc", "did you mean encode?"),
        ("decompress", "did you mean decode?"),
        ("a.png", "did you mean mlic-fast encode a.png?"),
        ("x", "there are "),
    ],
)
@pytest.mark.usefixtures("folder")
def test_unknown_commands(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([word, "a.png"])
    assert exit_.value.code == 2 and hint in capsys.readouterr().err


@pytest.mark.usefixtures("folder", "loads")
def test_what_is_a_result_already(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "a.png"]) == 0
    assert main(["encode", "a.mlic"]) == main(["decode", "a.png"]) == 1
    encode, decode = errors(capsys)
    assert "use mlic-fast decode a.mlic" in encode and "use mlic-fast encode a.png" in decode


@pytest.mark.parametrize("target", ["nan", "inf", "-3", "0", "x"])
def test_targets_are_numbers(target: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["encode", "a.png", "--target-psnr", target])
    assert "above 0" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "bench", "profile"])
def test_results_do_not_replace_files(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str], loads: list[tuple[Any, ...]]
) -> None:
    (folder / "notes.json").write_text("precious")
    image = ["a.png"] if command == "eval" else ["--image", "a.png"]
    assert main([command, *image, "--json", "notes.json"]) == 2
    assert "use --force" in capsys.readouterr().err
    assert main([command, *image, "--json", "a.png", "--force"]) == 2
    assert "is an input" in capsys.readouterr().err
    assert (folder / "notes.json").read_text() == "precious" and loads == []


@pytest.mark.usefixtures("folder", "loads")
def test_unknown_output_formats_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "a.png"]) == 0
    assert main(["decode", "a.mlic", "a.gif"]) == 1
    assert "use one of .png .webp" in errors(capsys)[0]
    assert not Path("a.gif").exists()


@pytest.mark.usefixtures("folder", "loads")
def test_damaged_streams_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "a.png"]) == 0
    stream = Path("a.mlic").read_bytes()
    Path("cut.mlic").write_bytes(stream[:-1])
    Path("empty.mlic").write_bytes(b"")
    header = Header(0, 8, b"else", 0, 1, 1)
    Path("other.mlic").write_bytes(bitstream.write(header, b""))
    for name in ("cut", "empty", "other", "absent"):
        assert main(["decode", f"{name}.mlic"]) == 1
        (line,) = errors(capsys)
        assert f"{name}.mlic" in line
        assert not Path(f"{name}.png").exists()


@pytest.mark.usefixtures("folder", "loads")
def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    main(["encode", "a.png", "--quality", "60"])
    main(["encode", "more/d.png", "d.mlic"])
    capsys.readouterr()
    assert main(["info", "a.mlic", "d.mlic"]) == 0
    text = capsys.readouterr().out
    for part in ("a.mlic", "9x5 pixels", "deadbeef", "version 0, provisional", "single rate"):
        assert part in text
    assert main(["info", "*.mlic", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    size = os.path.getsize("a.mlic")
    assert first["bytes"] == size and first["bits_per_pixel"] == 8 * size / 45
    assert (first["quality"], second["quality"]) == (60, None)
    assert first["memory"] is None and first["metadata"] == {} and not first["alpha"]
    assert first["model_id"] == "deadbeef" and first["arithmetic_version"] == 0
    assert main(["info", "a.png"]) == 1
    assert "not a .mlic file" in errors(capsys)[0]


@pytest.mark.usefixtures("loads")
def test_info_names_the_models_of_the_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "weights").mkdir()
    identity = {"identity": MODEL_ID.hex() + 28 * "00"}
    save_file({"x": np.zeros(1)}, folder / "weights" / "photo.safetensors", metadata=identity)
    monkeypatch.setattr(mlic_fast, "__file__", str(folder / "__init__.py"))
    main(["encode", "a.png"])
    assert main(["info", "a.mlic"]) == 0
    assert "deadbeef (photo)" in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "mlic-fast: interrupted"),
        (MlicError("no"), 1, "mlic-fast: error: a.png: no"),
        (MemoryError(), 1, f"mlic-fast: error: a.png: {NO_MEMORY}"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried .. 12 bytes."),
            1,
            f"mlic-fast: error: a.png: {NO_MEMORY}",
        ),
        (
            PermissionError(13, "Permission denied", "x"),
            1,
            "mlic-fast: error: a.png: x: Permission denied",
        ),
    ],
)
def test_what_goes_wrong_inside_is_one_line(
    raised: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise raised

    monkeypatch.setattr(StoringCodec, "compress", fail)
    monkeypatch.setattr(mlic_fast, "load", lambda *_, **__: StoringCodec(), raising=False)
    assert main(["encode", "a.png"]) == code
    assert errors(capsys) == [line]
    assert not Path("a.mlic").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack", str(Path(mlic_fast.__file__).parent / "weights" / "photo.safetensors"), "NEW"],
        ["bench", "--size", "1x1", "--runs", "1", "--json", "NEW"],
        ["eval", "a.png", "--quality", "1", "--json", "NEW"],
    ],
)
def test_results_that_cannot_be_written_are_one_line(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unwritable = "/proc/new.json"  # for root too
    arguments = [unwritable if argument == "NEW" else argument for argument in arguments]
    assert main(arguments) == 1
    assert errors(capsys) == [f"mlic-fast: error: {unwritable}: No such file or directory"]


@pytest.mark.parametrize("command", ["bench", "eval a.png", "eval a.png --csv x.csv"])
def test_missing_folders_are_found_before_long_work(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "--json", "missing/x.json"]) == 2
    assert errors(capsys) == ["mlic-fast: error: the folder missing does not exist; make it first"]


def test_help_and_version_load_nothing_heavy(folder: Path) -> None:
    script = (
        "import sys; from mlic_fast.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'compressai', 'torchvision', 'matplotlib', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for arguments in (["--help"], ["encode", "--help"], ["--version"]):
        subprocess.run([sys.executable, "-c", script, *arguments], check=True, timeout=60)


@pytest.mark.usefixtures("loads")
def test_verbose(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "a.png", "-v"]) == 0
    assert "loaded in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["encode", "a.png", "-v", "--quiet"])


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="shtab is not installed")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in COMMANDS:
        assert command in script
    assert "--target-psnr" in script
    if shell == "bash":
        asked = (
            "COMP_WORDS=(mlic-fast encode --out); COMP_CWORD=2; _shtab_mlic_fast;"
            'echo "${COMPREPLY[@]}"'
        )
        found = subprocess.run(
            ["bash", "-c", script + asked], check=True, capture_output=True, text=True
        )
        assert found.stdout.split() == ["--output", "--output-dir"]


def test_encoding_and_decoding_need_no_pytorch(folder: Path) -> None:
    """It takes longer to import than a picture to encode."""
    script = (
        "import sys; from mlic_fast.cli import main\n"
        "assert main(['encode', 'a.png', '-v', '--device', 'cpu']) == 0\n"
        "assert main(['decode', 'a.mlic', 'back.png', '--device', 'cpu']) == 0\n"
        "assert main(['info', 'a.mlic']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    data = mlic_fast.load(device="cpu").compress("a.png")
    assert (folder / "a.mlic").read_bytes() == data


def test_ctrl_c_in_a_process_leaves_no_traceback(folder: Path) -> None:
    script = (
        "import signal, sys, time, mlic_fast\n"
        # Where the tests run in a shell's background, interrupts are ignored from the start.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Codec:\n"
        "    engine = 'cpu'\n"
        "    def compress(self, image, quality=None):\n"
        "        print('busy', flush=True); time.sleep(5)\n"
        "mlic_fast.load = lambda *a, **k: Codec()\n"
        "from mlic_fast.cli import main\n"
        "sys.exit(main(['encode', 'a.png']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "busy\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "mlic-fast: interrupted\n")
    assert not Path("a.mlic").exists()


@pytest.mark.usefixtures("loads")
def test_the_reference_engine_writes_no_files(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", "a.png", "--engine", "reference"]) == 2
    assert "would not decode elsewhere" in capsys.readouterr().err
    assert not (folder / "a.mlic").exists()


@pytest.mark.parametrize("coders", [1, 2])
def test_a_batch_overlaps_but_keeps_order_and_bounds(
    coders: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Writing the first file waits until later ones are read; none is far ahead, none is lost.

    Of two coders the second begins before the first is done.
    """
    from mlic_fast.cli.batch import Steps, run_batch
    from mlic_fast.cli.files import Job

    jobs = [Job(tmp_path / f"{i}.png", problem="no" if i == 5 else None) for i in range(20)]
    read, coded, written = [], [], []
    third, second = threading.Event(), threading.Event()
    threads = set()

    def read_one(job: Job) -> int:
        number = int(job.source.stem)
        read.append(number)
        if number == 2:
            third.set()
        assert number <= len(written) + 2 * (steps.workers + 1) + 3
        return number

    def code(number: int) -> int:
        coded.append(number)
        if number == 1:
            second.set()
        if coders == 2 and number == 0:
            assert second.wait(60)
        if number == 7:
            raise MlicError("seven")
        return number

    def write(job: Job, number: int) -> dict[str, object]:
        assert third.wait(60) and int(job.source.stem) == number
        written.append(number)
        return {"number": number}

    begin = lambda: threads.add(threading.get_ident())  # noqa: E731
    steps = Steps(read_one, code, write, coders=coders, begin=begin)
    assert run_batch(jobs, lambda: steps, lambda result: str(result["number"]), as_json=True) == 1
    files = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(file["input"]).stem for file in files] == [str(i) for i in range(20)]
    assert [i for i, file in enumerate(files) if "error" in file] == [5, 7]
    good = [i for i in range(20) if i not in (5, 7)]
    assert sorted(written) == good and sorted(coded) == sorted([*good, 7])
    assert len(threads) == (coders if coders > 1 else 0)
