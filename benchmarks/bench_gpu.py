"""On a GPU: the entropy path, the range decoder and the transforms of full-size models, 768x512.

Each is one CUDA graph, beside what the reference engine does in its place; every kernel family is
timed beside its PyTorch twin, after both gave the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from gpu.card import REPETITIONS, spin

from mlic_fast.codec import Codec, load
from mlic_fast.engine.gpu.gpu_operations import GpuOps
from mlic_fast.engine.gpu.graphs import GATE, Recording
from mlic_fast.engine.path import code_latents
from mlic_fast.kernels import (
    depthwise,
    entropy_parameters,
    latents,
    linear_attention,
    products,
    softmax_attention,
    window_attention,
)
from mlic_fast.kernels.functions import from_planes, to_planes
from mlic_fast.kernels.layouts import ONE_COLOUR, Grid, Input
from mlic_fast.kernels.planes import ALL, read_colour
from mlic_fast.kernels.window_weights import WindowWeights
from mlic_fast.models.checkerboard import unsqueeze
from mlic_fast.models.config import PRESETS
from mlic_fast.profiling.pictures import synthetic_photograph
from mlic_fast.profiling.preset_models import trained_like_model

DEVICE = torch.device("cuda")
WIDTH, HEIGHT = 768, 512
GRID = Grid(1, HEIGHT // 16, WIDTH // 16)
FULL_SIZE = [name for name in PRESETS if name != "demo"]


@pytest.fixture(scope="module", params=FULL_SIZE)
def codec(request: pytest.FixtureRequest) -> Codec:
    return load(trained_like_model(request.param), device="cuda", engine="gpu")


def timed(benchmark: Any, group: str, work: Callable[[], object]) -> None:
    """Launch to end."""
    benchmark.group = group

    def run() -> None:
        work()
        torch.cuda.synchronize()

    with torch.inference_mode():
        spin(0.2)
        benchmark.pedantic(run, rounds=20, warmup_rounds=3)


def timed_graph(benchmark: Any, group: str, work: Callable[[], object]) -> None:
    """A graph of several times the work, as the replay of a short one is mostly overhead."""
    recording = Recording(lambda: [work() for _ in range(REPETITIONS)], DEVICE)

    def run() -> None:
        with GATE.working():
            recording()

    with torch.inference_mode():
        run()
    benchmark.extra_info["repetitions"] = REPETITIONS  # suite.py divides by it
    timed(benchmark, group, run)


def zeros_for_each_pass(ops: GpuOps) -> Callable[[], object]:
    """The 2 S passes of a decoder whose symbols are all zero, without range coding."""
    z = torch.zeros((1, HEIGHT // 64, WIDTH // 64, ops.config.N), dtype=torch.int32, device=DEVICE)
    shape = (1, GRID.height, GRID.width // 2, ops.config.slice_channels)
    symbols = torch.zeros(shape, dtype=torch.int32, device=DEVICE)
    return lambda: code_latents(ops, z, lambda *_: symbols)


def test_entropy_path(benchmark: Any, codec: Codec) -> None:
    passes = zeros_for_each_pass(GpuOps(codec.packed, DEVICE))
    timed_graph(benchmark, f"entropy path, {codec.model.config.variant}", passes)


def test_entropy_path_of_the_reference(benchmark: Any, codec: Codec) -> None:
    model, config = codec.model, codec.model.config
    z_hat = torch.zeros((1, config.N, HEIGHT // 64, WIDTH // 64), device=DEVICE)
    half = torch.zeros((1, config.slice_channels, GRID.height, GRID.width // 2), device=DEVICE)

    def passes() -> None:
        model.code_latents(
            model.h_s(z_hat), lambda index, parity, scales, means: unsqueeze(half, parity) + means
        )

    timed(benchmark, f"entropy path, {config.variant}", passes)


def test_whole_codec(benchmark: Any, codec: Codec) -> None:
    image = synthetic_photograph(WIDTH, HEIGHT).to(DEVICE)
    stream = codec.compress(image)
    benchmark.extra_info["bytes"] = len(stream)
    codec.warmup([(WIDTH, HEIGHT)])
    timed(benchmark, f"decode, {codec.model.config.variant}", lambda: codec.decompress(stream))


def test_whole_encoder(benchmark: Any, codec: Codec) -> None:
    image = synthetic_photograph(WIDTH, HEIGHT).to(DEVICE)
    codec.warmup([(WIDTH, HEIGHT)])
    timed(benchmark, f"encode, {codec.model.config.variant}", lambda: codec.compress(image))


# -- kernels beside their twins -------------------------------------------------------------------


def activation(channels: int) -> torch.Tensor:
    shape = (GRID.batch, GRID.height, GRID.width, channels)
    q = np.random.default_rng(channels).integers(-4095, 4096, shape)
    return to_planes(torch.from_numpy(q)).to(DEVICE)


@pytest.fixture(scope="module")
def last_slice() -> tuple[GpuOps, int]:
    packed = load(trained_like_model("mlic_plus_plus"), device="cpu").packed
    return GpuOps(packed, DEVICE), packed.config.slices - 1


Pair = tuple[Callable[[], Any], Callable[[], Any]]


def product_pair(ops: GpuOps, layer: str, channels: int, inputs: int) -> Pair:
    x = activation(inputs * channels)
    weights = ops._weights([layer], len(ops.layers[layer].segments) - inputs, [8] * inputs)
    out = torch.empty((*x.shape[1:4], weights.outputs), device=DEVICE)
    parts = [from_planes(part) for part in x.split(channels, dim=-1)]

    def kernel() -> torch.Tensor:
        first = Input(x[..., :channels])
        products.conv(first, weights, GRID, inputs=inputs, input_stride=channels, out=out)
        return out

    return kernel, lambda: products.conv_twin(parts, weights, weights.bias)


def pass_pair(ops: GpuOps, i: int) -> Pair:
    names = [f"entropy_parameters_nonanchor.{i}.fusion.{n}" for n in (0, 2, 4, 6)]
    layers = [ops.layers[name] for name in names]
    widths = [s.weight.shape[-1] for s in layers[0].segments[1:]]
    exponents = [ops.exponents[name] for name in names[:3]]
    weights = entropy_parameters.PassWeights.pack(layers, [8] * len(widths), exponents, DEVICE)
    contexts = [activation(width) for width in widths]
    half = (1, GRID.height, GRID.width // 2)
    start = torch.randn((*half, weights.hidden[0]), device=DEVICE)
    indexes = torch.empty((*half, weights.hidden[3]), dtype=torch.uint8, device=DEVICE)
    means = torch.empty(indexes.shape, device=DEVICE)
    at_colour = [read_colour(x, 0)[0] for x in contexts]

    def kernel() -> torch.Tensor:
        inputs = [Input(x, ONE_COLOUR, 0) for x in contexts]
        entropy_parameters.entropy_parameters(
            start, inputs, weights, 0, GRID, indexes=indexes, means=means
        )
        return means.flatten(0, 2)

    def twin() -> torch.Tensor:
        flat = start.flatten(0, 2)
        return entropy_parameters.entropy_parameters_twin(flat, at_colour, weights)[1]

    return kernel, twin


def depthwise_pair(ops: GpuOps, layer: str) -> Pair:
    weights = depthwise.DepthwiseWeights.pack([ops.layers[layer]], [8], DEVICE)
    channels = len(weights.scale)
    x, out_scale = activation(channels), torch.full((channels,), 256.0, device=DEVICE)
    out = torch.empty_like(x)

    def kernel() -> torch.Tensor:
        depthwise.depthwise(x, weights, GRID, gelu_after=True, out=out, out_scale=out_scale)
        return out

    return kernel, lambda: depthwise.depthwise_twin(x, weights, out_scale, True)


def attention_pair(kind: Any, name: str, heads: int) -> Pair:
    q, k, v = (Input(activation(32 * heads)) for _ in range(3))
    out = torch.empty_like(q.planes)
    launch, twin = getattr(kind, name), getattr(kind, f"{name}_twin")
    if kind is linear_attention:  # used up by the first call, but as good for the time of others
        k = replace(k, sums=depthwise.key_sums_twin(k.planes, ALL, heads))
    arguments = q, k, v, heads, (9, 10, 8)

    def kernel() -> torch.Tensor:
        launch(*arguments, out=out, out_scale=1024.0)
        return out

    return kernel, lambda: twin(*arguments, 1024.0).view_as(out)


def local_context_pair(ops: GpuOps, i: int) -> Pair:
    weights = WindowWeights.pack(
        ops.layers, ops.exponents, f"local_context.{i}", f"y_hat.{i}", DEVICE
    )
    x = activation(ops.config.slice_channels)
    half = (2, 1, GRID.height, GRID.width // 2, 2 * ops.config.slice_channels)
    out = torch.empty(half, dtype=torch.int8, device=DEVICE)

    def kernel() -> torch.Tensor:
        window_attention.local_context(x, weights, out=out)
        return out

    return kernel, lambda: window_attention.local_context_twin(x, weights)


def latents_pair(channels: int) -> Pair:
    shape = (1, GRID.height, GRID.width // 2, channels)
    symbols = torch.ones(shape, dtype=torch.int32, device=DEVICE)
    means, out = torch.randn(shape, device=DEVICE), activation(channels)
    y = torch.empty((1, GRID.height, GRID.width, channels), device=DEVICE)

    def kernel() -> torch.Tensor:
        latents.decoded(symbols, means, 1, GRID, latents=y, out=out, out_scale=8.0)
        return y

    return kernel, lambda: latents.decoded_twin(symbols, means, 1, y)


PAIRS: dict[str, Callable[[GpuOps, int], Pair]] = {
    "channel context, 3x3": lambda ops, i: product_pair(
        ops, f"channel_context.{i}.fushion.0", ops.config.slice_channels, i
    ),
    "reprojection, 5x5": lambda ops, i: product_pair(
        ops, f"global_inter_context.{i}.reprojection", i * ops.config.slice_channels, 1
    ),
    "residual prediction, 3x3": lambda ops, i: product_pair(
        ops, f"lrp_anchor.{i}.lrp_transform.2", 224, 1
    ),
    "pass": pass_pair,
    "depthwise": lambda ops, i: depthwise_pair(ops, f"global_inter_context.{i}.mlp.2"),
    "local context": local_context_pair,
    "linear attention": lambda ops, i: attention_pair(linear_attention, "linear_attention", i),
    "softmax attention": lambda ops, i: attention_pair(softmax_attention, "softmax_attention", i),
    "symbols to latents": lambda ops, i: latents_pair(ops.config.slice_channels),
}


@pytest.mark.parametrize("who", ["kernel", "twin"])
@pytest.mark.parametrize("name", list(PAIRS))
def test_kernel(benchmark: Any, last_slice: tuple[GpuOps, int], name: str, who: str) -> None:
    kernel, twin = PAIRS[name](*last_slice)
    assert torch.equal(kernel(), twin())
    if who == "kernel":
        timed_graph(benchmark, f"kernel: {name}", kernel)
    else:
        timed(benchmark, f"kernel: {name}", twin)
