"""What a process takes at its peak: what ``info`` says, and less in bands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

import mlic_fast
from mlic_fast.images import save_image

WORK = r"""
import re, sys, mlic_fast
from mlic_fast.engine import bands
bands.BAND_POSITIONS = int(sys.argv[2])
codec = mlic_fast.load("photo", device="cpu")
if sys.argv[1] == "encode":
    open("a.mlic", "wb").write(codec.compress("a.ppm"))
else:
    codec.decompress("a.mlic", output="numpy")
# Of this program: what getrusage gives is at least that of the one that started it.
print(1024 * int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1]))
"""
WHOLE, IN_BANDS = 1 << 15, 1 << 10


def peak(step: str, folder: Path, positions: int) -> int:
    """Bytes, of a process of its own."""
    command = [sys.executable, "-c", WORK, step, str(positions)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_peak(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:2048, :1536]
    noise = np.random.default_rng(7).integers(0, 64, (3, 2048, 1536))
    save_image(((rows * columns // 4096 + noise) % 256).astype(np.uint8), tmp_path / "a.ppm")
    whole = {step: peak(step, tmp_path, WHOLE) for step in ("encode", "decode")}
    data = (tmp_path / "a.mlic").read_bytes()
    said = mlic_fast.info(data).memory
    assert said is not None
    assert 0.85 * said < whole["decode"] <= said
    assert whole["encode"] <= said
    parts = {step: peak(step, tmp_path, IN_BANDS) for step in ("encode", "decode")}
    assert (tmp_path / "a.mlic").read_bytes() == data
    assert max(parts.values()) < whole["decode"] - 27 * rows.size
