"""What all tests share: vectors beside the checkout, poisoned buffers, seeds, the kernels' device.

Triton kernels run in the interpreter on a machine without a GPU, natively on one with. The
interpreter is far too slow for full sizes: those tests are marked ``gpu``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lively import BLOCKS, SMALL, lively_model

from mlic_fast.codec import Codec
from mlic_fast.engine.cpu import cpu_operations
from mlic_fast.models import MlicModel, save_checkpoint

if torch.cuda.is_available():
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # also where a test has no codec
else:
    os.environ["TRITON_INTERPRET"] = "1"  # must be chosen before kernels are imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Vectors of the public code and test images, beside the repository; skips without them."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("MLIC_FAST_SHARED", default))
    if not folder.is_dir():
        pytest.skip("no ../shared beside the checkout (nor MLIC_FAST_SHARED)")
    return folder


@pytest.fixture(scope="session")
def compressai_installed() -> None:
    """Skips without compressai, an optional dependency of the reference engine."""
    if find_spec("compressai") is None:
        pytest.skip("compressai is not installed")


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", params=sorted(SMALL))
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def small_models() -> dict[str, MlicModel]:
    """One model of each variant, in evaluation mode; not to be changed."""
    return {name: lively_model(config).eval() for name, config in SMALL.items()}


@pytest.fixture
def model(small_models: dict[str, MlicModel], variant: str) -> MlicModel:
    return small_models[variant]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a small model with block transforms."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_checkpoint(lively_model(BLOCKS), path)
    return path


@pytest.fixture
def wrong_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU the largest mean of slice 1's anchors is one unit in the last place off."""
    original = cpu_operations.CpuOps.conv

    def conv(self: cpu_operations.CpuOps, layer: str, *args: object, **kwargs: object) -> object:
        r = original(self, layer, *args, **kwargs)
        if layer == "entropy_parameters_anchor.1.fusion.6":
            means = r[..., r.shape[-1] // 2 :]
            at = np.unravel_index(np.argmax(means), means.shape)
            means[at] = np.nextafter(means[at], np.float32(np.inf))
        return r

    monkeypatch.setattr(cpu_operations.CpuOps, "conv", conv)


@pytest.fixture
def compress_to_latents(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[bytes, np.ndarray]]:
    """`Codec.compress` on the CPU: the stream, and the latents [M, H, W] that its encoder has."""

    def compress(codec: Codec, *args: Any, **kwargs: Any) -> tuple[bytes, np.ndarray]:
        slices: list[np.ndarray] = []
        digest = cpu_operations.CpuOps.digest

        def keep(ops: cpu_operations.CpuOps, y: np.ndarray, first: int = 0) -> int:
            slices.append(y.copy())
            return digest(ops, y, first)

        with monkeypatch.context() as patch:
            patch.setattr(cpu_operations.CpuOps, "digest", keep)
            stream = codec.compress(*args, **kwargs)
        return stream, np.moveaxis(np.concatenate(slices, axis=-1)[0], -1, 0)

    return compress


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fresh buffers of PyTorch and numpy hold garbage, not zeros by luck."""

    def fill_tensor(make: Any) -> Any:
        def poison(*args: Any, **kwargs: Any) -> Any:
            x = make(*args, **kwargs)
            return x.fill_(float("nan") if x.is_floating_point() else 93)

        return poison

    def fill_array(make: Any) -> Any:
        def poison(*args: Any, **kwargs: Any) -> Any:
            x = make(*args, **kwargs)
            if x.dtype.kind in "fiu":
                x.fill(np.nan if x.dtype.kind == "f" else 93)
            return x

        return poison

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, fill_tensor(getattr(owner, name)))
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(np, name, fill_array(getattr(np, name)))
    yield
