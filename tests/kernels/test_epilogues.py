"""Kernels after the convolutions of the transforms: within rounding of the PyTorch modules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mlic_fast.kernels import epilogues as kernel
from mlic_fast.models.layers import GDN

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Of a result of that dtype, relative to its values and absolute. Triton's interpreter cuts
#: bfloat16 off instead of rounding it.
TOLERANCES = {
    torch.float32: {"rtol": 2e-6, "atol": 2e-6},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
}
#: Of GDN. float32: sums of up to 192 positive terms in another order are off by 192 * 2^-24 at
#: most, their roots by half of that, 6e-6. float16: squares and gamma are bfloat16, off by 2^-9
#: each, so roots by 2^-9; of values up to 4 that is 8e-3, which a branch of the other sign leaves.
NORMALISED = TOLERANCES | {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 8e-3, "atol": 8e-3},
}
#: B, H, W, C: widths and heights of 1, channels that fill no block.
SHAPES = [(2, 3, 5, 12), (1, 1, 1, 20), (1, 2, 1, 192), (2, 1, 3, 96), (1, 5, 2, 3)]


@pytest.fixture(params=SHAPES, ids=str)
def shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def random(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(shape)).to(device, dtype)


def subpixel(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """What a subpixel convolution gives for a result of [B, 2H, 2W, C]."""
    return random(*shape[:3], 2, 2, shape[3], device=device, dtype=dtype)


def shuffled(x: Tensor) -> Tensor:
    """[B, H, W, 2, 2, C] -> [B, C, 2H, 2W], by PyTorch's pixel shuffle."""
    return nn.functional.pixel_shuffle(x.permute(0, 5, 3, 4, 1, 2).flatten(1, 3), 2)


def nan_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.full_like(x, float("nan"), dtype=dtype)


def check(
    out: Tensor,
    expected: Tensor,
    twin: Tensor,
    tolerances: dict[torch.dtype, dict[str, float]] = TOLERANCES,
) -> None:
    """``expected``: float32 [B, C, H, W], by modules."""
    tolerance = tolerances[out.dtype]
    torch.testing.assert_close(out.float(), expected.permute(0, 2, 3, 1), **tolerance)
    torch.testing.assert_close(out.float(), twin, **tolerance)


def planar(x: Tensor) -> Tensor:
    return x.float().permute(0, 3, 1, 2)


def test_activate(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, bias = random(*shape, device=device, dtype=dtype), random(shape[3], device=device)
    residual = random(*shape, device=device, dtype=dtype)
    expected = nn.functional.gelu(planar(x + bias))
    for added in (None, residual):
        total = expected if added is None else expected + planar(added)
        twin = kernel.activate_twin(x, bias, added)
        for out in (nan_like(x, dtype), nan_like(x, torch.float32)):
            kernel.activate(x, bias, added, out=out)
            check(out, total, twin)
        in_place = x.clone()
        kernel.activate(in_place, bias, added, out=in_place)
        check(in_place, total, twin)


def test_activate_and_shuffle(
    device: torch.device, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Also where the outputs are half of a convolution's."""
    both, bias = subpixel(shape, device, dtype), random(2, 2, shape[3], device=device)
    both = torch.stack([both, subpixel(shape, device, dtype)], 3)
    for x in (*both.unbind(3), both[:, :, :, 0].contiguous()):
        expected = nn.functional.gelu(shuffled(x.float() + bias))
        out = nan_like(expected.permute(0, 2, 3, 1).contiguous(), dtype)
        kernel.activate(x, bias, out=out)
        check(out, expected, kernel.activate_twin(x, bias))


def test_bias_alone(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, bias = random(*shape, device=device, dtype=dtype), random(shape[3], device=device)
    out = nan_like(x, torch.float32)
    kernel.activate(x, bias, gelu=False, out=out)
    assert torch.equal(out, x.float() + bias)
    assert torch.equal(out, kernel.activate_twin(x, bias, gelu=False))


def test_beyond_float16(device: torch.device) -> None:
    x = torch.tensor([3e38, 1e5, -1e5, 3.0], device=device).reshape(1, 1, 1, 4)
    out = nan_like(x, torch.float16)
    kernel.activate(x, torch.zeros(4, device=device), gelu=False, out=out)
    assert out.flatten().tolist() == [65504, 65504, -65504, 3]


@pytest.mark.parametrize("inverse", [False, True])
def test_normalise(
    device: torch.device, shape: tuple[int, ...], dtype: torch.dtype, inverse: bool
) -> None:
    """Beside a branch as it is, also in place of it, and beside a shuffled one."""
    channels = shape[3]
    gdn = GDN(channels, inverse).to(device).requires_grad_(False)
    gdn.beta.add_(torch.rand(channels, device=device))
    gdn.gamma.add_(torch.rand(channels, channels, device=device) / channels)
    weights = kernel.GdnWeights.pack(gdn, dtype)
    size = (shape[0], 2 * shape[1], 2 * shape[2], channels)
    x, bias = random(*size, device=device, dtype=dtype), random(channels, device=device)
    normalised = gdn(planar(x + bias))
    branch, branch_bias = random(*size, device=device, dtype=dtype), random(channels, device=device)
    parts = subpixel(shape, device, dtype), random(2, 2, channels, device=device)
    second = torch.stack([parts[0] + 1, parts[0]], 3)[:, :, :, 1]
    for given, its_bias, out in (
        (branch, branch_bias, nan_like(x, dtype)),
        (*parts, nan_like(x, dtype)),
        (second, parts[1], nan_like(x, dtype)),
        (branch, branch_bias, branch),  # last, as it overwrites
    ):
        total = given.float() + its_bias
        expected = normalised + (planar(total) if given.dim() == 4 else shuffled(total))
        twin = kernel.normalise_twin(x, bias, weights, given, its_bias)
        kernel.normalise(x, bias, weights, given, its_bias, out=out)
        check(out, expected, twin, NORMALISED)


@pytest.mark.parametrize("inverse", [False, True])
def test_tolerance_of_half_precision(inverse: bool) -> None:
    """What a GPU computes with, squares and gamma in bfloat16, stays within that of float16."""
    gdn = GDN(192, inverse).requires_grad_(False)
    gdn.beta.add_(torch.rand(192))
    gdn.gamma.add_(torch.rand(192, 192) / 192)
    weights = kernel.GdnWeights.pack(gdn, torch.float32)
    in_bfloat16 = replace(weights, gamma=weights.gamma.to(torch.bfloat16))
    cpu, zero = torch.device("cpu"), torch.zeros(192)
    x, branch = (random(1, 40, 40, 192, device=cpu, dtype=torch.float16) for _ in range(2))
    found = kernel.normalise_twin(x, zero, in_bfloat16, branch, zero).half().float()
    expected = (gdn(planar(x)) + planar(branch)).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, expected, **NORMALISED[torch.float16])


def test_squares_beyond_float16(device: torch.device) -> None:
    gdn = GDN(16).to(device).requires_grad_(False)
    x = torch.full((1, 1, 1, 16), 1000.0, dtype=torch.float16, device=device)
    branch, zero, out = torch.zeros_like(x), torch.zeros(16, device=device), nan_like(x, x.dtype)
    kernel.normalise(x, zero, kernel.GdnWeights.pack(gdn, x.dtype), branch, zero, out=out)
    torch.testing.assert_close(out.float(), gdn(planar(x)).permute(0, 2, 3, 1), rtol=4e-3, atol=0)


@pytest.mark.parametrize(("inputs", "stride"), [(3, 2), (40, 2), (8, 1)])
def test_normalise_with_a_skip(
    device: torch.device, shape: tuple[int, ...], dtype: torch.dtype, inputs: int, stride: int
) -> None:
    channels = shape[3]
    gdn = GDN(channels).to(device).requires_grad_(False)
    weights = kernel.GdnWeights.pack(gdn, dtype)
    x, bias = random(*shape, device=device, dtype=dtype), random(channels, device=device)
    size = shape[0], stride * shape[1], stride * shape[2], inputs
    given = random(*size, device=device, dtype=dtype)
    skip = (random(inputs, channels, device=device) / 8).to(kernel.multiplied(dtype))
    its_bias, out = random(channels, device=device), nan_like(x, dtype)
    kernel.normalise(x, bias, weights, given, its_bias, skip, out=out)
    kernel_1x1 = skip.float().T[:, :, None, None]
    branch = nn.functional.conv2d(planar(given), kernel_1x1, its_bias, stride=stride)
    twin = kernel.normalise_twin(x, bias, weights, given, its_bias, skip)
    check(out, gdn(planar(x + bias)) + branch, twin, NORMALISED)


def test_first(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, height, width, channels = shape
    size = batch, 3, 2 * height, 2 * width
    images = torch.randint(0, 256, size, dtype=torch.uint8, device=device)
    weight = (random(channels, 3, 3, 3, device=device) / 4).to(kernel.multiplied(dtype))
    bias = random(channels, device=device)
    packed = nn.functional.pad(weight.flatten(1).T, (0, 0, 0, 5)).contiguous()
    out = torch.full(shape, float("nan"), dtype=dtype, device=device)
    centres = out.new_full((*shape[:3], kernel.PADDED), float("nan"))
    kernel.first(images, packed, bias, out=out, centres=centres)
    unit = images.float() / 255
    expected = nn.functional.conv2d(unit, weight.float(), bias, stride=2, padding=1)
    twin, twin_centres = kernel.first_twin(images, packed, bias)
    check(out, nn.functional.gelu(expected), twin)
    torch.testing.assert_close(centres.float(), twin_centres, **TOLERANCES[dtype])
    assert torch.equal(twin_centres[..., :3], unit[..., ::2, ::2].permute(0, 2, 3, 1))
    assert not centres[..., 3:].any()


@pytest.mark.parametrize("size", [(2, 3, 5), (1, 1, 1), (1, 33, 65)])
def test_to_pixels(device: torch.device, size: tuple[int, int, int]) -> None:
    """The nine taps of a 3x3 convolution, in eighths, of which sums are exact in any order."""
    batch, height, width = size
    weight = torch.randint(-2, 3, (12, 16, 3, 3), device=device) / 8.0
    given = torch.randint(-1, 2, (*size, 16), device=device).float()
    bias = 0.5 + random(2, 2, 3, device=device) / 100
    convolved = nn.functional.conv2d(planar(given), weight, padding=1)
    expected = shuffled(convolved.permute(0, 2, 3, 1).unflatten(3, (2, 2, 3)) + bias)
    x = torch.full((*size, kernel.TAP_OUTPUTS), float("nan"), device=device)
    x[..., :108] = given @ weight.permute(2, 3, 0, 1).flatten(0, 2).T
    out = torch.full((batch, 3, 2 * height, 2 * width), 93, dtype=torch.uint8, device=device)
    kernel.to_pixels(x, bias, out=out)
    expected = (expected.clamp(0, 1) * 255).round().to(torch.uint8)
    for found in (out, kernel.to_pixels_twin(x, bias)):  # a sum begins with the bias, or ends
        difference = (found.int() - expected.int()).abs()
        assert difference.max() <= 1 and difference.count_nonzero() <= 2
    assert expected.unique().numel() > 2


@pytest.mark.gpu
def test_beyond_32_bits(device: torch.device) -> None:
    """More elements than an int32 counts, as photographs beyond 44 megapixels have."""
    x = torch.zeros(1, 1 << 15, 1 << 10, 96, dtype=torch.bfloat16, device=device)
    x[:, -1] = 1.0
    kernel.activate(x, torch.zeros(96, device=device), out=x)
    assert (x[:, -1] == torch.tensor(0.8413, dtype=torch.bfloat16)).all()
    assert not x[:, :-1].any()
