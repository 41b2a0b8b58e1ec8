"""On a GPU: transforms at 768x512, those of full-size models fused and as PyTorch runs the modules.

Each kernel is timed beside the operators that it replaces, and the whole of g_a + h_a and of g_s,
each as one CUDA graph. What is compared must agree within rounding before it is timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench_gpu import DEVICE, HEIGHT, WIDTH, Pair, timed_graph
from torch import Tensor, nn

from mlic_fast.engine.cpu.cpu_operations import CpuOps
from mlic_fast.engine.exact_engine import cpu_transforms
from mlic_fast.engine.gpu.fused_transforms import _Pixels
from mlic_fast.engine.gpu.gpu_engine import device_transforms
from mlic_fast.engine.per_image import to_pixels
from mlic_fast.kernels import epilogues
from mlic_fast.models import MlicModel
from mlic_fast.models.layers import GDN, subpel_conv3x3
from mlic_fast.profiling.module_transforms import ModuleTransforms
from mlic_fast.profiling.pictures import synthetic_photograph
from mlic_fast.profiling.preset_models import trained_like_model

CHANNELS = 192
DTYPE = torch.bfloat16
#: Of the first layers of g_a and the last of g_s.
LARGEST = (1, HEIGHT // 2, WIDTH // 2, CHANNELS)
SUBPIXEL = (1, HEIGHT // 4, WIDTH // 4, 2, 2, CHANNELS)

_gelu = torch.ops.aten.gelu_


def random(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def modules_layout(x: Tensor) -> Tensor:
    """As the modules have it, channels-last: [B, C, H, W], or [B, 4C, H, W] to be shuffled."""
    if x.dim() == 4:
        return x.permute(0, 3, 1, 2)
    channels_first = x.permute(0, 5, 3, 4, 1, 2).flatten(1, 3)
    return channels_first.contiguous(memory_format=torch.channels_last)


def modules_bias(bias: Tensor) -> Tensor:
    flat = bias if bias.dim() == 1 else bias.permute(2, 0, 1).flatten()
    return flat.to(DTYPE)[:, None, None]


def activate_pair(x: Tensor, bias: Tensor, residual: Tensor | None = None) -> Pair:
    out, theirs = torch.empty(LARGEST, dtype=DTYPE, device=DEVICE), modules_layout(x)
    b = modules_bias(bias)

    def kernel() -> Tensor:
        epilogues.activate(x, bias, residual, out=out)
        return out.permute(0, 3, 1, 2)

    def operators() -> Tensor:
        y = theirs + b
        if x.dim() == 6:
            y = nn.functional.pixel_shuffle(y, 2)
        y = _gelu(y)
        return y if residual is None else y.add_(modules_layout(residual))

    return kernel, operators


def normalise_pair(inverse: bool) -> Pair:
    x, branch = random(*LARGEST), random(*(SUBPIXEL if inverse else LARGEST))
    bias, branch_bias = random(CHANNELS), random(*branch.shape[3:])
    bias, branch_bias = bias.float(), branch_bias.float()
    gdn = GDN(CHANNELS, inverse).to(DEVICE).requires_grad_(False)
    gdn.gamma.add_(torch.rand_like(gdn.gamma) / CHANNELS)
    weights, out = epilogues.GdnWeights.pack(gdn, DTYPE), torch.empty_like(x)
    module = gdn.to(DTYPE)
    theirs, b = modules_layout(x), modules_bias(bias)
    their_branch, their_b = modules_layout(branch), modules_bias(branch_bias)

    def kernel() -> Tensor:
        epilogues.normalise(x, bias, weights, branch, branch_bias, out=out)
        return out.permute(0, 3, 1, 2)

    def operators() -> Tensor:
        added = their_branch + their_b
        return module(theirs + b).add_(nn.functional.pixel_shuffle(added, 2) if inverse else added)

    return kernel, operators


def first_pair() -> Pair:
    """The first layer of g_a, and its operators."""
    images = synthetic_photograph(WIDTH, HEIGHT).to(DEVICE)[None]
    conv = nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1).to(DEVICE).requires_grad_(False)
    weight = nn.functional.pad(conv.weight.flatten(1).T, (0, 0, 0, epilogues.FIRST_DEPTH - 27))
    weight, bias = weight.to(DTYPE).contiguous(), conv.bias
    out, centres = (
        torch.empty((*LARGEST[:3], channels), dtype=DTYPE, device=DEVICE)
        for channels in (CHANNELS, epilogues.PADDED)
    )
    conv = copy.deepcopy(conv).to(DTYPE).to(memory_format=torch.channels_last)

    def kernel() -> Tensor:
        epilogues.first(images, weight, bias, out=out, centres=centres)
        return out.permute(0, 3, 1, 2)

    def operators() -> Tensor:
        x = (images.float() / 255).to(DTYPE, memory_format=torch.channels_last)
        return _gelu(conv(x))

    return kernel, operators


def last_pair() -> Pair:
    """The last layer of g_s, its convolution included, and its operators in the same dtype."""
    x = random(*LARGEST, dtype=torch.float16)
    layer = subpel_conv3x3(CHANNELS, 3).to(DEVICE).requires_grad_(False)
    last = _Pixels(layer, torch.float16)
    layer = layer.half().to(memory_format=torch.channels_last)
    return lambda: last(x), lambda: to_pixels(layer(x.permute(0, 3, 1, 2)).float())


def with_biases(*shape: int) -> tuple[Tensor, Tensor]:
    return random(*shape), random(*shape[3:]).float()


PAIRS: dict[str, Callable[[], Pair]] = {
    "GELU": lambda: activate_pair(*with_biases(*LARGEST)),
    "GELU, residual": lambda: activate_pair(*with_biases(*LARGEST), random(*LARGEST)),
    "GELU, shuffle": lambda: activate_pair(*with_biases(*SUBPIXEL)),
    "GDN": lambda: normalise_pair(False),
    "inverse GDN, shuffle": lambda: normalise_pair(True),
    "first layer": first_pair,
    "last layer": last_pair,
}


def check(name: str, ours: Tensor, theirs: Tensor) -> None:
    difference = (ours.float() - theirs.float()).abs()
    allowed = 1.0
    if ours.dtype is not torch.uint8:  # of sums of values, which are bfloat16
        allowed = 0.125 + 0.02 * float(theirs.float().abs().max())
    assert difference.max() <= allowed, f"{name}: {float(difference.max())}"


@pytest.mark.parametrize("who", ["kernel", "operators"])
@pytest.mark.parametrize("name", list(PAIRS))
def test_kernel(benchmark: Any, name: str, who: str) -> None:
    kernel, operators = PAIRS[name]()
    check(name, kernel(), operators())
    timed_graph(benchmark, f"transforms: {name}", kernel if who == "kernel" else operators)


@pytest.fixture(scope="module")
def model() -> MlicModel:
    return trained_like_model("mlic_plus_plus").requires_grad_(False).to(DEVICE)


@pytest.mark.parametrize("who", ["fused", "modules"])
@pytest.mark.parametrize("way", ["analysis", "synthesis"])
def test_residual_transforms(benchmark: Any, model: MlicModel, way: str, who: str) -> None:
    images = synthetic_photograph(WIDTH, HEIGHT).to(DEVICE)[None]
    with torch.inference_mode():
        latents = model.analyse(images.float() / 255)

    def work_of(transforms: Any) -> Callable[[], Tensor]:
        if way == "analysis":
            return lambda: transforms.analyse(images, None)[0]
        return lambda: transforms.synthesise(latents, None).float()

    works = {
        "fused": work_of(device_transforms(model, DTYPE, DEVICE)),
        "modules": work_of(ModuleTransforms(model, DTYPE)),
    }
    with torch.inference_mode():
        right = work_of(ModuleTransforms(model, torch.float32))()
        errors = {name: (work() - right).square().mean() for name, work in works.items()}
    assert errors["fused"] <= 1.5 * errors["modules"], errors
    timed_graph(benchmark, f"transforms: {way}", works[who])


@pytest.mark.parametrize("way", ["analysis", "synthesis"])
def test_block_transforms(benchmark: Any, way: str) -> None:
    """Of the photograph model: the CPU's bits, then their time."""
    model = trained_like_model("photo").requires_grad_(False)
    cpu = cpu_transforms(model, CpuOps, torch.float32)
    gpu = device_transforms(model, DTYPE, DEVICE)
    images, rate = synthetic_photograph(WIDTH, HEIGHT)[None], torch.tensor([3.5])
    there = images.to(DEVICE), rate.to(DEVICE)
    with torch.inference_mode():
        expected = cpu.analyse(images, rate)
        latents = expected[0].round()
        pixels = cpu.synthesise(latents, rate)
        latents = latents.to(DEVICE)
        if way == "analysis":
            found = gpu.analyse(*there)
            assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
        else:
            assert torch.equal(gpu.synthesise(latents, there[1]).cpu(), pixels)
    works: dict[str, Callable[[], object]] = {
        "analysis": lambda: gpu.analyse(*there),
        "synthesis": lambda: gpu.synthesise(latents, there[1]),
    }
    timed_graph(benchmark, f"block transforms: {way}", works[way])
