"""The fuzzers of the Python code start, and find nothing at once, without what guides them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "fuzz" / "python"
PROGRAM = """
import importlib, random, sys
sys.path[:0] = [sys.argv[2], sys.argv[3]]
target = importlib.import_module(sys.argv[1])
source, inputs = random.Random(0), target.seeds()
def bend(part):
    data = bytearray(part or bytes(4))
    data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(data)
others = [target.mutate(source.choice(inputs), source, bend) for _ in range(60)]
assert len(set(others)) > 20
for data in inputs + others:
    target.check(data)
"""


@pytest.mark.parametrize("name", ["checkpoints", "images", "options", "streams"])
def test_target(name: str, tmp_path: Path) -> None:
    """In a process of its own, since targets change limits and the working directory."""
    arguments = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        PROGRAM,
        name,
        FOLDER,
        FOLDER.parents[1] / "tests",
    ]
    done = subprocess.run(
        arguments, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
