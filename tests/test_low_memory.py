"""Where memory runs out the process lives on: MemoryError or an error of our own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lively import BLOCKS, SMALL, lively_model
from PIL import Image

from mlic_fast.models import save_checkpoint

WORK = """
import resource, sys, torch, mlic_fast
codec = mlic_fast.load(sys.argv[1])
image = torch.arange(3 * 1024 * 1024).reshape(3, 1024, 1024).to(torch.uint8)
part = image[:, :64, :64]
small = codec.compress(part)
codec.decompress(small)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
outcomes, streams = [], {None}
for megabytes in (0, 4, 16, 32, 64, 2048):
    limit = used + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    for step in range(2):
        try:
            if step == 0:
                streams.add(codec.compress(image))
            elif data := next(filter(None, streams), None):
                codec.decompress(data)
            outcomes.append("done")
        except (MemoryError, mlic_fast.MlicError):
            outcomes.append("refused")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert streams == {None, codec.compress(image)} and codec.compress(part) == small
print(*outcomes)
"""


@pytest.mark.parametrize("kind", ["blocks", "residual"])
def test_limits(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(lively_model(BLOCKS if kind == "blocks" else SMALL["mlic"]), path)
    done = subprocess.run(
        [sys.executable, "-c", WORK, path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["done", "done"]
    assert "refused" in done.stdout


@pytest.mark.parametrize("megabytes", [60, 80, 100, 120, 150, 200, 300])
def test_too_little_to_start(megabytes: int, tmp_path: Path) -> None:
    """One line, also where no library can be loaded."""
    picture, stream = tmp_path / "a.png", tmp_path / "a.mlic"
    Image.new("RGB", (64, 64)).save(picture)
    work = (
        "import resource, sys;"
        f"resource.setrlimit(resource.RLIMIT_AS, ({megabytes << 20}, resource.RLIM_INFINITY));"
        "from mlic_fast.cli import main;"
        "sys.exit(main(['encode', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", work, picture, stream]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert "not enough memory" in done.stderr
    assert (done.returncode == 0) == stream.exists() and len(list(tmp_path.iterdir())) <= 2
