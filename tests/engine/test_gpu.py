"""The GPU engine: the same latents and bytes as the CPU engine, whatever the batch.

Without a GPU its kernels run in Triton's interpreter and its range coder compiled for the host.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from lively import SMALL, lively_model, photograph

from mlic_fast.codec import Codec
from mlic_fast.engine.cpu import CpuOps
from mlic_fast.engine.exact import ExactEngine
from mlic_fast.engine.pack import pack
from mlic_fast.errors import CorruptStreamError

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(scope="module", params=list(SMALL))
def codecs(request: pytest.FixtureRequest, device: torch.device) -> tuple[Codec, Codec]:
    """The same small model on the CPU and on the GPU, transforms in float32."""
    from mlic_fast.engine.device import GpuEngine

    model = lively_model(SMALL[request.param]).eval()
    packed = pack(model)
    cpu = ExactEngine(model, packed, CpuOps(packed), "cpu", torch.float32)
    model_there = lively_model(SMALL[request.param]).eval().to(device)
    gpu = GpuEngine(model_there, packed, device, dtype=torch.float32)
    return (
        Codec(model, packed, torch.device("cpu"), cpu),
        Codec(model_there, packed, device, gpu),
    )


def pixels(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return (photograph(height, width, batch=batch) * 255).round().to(torch.uint8)


def test_streams_and_latents_of_both_engines(codecs: tuple[Codec, Codec]) -> None:
    cpu, gpu = codecs
    image = pixels(64, 128)[0]
    stream = gpu.compress(image)
    assert torch.equal(gpu.decode_latents(stream).cpu(), cpu.decode_latents(stream))
    other = cpu.compress(image)
    assert torch.equal(gpu.decode_latents(other).cpu(), cpu.decode_latents(other))
    if gpu.device.type == "cpu":  # the same transforms, hence the same bytes
        assert stream == other
        assert torch.equal(gpu.decompress(stream), cpu.decompress(stream))
