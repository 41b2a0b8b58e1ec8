"""What a process sets globally changes no bit, no identity and no outcome, and stays as it was."""

from __future__ import annotations

import locale
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lively import BLOCKS, SMALL, lively_model, photograph

import mlic_fast
from mlic_fast.engine.surroundings import surroundings
from mlic_fast.models import save_checkpoint

IMAGE = (photograph(70, 130)[0] * 255).round().to(torch.uint8)


@pytest.fixture(scope="module", params=["blocks", "residual"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / f"{request.param}.safetensors"
    save_checkpoint(lively_model(BLOCKS if request.param == "blocks" else SMALL["mlic"]), path)
    return path


@pytest.fixture(scope="module")
def usual(checkpoint: Path) -> tuple[Any, ...]:
    return outcome(checkpoint)


def outcome(checkpoint: Path) -> tuple[Any, ...]:
    """Identity, stream, pixels, latents. Float32 transforms, so that all machines can compare."""
    codec = mlic_fast.load(checkpoint, engine="spec")
    data = codec.compress(IMAGE)
    pixels = codec.decompress(data)
    packed = mlic_fast.load(checkpoint).model_id
    return codec.model_id, packed, data, pixels.tolist(), codec.decode_latents(data).tolist()


def set_and_reset(get: Callable[[], Any], set_: Callable[[Any], object], value: Any) -> Any:
    @contextmanager
    def changed() -> Iterator[None]:
        before = get()
        set_(value)
        now = get()
        try:
            yield
            assert get() == now, "it was changed"
        finally:
            set_(before)

    return changed


def default_device() -> torch.device:
    return torch.empty(0).device


STATES = {
    "dtype bfloat16": set_and_reset(
        torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16
    ),
    "dtype float64": set_and_reset(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "device meta": set_and_reset(default_device, torch.set_default_device, "meta"),
    "numpy errors": set_and_reset(
        np.geterr, lambda v: np.seterr(**(v if isinstance(v, dict) else {"all": v})), "raise"
    ),
    "gradients": set_and_reset(torch.is_grad_enabled, torch.set_grad_enabled, True),
    "no gradients": set_and_reset(torch.is_grad_enabled, torch.set_grad_enabled, False),
    "deterministic": set_and_reset(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "matrix products": set_and_reset(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "one thread": set_and_reset(torch.get_num_threads, torch.set_num_threads, 1),
    "seeds": set_and_reset(torch.initial_seed, torch.manual_seed, 7),
    "locale": set_and_reset(
        lambda: locale.setlocale(locale.LC_ALL), lambda v: locale.setlocale(locale.LC_ALL, v), "C"
    ),
    "flush to zero": set_and_reset(lambda: None, lambda v: torch.set_flush_denormal(bool(v)), True),
}


@pytest.mark.parametrize("state", STATES)
def test_state(checkpoint: Path, usual: tuple[Any, ...], state: str) -> None:
    with STATES[state]():
        found = outcome(checkpoint)
    assert found == usual


def test_another_thread_changes_the_default_dtype(checkpoint: Path, usual: tuple[Any, ...]) -> None:
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for dtype in (torch.bfloat16, torch.float32):
                torch.set_default_dtype(dtype)
                stop.wait(0.001)

    other = threading.Thread(target=change)
    other.start()
    try:
        found = [mlic_fast.load(checkpoint, engine="spec").model_id for _ in range(6)]
    finally:
        stop.set()
        other.join()
        torch.set_default_dtype(torch.float32)
    assert set(found) == {usual[0]}


def test_without_assertions(checkpoint: Path, usual: tuple[Any, ...], tmp_path: Path) -> None:
    stream = tmp_path / "image.mlic"
    code = (
        "import sys, mlic_fast, numpy; c = mlic_fast.load(sys.argv[1], engine='spec');"
        "open(sys.argv[3], 'wb').write(c.compress(numpy.load(sys.argv[2])))"
    )
    pixels = tmp_path / "pixels.npy"
    np.save(pixels, IMAGE.permute(1, 2, 0).numpy())
    subprocess.run(
        [sys.executable, "-O", "-c", code, checkpoint, pixels, stream],
        check=True,
        env=os.environ | {"LC_ALL": "C"},
    )
    assert stream.read_bytes() == usual[2]


def test_results_are_ordinary_tensors(checkpoint: Path) -> None:
    codec = mlic_fast.load(checkpoint)
    data = codec.compress(IMAGE)
    image, latents = codec.decompress(data), codec.decode_latents(data)
    image[:, :8].fill_(0)
    image.add_(1)
    layer = torch.nn.Conv2d(len(latents), 4, 1)
    layer(latents[None]).sum().backward()
    latents.requires_grad_()
    assert layer.weight.grad is not None
    assert torch.equal(codec.decode_latents(data), latents.detach())


def test_float32_is_float32() -> None:
    """No TF32 on a GPU, whose convolutions use it unless told otherwise; nor bfloat16 on a CPU."""
    backends: Any = torch.backends
    switches = backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv
    before = [switch.fp32_precision for switch in switches]
    with surroundings():
        assert [switch.fp32_precision for switch in switches] == ["ieee"] * 3
        with surroundings():
            pass
        assert [switch.fp32_precision for switch in switches] == ["ieee"] * 3
    assert [switch.fp32_precision for switch in switches] == before
