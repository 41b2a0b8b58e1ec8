"""The C++ kernels equal the specification, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from lively import SMALL

from mlic_fast._C import exact
from mlic_fast.coder import gaussian_tables
from mlic_fast.engine import arithmetic
from mlic_fast.engine.arithmetic import Act, SpecOps, f32
from mlic_fast.engine.cpu.cpu_operations import CpuOps
from mlic_fast.engine.cpu.instruction_sets import ISA_NAMES, ISA_VARIABLE, instruction_set
from mlic_fast.engine.packing.packed import Layer, PackedModel, Segment
from mlic_fast.errors import EngineError
from mlic_fast.models.checkerboard import Parity

pytestmark = pytest.mark.usefixtures("poisoned")

LARGEST_SUM = (2**31 - 1) // 4095
SIZES = [(1, 1, 2), (2, 5, 6), (1, 12, 16)]
AT = [None, Parity.ANCHOR, Parity.NON_ANCHOR]
both_sizes_of_head = pytest.mark.parametrize(
    ("depth", "heads"), [(16, 2), (32, 3), (5, 2), (64, 1)]
)

rng = np.random.default_rng(7)


def act(*shape: int, exponent: int = 8, limit: int = 4095) -> Act:
    return Act(rng.integers(-limit, limit + 1, shape).astype(np.int16), exponent)


def real(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(f32)


def segment(outputs: int, kernel: int, channels: int) -> Segment:
    w = rng.integers(-16383, 16384, (outputs, kernel, kernel, channels))
    excess = np.abs(w).sum((1, 2, 3), keepdims=True) / LARGEST_SUM
    return Segment((w / np.maximum(excess, 1)).astype(np.int16), real(outputs) * f32(1e-4))


def packed(**layers: Layer) -> PackedModel:
    exponents = {"coarse": 5, "fine": 12, "layer": 5}
    return PackedModel(SMALL["mlic_plus_plus"], layers, exponents, gaussian_tables())


HOW = [(isa, 1) for isa in exact.instruction_sets()] + [(exact.instruction_sets()[0], 3)]


@pytest.fixture(params=HOW, ids=lambda how: f"{how[0]}-{how[1]}")
def how(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Instruction set and threads."""
    isa, threads = request.param
    return {"isa": isa, "threads": threads}


def check(model: PackedModel, how: dict[str, Any], method: str, *args: Any, **kwargs: Any) -> Any:
    """Runs one operation on both; returns the result."""
    expected = getattr(SpecOps(model), method)(*args, **kwargs)
    result = getattr(CpuOps(model, **how), method)(*args, **kwargs)
    if isinstance(expected, Act):
        assert result.exponent == expected.exponent
        expected, result = expected.q, result.q
    assert result.dtype == expected.dtype and result.shape == expected.shape
    np.testing.assert_array_equal(result, expected)
    return result


def test_constants_are_those_of_the_specification() -> None:
    constants = exact.constants()
    for name, value in constants.items():
        assert value == pytest.approx(getattr(arithmetic, name), rel=0, abs=0), name
    assert len(constants["GELU"]) == len(arithmetic.GELU)


@pytest.mark.parametrize("size", [*SIZES, (1, 3, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize(
    ("kernel", "channels", "outputs"),
    [(1, (6, 64), 100), (1, (5,), 3), (3, (8, 5), 37), (3, (32,), 64), (5, (3, 2), 17)],
)
def test_conv(how: Any, size: Any, kernel: int, channels: Any, outputs: int) -> None:
    segments = tuple(segment(outputs, kernel, c) for c in channels)
    model = packed(layer=Layer(real(outputs), segments))
    inputs = [act(*size, c, exponent=7 + i) for i, c in enumerate(channels)]
    for at in AT if size[2] % 2 == 0 else [None]:
        shape = (*size[:2], size[2] if at is None else size[2] // 2, outputs)
        check(model, how, "conv", "layer", inputs, at=at)
        check(model, how, "conv", "layer", inputs[:1], at=at, gelu_after=True, out="coarse")
        for residual in (real(*shape), act(*shape), act(*shape[:3], outputs + 3)):
            if isinstance(residual, Act):
                residual = Act(residual.q[..., :outputs], residual.exponent)
            kwargs = {"at": at, "gelu_after": True, "residual": residual}
            check(model, how, "conv", "layer", inputs, out="fine", **kwargs)
            check(model, how, "conv", "layer", inputs[1:], partial=real(*shape), **kwargs)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 2), (2, 5, 7), (1, 1, 40), (1, 13, 22)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("channels", "outputs"), [(64, 37), (160, 100), (192, 16)])
def test_winograd(how: Any, size: Any, kernel: int, channels: int, outputs: int) -> None:
    layer = Layer(real(outputs), (segment(outputs, kernel, channels),))
    model = packed(layer=layer)
    pairs = how["isa"] != "amx"
    assert exact.Weights(layer.segments[0].weight, how["isa"]).winograd is pairs
    wide = act(*size, channels + 5)
    x = Act(wide.q[..., 2 : 2 + channels], wide.exponent)
    check(model, how, "conv", "layer", [x], gelu_after=True, out="coarse")
    shape = (*size, outputs)
    check(model, how, "conv", "layer", [x], partial=real(*shape), residual=real(*shape))
    check(model, how, "conv", "layer", [x], residual=act(*shape), out="fine")
    # Of several inputs those that can be are computed so, whichever they are.
    parts = (channels, 6, channels, 96)
    segments = tuple(segment(outputs, kernel, c) for c in parts)
    model = packed(layer=Layer(real(outputs), segments))
    inputs = [act(*size, c, exponent=7 + i) for i, c in enumerate(parts)]
    kwargs = {"gelu_after": True, "residual": real(*shape)}
    check(model, how, "conv", "layer", inputs, **kwargs)
    check(model, how, "conv", "layer", inputs[1:], partial=real(*shape), out="coarse", **kwargs)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("sign", [-1, 1])
def test_winograd_reaches_the_ends_of_int32(how: Any, kernel: int, sign: int) -> None:
    """All parts together, and each for itself; with signs so that products wrap around."""
    channels, outputs = 160, 16
    w = rng.integers(0, 2, (outputs, kernel, kernel, channels)) * 2 - 1
    w *= LARGEST_SUM // (kernel**2 * channels)
    w = w.astype(np.int16)
    layer = Layer(real(outputs), (Segment(w, np.ones(outputs, f32)),))
    assert exact.Weights(w, how["isa"]).winograd is (how["isa"] != "amx")
    # At the centre of image o, output o is as large as it can be.
    q = np.sign(w).astype(np.int16) * np.int16(4095 * sign)
    sums = check(packed(layer=layer), how, "conv", "layer", [Act(q, 0)])
    centre = kernel // 2
    assert abs(sums[np.arange(outputs), centre, centre, np.arange(outputs)]).min() > 0.99 * 2**31


@pytest.mark.parametrize("kernel", [3, 5])
def test_winograd_around_a_quarter_of_int32(how: Any, kernel: int) -> None:
    """Inputs like the weights: their norms promise no more than the sum is. Below a quarter of
    int32 it is made of all channels at once, above in parts."""
    channels, images = 160, 16
    w = rng.standard_normal((images, kernel, kernel, channels))
    w = (w * (0.999 * LARGEST_SUM / np.abs(w).sum((1, 2, 3)).max())).astype(np.int16)
    wanted = 2.0**29 * np.linspace(0.98, 1.02, images) * np.resize([1, -1], images)
    squares = (w.astype(np.float64) ** 2).sum((1, 2, 3))
    q = np.rint(w * (wanted / squares)[:, None, None, None])
    assert np.abs(q).max() <= 4095
    model = packed(layer=Layer(real(images), (Segment(w, np.ones(images, f32)),)))
    assert exact.Weights(w, how["isa"]).winograd is (how["isa"] != "amx")
    sums = check(model, how, "conv", "layer", [Act(q.astype(np.int16), 0)])
    own = sums[np.arange(images), kernel // 2, kernel // 2, np.arange(images)]
    assert 0 < (np.abs(own) < 2**29).sum() < images


def test_weights_that_do_not_fit_are_multiplied_directly(how: Any) -> None:
    """Nine that add up to more than 16 bits; channels of which few fill a quarter of int32."""
    for kernel, value, channels in [
        (3, 4000, slice(None, None, 16)),
        (3, 3600, slice(8)),
        (5, 2500, slice(8)),
    ]:
        w = np.zeros((20, kernel, kernel, 64), np.int16)
        w[..., channels] = value
        assert not exact.Weights(w, how["isa"]).winograd
        model = packed(layer=Layer(real(20), (Segment(w, real(20)),)))
        check(model, how, "conv", "layer", [act(1, 5, 6, 64)])


@pytest.mark.parametrize("size", [(1, 2, 2), (2, 4, 6), (1, 12, 34)], ids=str)
@pytest.mark.parametrize(("kernel", "channels", "outputs"), [(1, 5, 3), (3, 3, 37), (3, 32, 64)])
def test_strided_conv(how: Any, size: Any, kernel: int, channels: int, outputs: int) -> None:
    model = packed(layer=Layer(real(outputs), (segment(outputs, kernel, channels),)))
    check(model, how, "strided_conv", "layer", act(*size, channels))
    wide = act(*size, channels + 3)
    view = Act(wide.q[..., 1 : 1 + channels], wide.exponent)
    check(model, how, "strided_conv", "layer", view, gelu_after=True, out="fine")


@pytest.mark.parametrize("channels", [1, 7, 16, 192])
@pytest.mark.parametrize("size", [(1, 2, 2), (2, 4, 6), (1, 10, 22)], ids=str)
def test_gdn(how: Any, size: Any, channels: int) -> None:
    """Squares from zero to beyond the limit, roots of the least norms that there are."""
    gamma = segment(channels, 1, channels)
    gamma = Segment(np.abs(gamma.weight), np.abs(gamma.scale))
    beta = np.abs(real(channels)) * f32(2.0) ** rng.integers(-20, 1, channels).astype(f32)
    model = packed(layer=Layer(beta, (gamma, gamma)))
    batch, height, width = size
    r = real(*size, channels) * f32(2.0) ** rng.integers(-40, 40, (*size, channels)).astype(f32)
    r[0, -1] = 0
    r.flat[:3] = 0, -0.0, 3e15
    for part in SpecOps(model).squares(r, "layer"):
        assert part.q.min() == 0 and part.q.max() == 2047
    for skip in (real(*r.shape), real(batch, height // 2, width // 2, 4 * channels)):
        for inverse in (False, True):
            check(model, how, "gdn", "layer", r, skip, inverse=inverse, out="fine")


def test_conv_reaches_the_ends_of_int32(how: Any) -> None:
    """Every product at its largest, in sums that just fit; and sums that pass through 2^31."""
    w = np.zeros((20, 1, 1, 66), np.int16)
    w[..., :32] = 16383
    w[..., 32] = LARGEST_SUM - 32 * 16383
    w[1::2] *= -1
    x = Act(np.full((1, 2, 2, 66), 4095, np.int16), 0)
    x.q[:, 1] *= -1
    model = packed(layer=Layer(np.zeros(20, f32), (Segment(w, np.ones(20, f32)),)))
    result = check(model, how, "conv", "layer", [x])
    assert np.abs(result).min() == f32(4095 * LARGEST_SUM)
    check(model, how, "conv", "layer", [x], gelu_after=True, out="fine")


def test_conv_takes_every_integer(how: Any) -> None:
    """Also where a number is split into bytes: each activation, and each weight, with the edges of
    the other.
    """
    edges = [0, 1, 127, 128, 129, 255, 256, 257, 383, 384, 4094, 4095, 16255, 16256, 16383]
    edges += [-edge for edge in edges]
    for weights, activations in (
        (edges, range(-4095, 4096)),
        (range(-16383, 16384), [e for e in edges if abs(e) < 4096]),
    ):
        w = np.array(weights, np.int16).reshape(-1, 1, 1, 1)
        one = np.ones(len(w), f32)
        model = packed(layer=Layer(0 * one, (Segment(w, one),)))
        x = Act(np.array(activations, np.int16).reshape(1, 1, -1, 1), 0)
        check(model, how, "conv", "layer", [x])


def test_conv_of_any_number_of_channels_and_positions(how: Any) -> None:
    for channels in (1, 2, 63, 64, 65, 127, 128, 130):
        model = packed(layer=Layer(real(18), (segment(18, 1, channels), segment(18, 1, 33))))
        for width in (1, 15, 16, 17, 31, 33, 98):
            inputs = [act(1, 1, width, channels), act(1, 1, width, 33)]
            check(model, how, "conv", "layer", inputs, gelu_after=True, out="fine")


def test_conv_takes_any_float(how: Any) -> None:
    """Saturation, infinities and NaN give defined activations."""
    model = packed(layer=Layer(np.zeros(9, f32), (segment(9, 1, 4),)))
    partial = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -0.0, 7.5, 2.5], f32)
    partial = np.broadcast_to(partial, (1, 2, 2, 9))
    with np.errstate(all="ignore"):
        for gelu_after in (False, True):
            check(
                model, how, "conv", "layer", [], partial=partial, gelu_after=gelu_after, out="fine"
            )


def test_views(how: Any) -> None:
    """Channel slices, other strides and odd addresses give what copies give."""
    model = packed(
        layer=Layer(real(20), (segment(20, 3, 6),)),
        pointwise=Layer(real(20), (segment(20, 1, 6),)),
        depthwise=Layer(real(6), (segment(6, 3, 1),)),
    )
    wide = act(2, 4, 6, 11).q
    odd = np.zeros(2 * 4 * 6 * 6 * 2 + 1, np.uint8)[1:].view(np.int16).reshape(2, 4, 6, 6)
    odd[:] = wide[..., 5:]
    views = [
        wide[..., 3:9],
        wide[..., 5:],
        wide[..., :6].transpose(0, 2, 1, 3),
        wide[:, ::2, :, 1:7],
        wide[..., ::-2],
        np.broadcast_to(wide[:, :1, :, :6], (2, 4, 6, 6)),
        odd,
    ]
    for view in views:
        x = Act(view, 8)
        check(model, how, "conv", "layer", [x], at=Parity.ANCHOR, out="coarse")
        check(model, how, "conv", "pointwise", [x], residual=real(2, *view.shape[1:3], 20))
        check(model, how, "depthwise", "depthwise", x, out="coarse")
        check(model, how, "linear_attention", x, x, x, 2, "fine")
        check(model, how, "softmax_attention", x, x, x, 2, "fine", exclude=True)


@pytest.mark.parametrize("size", [*SIZES, (1, 3, 1), (1, 1, 1)], ids=str)
def test_elementwise_over_channels(how: Any, size: Any) -> None:
    for channels in (5, 16, 37):
        model = packed(
            depthwise=Layer(real(channels), (segment(channels, 3, 1),)),
            norm=Layer(real(channels), (), real(channels)),
        )
        x = act(*size, channels)
        check(model, how, "depthwise", "depthwise", x, out="coarse")
        check(model, how, "depthwise", "depthwise", x, gelu_after=True, out="fine")
        check(model, how, "layer_norm", "norm", x, "fine")
        check(model, how, "layer_norm", "norm", Act(np.full_like(x.q, -4095), -3), "fine")
        check(model, how, "quantise", real(*size, channels) * f32(300), "coarse")
        if size[2] % 2 == 0:
            y, r = real(*size, channels), real(*size[:2], size[2] // 2, channels) * f32(3)
            for parity in Parity:
                check(model, how, "add_residual", y, r, parity)


def test_conv_of_any_number_of_outputs(how: Any) -> None:
    """Panels of all widths, full or not."""
    for outputs in (*range(1, 290, 16), *range(16, 290, 16), 47, 190):
        model = packed(layer=Layer(real(outputs), (segment(outputs, 1, 6), segment(outputs, 1, 4))))
        inputs = [act(1, 1, 25, 6), act(1, 1, 25, 4)]
        residual = real(1, 1, 25, outputs)
        check(model, how, "conv", "layer", inputs, gelu_after=True, residual=residual, out="fine")
        check(model, how, "conv", "layer", inputs[1:], partial=residual)


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (32, 48)], ids=str)
@pytest.mark.parametrize("channels", [1, 37, 64])
def test_digest_and_scale(how: Any, size: Any, channels: int) -> None:
    wide = real(1, *size, channels + 3)
    wide[0, 0, 0, 2:4] = -0.0, 0.0
    for y in (wide[..., 2 : 2 + channels], wide[..., ::-1], wide.transpose(0, 2, 1, 3)):
        factors = real(y.shape[-1])
        check(packed(), how, "scale", y, factors)
        for first in (0, 12345, 2**31 + 5):
            found = CpuOps(packed(), **how).digest(y, first)
            assert found == SpecOps(packed()).digest(y, first)


@pytest.mark.parametrize("size", [(1, 2, 2), (2, 4, 10), (1, 64, 6)], ids=str)
@pytest.mark.parametrize("channels", [4, 12, 36])
def test_layouts_of_four_positions(how: Any, size: Any, channels: int) -> None:
    x = act(*size, channels + 1)
    x = Act(x.q[..., 1:], x.exponent)
    check(packed(), how, "space_to_depth", x)
    check(packed(), how, "depth_to_space", x.q)
    check(packed(), how, "depth_to_space", real(*size, channels))


@pytest.mark.parametrize("size", [*SIZES, (2, 3, 2)], ids=str)
def test_layouts_of_one_colour(how: Any, size: Any) -> None:
    wide = Act(act(*size, 11).q[..., 3:10], 5)
    half = act(size[0], size[1], size[2] // 2, 7)
    for parity in Parity:
        check(packed(), how, "keep", wide, parity)
        check(packed(), how, "squeeze", wide, parity)
        expected = check(packed(), how, "unsqueeze", half, parity)
        out = np.full_like(expected, -77)
        exact.Kernels(how["isa"], how["threads"]).colour(half.q, int(parity), out=out)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("dim", "heads"), [(32, 2), (10, 2), (64, 1)])
def test_window_attention(how: Any, size: Any, dim: int, heads: int) -> None:
    model = packed(attention=Layer(real(heads, 25, 25)))
    for limit in (4095, 150):
        check(model, how, "window_attention", "attention", act(*size, 3 * dim, limit=limit), "fine")
    constant = Act(np.full((*size, 3 * dim), 4095, np.int16), 0)
    check(model, how, "window_attention", "attention", constant, "fine")


@pytest.mark.parametrize("size", [*SIZES, (1, 1, 1), (1, 9, 30)], ids=str)
@both_sizes_of_head
def test_attention_over_positions(how: Any, size: Any, depth: int, heads: int) -> None:
    model = packed()
    for limit in (4095, 100):
        q, k, v = (act(*size, depth * heads, limit=limit) for _ in range(3))
        check(model, how, "linear_attention", q, k, v, heads, "fine")
        check(model, how, "softmax_attention", q, k, v, heads, "fine")
        check(model, how, "softmax_attention", q, k, v, heads, "fine", exclude=True)
        other = [act(size[0], 3, 7, depth * heads, limit=limit) for _ in range(2)]
        check(model, how, "linear_attention", q, *other, heads, "fine")
        check(model, how, "softmax_attention", q, *other, heads, "fine")


@both_sizes_of_head
def test_attention_of_extreme_values(how: Any, depth: int, heads: int) -> None:
    """Equal keys give every softmax weight its largest value; opposite ones the widest spread."""
    model = packed()
    high = Act(np.full((1, 9, 30, depth * heads), 4095, np.int16), -2)
    low = Act(-high.q, 9)
    mixed = Act(high.q.copy(), 0)
    mixed.q[:, ::3] = -4095
    zero = Act(np.zeros_like(high.q), 8)
    for q, k, v in [
        (high, high, high),
        (high, mixed, low),
        (mixed, mixed, mixed),
        (low, low, zero),
    ]:
        check(model, how, "linear_attention", q, k, v, heads, "coarse")
        for exclude in (False, True):
            check(model, how, "softmax_attention", q, k, v, heads, "coarse", exclude=exclude)


def test_results_do_not_depend_on_flushing_subnormals(how: Any) -> None:
    w = segment(16, 1, 64)
    tiny = Segment(w.weight, np.full(16, 1e-41, f32))
    ops = CpuOps(packed(layer=Layer(np.zeros(16, f32), (tiny,))), **how)
    x = act(1, 16, 16, 64, limit=20)
    expected = ops.conv("layer", [x])
    assert np.any((expected != 0) & (np.abs(expected) < np.finfo(f32).tiny))
    assert torch.set_flush_denormal(True) or pytest.skip("no such mode here")
    try:
        result = ops.conv("layer", [x])
    finally:
        torch.set_flush_denormal(False)
    assert result.tobytes() == expected.tobytes()


def test_several_threads_call_at_once(how: Any) -> None:
    ops = CpuOps(packed(layer=Layer(real(48), (segment(48, 3, 32),))), **how)
    inputs = [act(1, 8, 8, 32) for _ in range(4)]
    expected = [ops.conv("layer", [x]) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: ops.conv("layer", [x]), inputs * 20))
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, expected[i % 4])


def test_fork_and_exit() -> None:
    """A child forked after the workers have started has its own; nothing hangs at exit."""
    program = """
import os
import numpy as np
from mlic_fast._C import exact
r = np.linspace(-9, 9, 1 << 18, dtype=np.float32)
def run():
    q = np.empty(r.shape, np.int16)
    exact.Kernels("scalar", 4).quantise(r, out=q, out_scale=64.0)
    return q
first = run()
child = os.fork()
same = (run() == first).all()
if child == 0:
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
print(same and status == 0)
"""
    run = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "True"


def test_unfit_arrays_are_value_errors() -> None:
    model = packed(
        layer=Layer(real(4), (segment(4, 3, 6),)),
        depthwise=Layer(real(6), (segment(6, 3, 1),)),
        norm=Layer(real(6), (), real(6)),
        attention=Layer(real(2, 25, 25)),
    )
    ops = CpuOps(model)
    x = act(1, 2, 4, 6)
    bad: list[Any] = [
        Act(x.q.astype(np.int32), 0),
        Act(x.q[0], 0),
        Act(x.q[..., :5], 0),
        Act(x.q.astype(">i2"), 0),
    ]
    for b in bad:
        with pytest.raises(ValueError):
            ops.conv("layer", [b], out="fine")
        with pytest.raises(ValueError):
            ops.depthwise("depthwise", b, out="fine")
        with pytest.raises(ValueError):
            ops.layer_norm("norm", b, "fine")
    for call in (
        lambda: ops.conv("layer", []),
        lambda: ops.conv("layer", [x], partial=real(1, 2, 3, 4)),
        lambda: ops.conv("layer", [x], partial=real(1, 2, 4, 4).astype(np.float64)),
        lambda: ops.conv("layer", [x], residual=act(1, 2, 4, 3)),
        lambda: ops.conv("layer", [act(1, 2, 3, 6)], at=Parity.ANCHOR),
        lambda: ops.squeeze(act(1, 2, 3, 6), Parity.ANCHOR),
        lambda: ops.keep(act(1, 2, 3, 6), Parity.ANCHOR),
        lambda: ops.window_attention("attention", act(1, 2, 3, 12), "fine"),
        lambda: ops.linear_attention(x, act(1, 2, 4, 8), act(1, 2, 4, 8), 2, "fine"),
        lambda: ops.linear_attention(x, x, x, 4, "fine"),
        lambda: ops.softmax_attention(x, x, act(1, 2, 3, 6), 2, "fine"),
        lambda: ops.softmax_attention(x, *[act(1, 2, 3, 6)] * 2, 2, "fine", exclude=True),
        lambda: ops.quantise(real(3).astype(np.float64), "fine"),
        lambda: ops.scale(real(1, 2, 4, 6), real(5)),
        lambda: ops.digest(real(2, 2, 4, 6)),
        lambda: ops.digest(real(1, 2, 4, 6).astype(np.float64)),
        lambda: ops.depth_to_space(real(1, 2, 4, 6)),
        lambda: ops.space_to_depth(act(1, 3, 4, 6)),
        lambda: ops.add_residual(real(1, 2, 3, 6), real(1, 2, 1, 6), Parity.ANCHOR),
    ):
        with pytest.raises(ValueError):
            call()


def test_weights_beyond_the_guarantee_are_refused() -> None:
    too_large = np.zeros((1, 1, 1, 40), np.int16)
    too_large[..., :33] = 16383
    for w in (
        too_large,
        np.full((1, 1, 1, 1), 16384, np.int16),
        np.full((2, 1, 1, 1), -32768, "i2"),
    ):
        with pytest.raises(ValueError, match="int32"):
            CpuOps(packed(layer=Layer(real(1), (Segment(w, real(1)),))))


@pytest.mark.parametrize("isa", ISA_NAMES)
def test_instruction_sets_of_this_machine(isa: str) -> None:
    if isa not in exact.instruction_sets():
        with pytest.raises(EngineError, match=f"does not support {isa}"):
            instruction_set(isa)
        pytest.skip(f"this machine does not have {isa}: its kernels are not checked here")
    assert CpuOps(packed(), isa=isa).isa == isa


def test_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    assert instruction_set() == exact.instruction_sets()[0]
    monkeypatch.setenv(ISA_VARIABLE, "scalar")
    assert CpuOps(packed()).isa == "scalar"
    monkeypatch.setenv(ISA_VARIABLE, "sse9")
    with pytest.raises(EngineError, match=", ".join(ISA_NAMES)):
        instruction_set()
    monkeypatch.setattr(
        "mlic_fast.engine.cpu.instruction_sets.exact.instruction_sets", lambda: ["scalar"]
    )
    with pytest.raises(EngineError, match="does not support avx512"):
        instruction_set("avx512")
