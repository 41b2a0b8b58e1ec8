"""A codec in other processes: forked, spawned, of pools and loaders; copied and pickled."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from lively import BLOCKS, SMALL, lively_model, photograph
from torch.utils.data import DataLoader, Dataset

import mlic_fast
from mlic_fast.engine.packing.packer import load_packed, pack, save_packed
from mlic_fast.models import save_checkpoint

IMAGES = (photograph(70, 130, batch=3) * 255).round().to(torch.uint8)
#: Seconds within which a child must be done.
PATIENCE = 120


@pytest.fixture(scope="module")
def codec(checkpoint: Path) -> mlic_fast.Codec:
    return mlic_fast.load(checkpoint)


class Streams(Dataset[torch.Tensor]):
    def __init__(self, codec: mlic_fast.Codec, streams: list[bytes]) -> None:
        self.codec, self.streams = codec, streams

    def __len__(self) -> int:
        return len(self.streams)

    def __getitem__(self, index: int) -> torch.Tensor:
        image: torch.Tensor = self.codec.decompress(self.streams[index])
        return image


@pytest.mark.parametrize("kind", ["file", "packed file", "model", "residual model"])
def test_pickled(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    model = lively_model(SMALL["mlic"] if kind == "residual model" else BLOCKS).eval()
    source: Any = {"file": checkpoint}.get(kind, model)
    if kind == "packed file":
        source = tmp_path / "packed.safetensors"
        save_packed(model, pack(model), source)
        assert load_packed(source) is not None
    codec = mlic_fast.load(source, engine="spec")
    data = codec.compress(IMAGES[0])
    for copied in (pickle.loads(pickle.dumps(codec)), copy.deepcopy(codec), copy.copy(codec)):
        assert (copied.model_id, copied.engine) == (codec.model_id, "spec")
        assert copied.compress(IMAGES[0]) == data
        assert torch.equal(copied.decompress(data), codec.decompress(data))
    if kind == "file":
        assert len(pickle.dumps(codec)) < 1000


def test_a_file_that_became_another_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(lively_model(BLOCKS), path)
    pickled = pickle.dumps(mlic_fast.load(path))
    save_checkpoint(lively_model(BLOCKS, seed=2), path)
    with pytest.raises(mlic_fast.WrongModelError, match="another model"):
        pickle.loads(pickled)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pools(codec: mlic_fast.Codec, method: str) -> None:
    images = [image.numpy().transpose(1, 2, 0) for image in IMAGES]
    expected = [codec.compress(image) for image in images]
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(codec.compress, images, timeout=PATIENCE)) == expected
    assert [codec.compress(image) for image in images] == expected


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_joblib(codec: mlic_fast.Codec, backend: str) -> None:
    images = [image.numpy().transpose(1, 2, 0) for image in IMAGES]
    parallel = joblib.Parallel(n_jobs=2, backend=backend, timeout=PATIENCE)
    streams = parallel(joblib.delayed(codec.compress)(image) for image in images)
    assert streams == [codec.compress(image) for image in images]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loaders(codec: mlic_fast.Codec, method: str) -> None:
    streams = [bytes(codec.compress(image)) for image in IMAGES]  # type: ignore[arg-type]
    loader = DataLoader(
        Streams(codec, streams),
        batch_size=3,
        num_workers=2,
        multiprocessing_context=method,
        timeout=PATIENCE,
    )
    (batch,) = loader
    assert torch.equal(batch, torch.stack(codec.decompress(streams)))


#: In a child, PyTorch's own operators on several threads would hang: numpy compares.
FORK = """
import os, sys, time, torch, mlic_fast
torch.set_num_threads(3)
codec = mlic_fast.load(sys.argv[1], engine=sys.argv[2])
image = torch.arange(3 * 512 * 768).reshape(3, 512, 768).to(torch.uint8)
data = codec.compress(image)
pixels = codec.decompress(data, output="numpy").tobytes()
child = os.fork()
if child == 0:
    right = codec.decompress(data, output="numpy").tobytes() == pixels
    right = right and codec.compress(image) == data
    os._exit(0 if right and torch.get_num_threads() == 3 else 1)
for _ in range(1200):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
    sys.exit("the child hangs")
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("kind", ["blocks", "residual"])
def test_a_child_forked_after_work(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    if kind == "residual":
        checkpoint = tmp_path / "residual.safetensors"
        save_checkpoint(lively_model(SMALL["mlic"]), checkpoint)
    subprocess.run(
        [sys.executable, "-c", FORK, checkpoint, "cpu"], check=True, timeout=2 * PATIENCE
    )


def test_children_of_children(codec: mlic_fast.Codec) -> None:
    """Each process has workers of its own."""
    expected = codec.compress(IMAGES[0])

    def forked(work: Callable[[], int]) -> int:
        child = os.fork()
        if child == 0:
            os._exit(work())
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def right() -> int:
        return 0 if codec.compress(IMAGES[0]) == expected else 1

    assert forked(lambda: forked(right) or right()) == 0
