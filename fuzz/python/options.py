"""The command line: any words end with an exit code, never with an exception.

An input is the numbers of words, among them the options of all commands and odd values.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from mlic_fast.cli import COMMANDS, main, make_parser

for module, _ in COMMANDS.values():  # imported here, so that their coverage guides
    importlib.import_module(module)

#: They run for long, start a server or processes of their own.
COSTLY = ("bench", "profile", "verify", "doctor", "train", "eval", "compare")
FOLDER = Path(tempfile.mkdtemp())
os.chdir(FOLDER)
VALUES = [
    "-1",
    "0",
    "1",
    "60",
    "100",
    "101",
    "1e9",
    "nan",
    "9" * 5000,
    "",
    " ",
    "\0",
    "\udcff",
    "-",
]
VALUES += ["a.png", "b.mlic", "bad.png", "folder", "nowhere/x", "*.png", "[", "--", "1x1", "cpu"]
VALUES += ["none", "all", "cuda:9", "auto", "out.png", "out.mlic", "out.xyz", "photo", "."]


def words() -> list[str]:
    parser = make_parser()
    found = set(COMMANDS)
    (subparsers,) = (a for a in parser._actions if a.dest == "command")
    for command in subparsers.choices.values():  # type: ignore[union-attr]
        found.update(option for action in command._actions for option in action.option_strings)
    return sorted(found - {"--ray"}) + VALUES


WORDS = words()


def seeds() -> list[bytes]:
    lines = ["encode a.png", "encode a.png -q 60 --force", "decode b.mlic out.png --force"]
    lines += ["info b.mlic --json", "encode folder -r --output-dir out --json", "pack photo"]
    lines += [f"{command} --help" for command in COMMANDS]
    return [bytes(WORDS.index(w) for w in line.split() if w in WORDS) for line in lines]


def mutate(data: bytes, source: random.Random, bend: Callable[[bytes], bytes]) -> bytes:
    if source.random() < 0.5:
        return bend(data)
    words = list(data[:12]) or [0]
    words.insert(source.randrange(len(words) + 1), source.randrange(len(WORDS)))
    if source.random() < 0.3:
        del words[source.randrange(len(words))]
    return bytes(words)


def prepare() -> None:
    """What the commands find."""
    (FOLDER / "folder").mkdir(exist_ok=True)
    picture = Image.fromarray(np.zeros((2, 3, 3), np.uint8))
    for name in ("a.png", "folder/c.png"):
        picture.save(FOLDER / name)
    (FOLDER / "bad.png").write_bytes(b"none")
    (FOLDER / "b.mlic").write_bytes(b"\xf1M\x16none")


def check(data: bytes) -> None:
    prepare()
    arguments = [WORDS[byte % len(WORDS)] for byte in data[:12]]
    called = next((word for word in arguments if not word.startswith("-")), None)
    if called in COSTLY:  # no further than their options
        arguments.append("--no-such-option")
    # Standard output takes bytes, too.
    out, error = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            code = main(arguments)
        except SystemExit as ended:  # of argparse
            code = ended.code
    assert code in (0, 1, 2), (code, arguments)
    out.flush()
    assert code == 0 or error.getvalue() or out.buffer.tell(), arguments
