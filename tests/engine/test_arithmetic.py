"""The specification against Python integers and plain float formulas, one number at a time.

Where docs/arithmetic.md fixes every operation, the comparison is `==`: the other side here uses
Python's unbounded integers and single float32 operations, no arrays.
"""

from __future__ import annotations

import math
from itertools import product as every

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlic_fast.coder import SCALES, scale_indexes
from mlic_fast.engine import arithmetic
from mlic_fast.engine.arithmetic import (
    ACTIVATION_LIMIT,
    SOFTMAX_ONE,
    Act,
    SpecOps,
    exp_int,
    exponents_of,
    gelu,
    half_tanh,
    quantise,
)
from mlic_fast.engine.packing.packed import Layer, Segment
from mlic_fast.models.checkerboard import Parity

f32 = np.float32
SPREAD = np.concatenate([np.linspace(-9, 9, 20001), np.geomspace(1e-30, 1e4, 200)]).astype(f32)

reals = st.floats(width=32, allow_nan=False, allow_infinity=False)


class Model:
    """As much of a packed model as the operations need."""

    config = None

    def __init__(self, exponents: dict[str, int], **layers: Layer) -> None:
        self.layers, self.exponents = layers, exponents


def integers(shape: tuple[int, ...], limit: int = ACTIVATION_LIMIT, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(-limit, limit + 1, shape).astype(np.int16)


def floats(shape: tuple[int, ...], scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(f32)


# -- functions of one number -----------------------------------------------------------------


def test_gelu() -> None:
    exact = [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in SPREAD.astype(float)]
    assert np.abs(gelu(SPREAD) - exact)[np.abs(SPREAD) <= 4].max() < 5e-5
    error = np.abs(gelu(SPREAD) - exact) / np.maximum(np.abs(SPREAD), 1)
    assert error.max() < 5e-5


def test_half_tanh() -> None:
    assert np.abs(half_tanh(SPREAD) - np.tanh(SPREAD.astype(float)) / 2).max() < 5e-5
    assert np.abs(half_tanh(np.array([-1e30, 1e30, -np.inf, np.inf], f32))).max() <= 0.5


def test_exp_int() -> None:
    x = np.concatenate([-np.abs(SPREAD), [0, -np.inf, -1e30]]).astype(f32)
    assert np.abs(exp_int(x) - SOFTMAX_ONE * np.exp(x.astype(float))).max() < 0.6
    assert exp_int(np.zeros(1, f32)) == SOFTMAX_ONE
    falling = exp_int(np.sort(x))
    assert (np.diff(falling) >= 0).all()  # monotone, so a larger logit never weighs less
    assert exp_int(np.array([-17, -np.inf], f32)).tolist() == [0, 0]


def one_exp(x: np.float32) -> int:
    """docs/arithmetic.md, section 3, with scalars."""
    u = min(x * f32(-1.44269504), f32(24))
    i = int(u)
    g = u - f32(i)
    p = f32(0.006766298320144415)
    for c in (-0.05307213217020035, 0.2393394410610199, -0.6930297017097473, 0.9999973776956299):
        p = p * g + f32(c)
    return round(float(p * f32(2.0**-i) * f32(16383)))


def one_gelu(r: np.float32) -> np.float32:
    t = max(min(r, f32(4)), f32(-4))
    s = t * t
    p = f32(-1.3012811939105973e-09)
    for c in (
        1.0419547891160619e-07,
        -3.657126626421814e-06,
        7.485509559046477e-05,
        -0.0010064917150884867,
        0.009505406953394413,
        -0.06588786095380783,
        0.3986733853816986,
    ):
        p = p * s + f32(c)
    return r * (f32(0.5) + t * p)


def one_quantise(r: np.float32, exponent: int) -> int:
    with np.errstate(over="ignore"):
        scaled = float(f32(r) * f32(2.0**exponent))
    return round(max(-4095.0, min(4095.0, scaled)))  # Python rounds ties to even


@given(reals)
def test_functions_of_one_number_as_written(x: float) -> None:
    r = f32(x)
    with np.errstate(all="ignore"):
        assert gelu(np.array([r]))[0] == one_gelu(r)
        assert exp_int(np.array([-abs(r)]))[0] == one_exp(-abs(r))


@given(reals, st.integers(-60, 60))
def test_quantise_as_written(x: float, exponent: int) -> None:
    with np.errstate(over="ignore"):
        assert quantise(np.array([x], f32), exponent)[0] == one_quantise(f32(x), exponent)


def test_quantise_rounds_ties_to_even_and_saturates() -> None:
    r = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 4094.5, 4095.5, 1e9, -np.inf, np.nan], f32)
    expected = [0, 2, 2, 0, -2, 4094, 4095, 4095, -4095, -4095]
    assert quantise(r, 0).tolist() == expected
    assert quantise(r / 8, 3).tolist() == expected


@given(st.floats(2.0**-40, 2.0**40, width=32))
def test_exponents_are_the_largest_that_fit(largest: float) -> None:
    exponent = int(exponents_of(np.array(largest, f32)))
    assert largest * 2.0**exponent <= ACTIVATION_LIMIT < largest * 2.0 ** (exponent + 1)


def test_exponents_of_extremes() -> None:
    assert exponents_of(np.array([0, 1e-38, 1e38], f32)).tolist() == [0, 60, -60]


def test_scale_indexes_at_the_thresholds() -> None:
    scales = np.asarray(SCALES, f32)
    above = np.nextafter(scales, f32(np.inf))
    assert scale_indexes(scales).tolist() == list(range(64))
    assert scale_indexes(above).tolist() == [*range(1, 64), 63]
    odd = np.array([-5, 0, -np.inf, np.inf, np.nan], f32)
    assert scale_indexes(odd).tolist() == [0, 0, 0, 63, 63]


# -- products --------------------------------------------------------------------------------


def one_conv(inputs: list[Act], layer: Layer, b: int, row: int, column: int, o: int) -> np.float32:
    """bias + for each input float(integer sum) * (scale * 2^-e), in order."""
    r = layer.bias[o]
    for x, segment in zip(inputs, layer.segments, strict=True):
        _, k, _, channels = segment.weight.shape
        total = 0
        for dy, dx, c in every(range(k), range(k), range(channels)):
            y, z = row + dy - k // 2, column + dx - k // 2
            if 0 <= y < x.q.shape[1] and 0 <= z < x.q.shape[2]:
                total += int(x.q[b, y, z, c]) * int(segment.weight[o, dy, dx, c])
        r = r + f32(total) * (segment.scale[o] * f32(2.0**-x.exponent))
    return r


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_convolution_of_a_concatenation(kernel: int) -> None:
    channels, outputs = (3, 5, 2), 4
    inputs = [
        Act(integers((2, 4, 6, c), seed=i), e)
        for i, (c, e) in enumerate(zip(channels, (3, 7, -2), strict=True))
    ]
    layer = Layer(
        floats((outputs,)),
        tuple(
            Segment(integers((outputs, kernel, kernel, c), 16383, i), floats((outputs,), 1e-4, i))
            for i, c in enumerate(channels)
        ),
    )
    ops = SpecOps(Model({"out": 5}, layer=layer))  # type: ignore[arg-type]
    whole = ops.conv("layer", inputs)
    for index in np.ndindex(whole.shape):
        assert whole[index] == one_conv(inputs, layer, *index)

    # The same in parts, at one colour, and with all that may follow the sum.
    assert np.array_equal(
        ops.conv("layer", inputs[1:], partial=ops.conv("layer", inputs[:1])), whole
    )
    for parity in Parity:
        at = ops.conv("layer", inputs, at=parity)
        for b, row, column in np.ndindex(at.shape[:3]):
            assert np.array_equal(at[b, row, column], whole[b, row, colour(row, column, parity)])
        part = ops.conv("layer", inputs[:2], at=parity)
        assert np.array_equal(ops.conv("layer", inputs[2:], partial=part, at=parity), at)
    real = floats(whole.shape, 9.0)
    residual = Act(integers(whole.shape, seed=9), 6)
    out = ops.conv("layer", inputs, gelu_after=True, residual=residual, out="out")
    other = ops.conv("layer", inputs, gelu_after=True, residual=real)
    assert out.exponent == 5
    assert out.q.dtype == np.int16
    for index in np.ndindex(whole.shape):
        r = one_gelu(whole[index])
        assert out.q[index] == one_quantise(r + f32(residual.q[index]) * f32(2.0**-6), 5)
        assert other[index] == r + real[index]


def colour(row: int, half_column: int, parity: Parity) -> int:
    """Column of a squeezed position, docs/arithmetic.md, section 1."""
    return 2 * half_column + (row + int(parity)) % 2


def test_worst_case_sums_wrap_nowhere() -> None:
    """All limits at once: the sum that the packer allows is exact, and one more would not fit."""
    budget = (2**31 - 1) // ACTIVATION_LIMIT
    weight = np.zeros((1, 1, 1, 40), np.int16)
    weight[..., :33] = [budget // 33] * 33
    weight[..., 33] = budget - 33 * (budget // 33)
    x = np.full((1, 2, 2, 40), ACTIVATION_LIMIT, np.int16)
    total = arithmetic.product(x, weight)
    assert (total == budget * ACTIVATION_LIMIT).all()
    assert (arithmetic.product(-x, weight) == -budget * ACTIVATION_LIMIT).all()


def test_depthwise_convolution() -> None:
    x = Act(integers((2, 4, 6, 3)), 4)
    segment = Segment(integers((3, 3, 3, 1), 16383, 1), floats((3,), 1e-5))
    layer = Layer(floats((3,)), (segment,))
    ops = SpecOps(Model({"out": 6}, layer=layer))  # type: ignore[arg-type]
    for gelu_after in (False, True):
        out = ops.depthwise("layer", x, gelu_after=gelu_after, out="out")
        for b, row, column, c in np.ndindex(x.q.shape):
            one = Layer(layer.bias[c:], (Segment(segment.weight[c:], segment.scale[c:]),))
            r = one_conv([Act(x.q[..., c : c + 1], 4)], one, b, row, column, 0)
            assert out.q[b, row, column, c] == one_quantise(one_gelu(r) if gelu_after else r, 6)


# -- norm and attention ----------------------------------------------------------------------


def test_layer_norm() -> None:
    channels = 32
    x = Act(integers((1, 3, 4, channels)), 8)
    x.q[0, 0, 0] = 0  # no variance: the bias alone
    x.q[0, 0, 1] = ACTIVATION_LIMIT * (-1) ** np.arange(channels)
    layer = Layer(floats((channels,)), gain=floats((channels,), 1.0, 1))
    ops = SpecOps(Model({"out": 9}, norm=layer))  # type: ignore[arg-type]
    out = ops.layer_norm("norm", x, "out")
    real = x.q.astype(float) / 2**8
    expected = (real - real.mean(-1, keepdims=True)) / np.sqrt(real.var(-1, keepdims=True) + 1e-5)
    assert np.abs(out.q / 2**9 - np.clip(expected * layer.gain + layer.bias, -8, 8)).max() < 3e-3
    assert layer.gain is not None
    for row, column in np.ndindex(3, 4):
        q = [int(v) for v in x.q[0, row, column]]
        variance = channels * sum(v * v for v in q) - sum(q) ** 2
        epsilon = f32(1e-5 * channels**2) * f32(2.0**16)
        root = np.sqrt(f32(variance) + epsilon)
        for c in range(channels):
            r = (f32(channels * q[c] - sum(q)) / root) * layer.gain[c] + layer.bias[c]
            assert out.q[0, row, column, c] == one_quantise(r, 9)


def test_window_attention() -> None:
    depth, heads, height, width, e = 16, 2, 4, 4, 9
    dim = depth * heads
    qkv = Act(integers((1, height, width, 3 * dim), 2000), e)
    layer = Layer(floats((heads, 25, 25)))
    ops = SpecOps(Model({"out": 10}, attention=layer))  # type: ignore[arg-type]
    out = ops.window_attention("attention", qkv, "out").q
    assert out.shape == (1, height, width // 2, 25 * dim)
    scale = f32(0.25) * f32(2.0 ** (-2 * e))
    nothing = [0] * (3 * dim)
    for row, half in every(range(height), range(width // 2)):
        column = colour(row, half, Parity.NON_ANCHOR)
        places = [(row + t // 5 - 2, column + t % 5 - 2) for t in range(25)]
        inside = [0 <= r < height and 0 <= c < width for r, c in places]
        anchor = [i and (r + c) % 2 == 1 for i, (r, c) in zip(inside, places, strict=True)]
        tokens = [
            qkv.q[0, r, c].tolist() if i else nothing
            for i, (r, c) in zip(inside, places, strict=True)
        ]
        for head, a in every(range(heads), range(0, 25, 4)):
            q = [tokens[a][2 * d + head] for d in range(depth)]
            keys = [b for b in range(25) if anchor[b] or not anchor[a]]
            logits = {}
            for b in keys:
                k = [tokens[b][dim + 2 * d + head] for d in range(depth)]
                dot = sum(x * y for x, y in zip(q, k, strict=True))
                logits[b] = f32(dot) * scale + layer.bias[head, a, b]
            top = max(logits.values())
            p = {b: one_exp(logit - top) for b, logit in logits.items()}
            for d in range(depth):
                total = sum(p[b] * tokens[b][2 * dim + 2 * d + head] for b in keys)
                r = (f32(total) / f32(sum(p.values()))) * f32(2.0**-e)
                actual = out[0, row, half, a * dim + head * depth + d]
                assert actual == one_quantise(r, 10)


def test_linear_attention() -> None:
    depth, heads = 4, 2
    q, k, v = (Act(integers((2, 2, 3, 8), 3000, i), e) for i, e in enumerate((9, 10, 8)))
    v.q[1, ..., :4] //= 500  # small averages: the exponent of a head follows them
    v.q[1, ..., 4:] = 0
    ops = SpecOps(Model({"out": 11}))  # type: ignore[arg-type]
    out = ops.linear_attention(q, k, v, heads, "out").q.reshape(2, 6, 8)
    queries, keys, values = (x.q.reshape(2, 6, 8).tolist() for x in (q, k, v))
    for b, head in every(range(2), range(heads)):
        part = range(head * depth, (head + 1) * depth)
        context = {}
        for d in part:
            column = [keys[b][n][d] for n in range(6)]
            p = [one_exp(f32(x - max(column)) * f32(2.0**-10)) for x in column]
            for j in part:
                total = sum(w * values[b][n][j] for n, w in enumerate(p))
                context[d, j] = f32(total) / f32(sum(p))
        largest = max(abs(float(c)) for c in context.values())
        x = 0
        if largest:
            x = next(e for e in range(60, -61, -1) if largest * 2.0**e <= 4095)
        rounded = {key: round(float(c * f32(2.0**x))) for key, c in context.items()}
        for n in range(6):
            row = [queries[b][n][d] for d in part]
            p = [one_exp(f32(y - max(row)) * f32(2.0**-9)) for y in row]
            for j in part:
                total = sum(w * rounded[d, j] for w, d in zip(p, part, strict=True))
                r = (f32(total) / f32(sum(p))) * f32(2.0 ** -(x + 8))
                assert out[b, n, j] == one_quantise(r, 11)


@pytest.mark.parametrize("exclude", [False, True])
def test_softmax_attention(exclude: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a map where some queries have no key; and blocks change no bit."""
    depth, heads, height, half = 4, 2, 4, 3
    q, k, v = (Act(integers((2, height, half, 8), 4000, i), e) for i, e in enumerate((9, 10, 8)))
    ops = SpecOps(Model({"out": 7}))  # type: ignore[arg-type]
    out = ops.softmax_attention(q, k, v, heads, "out", exclude=exclude).q
    scale = f32(0.5) * f32(2.0**-19)
    seen = set()
    for b, row, column, head in every(range(2), range(height), range(half), range(heads)):
        part = slice(head * depth, (head + 1) * depth)
        query = q.q[b, row, column, part].tolist()
        keys = [
            (r, c)
            for r, c in every(range(height), range(half))
            if not exclude
            or abs(r - row) > 2
            or abs(colour(r, c, Parity.ANCHOR) - colour(row, column, Parity.NON_ANCHOR)) > 2
        ]
        seen.add(len(keys))
        logits = [
            sum(x * y for x, y in zip(query, k.q[b, r, c, part].tolist(), strict=True))
            for r, c in keys
        ]
        p = [one_exp(f32(logit - max(logits)) * scale) for logit in logits]
        for j in range(depth):
            total = sum(
                w * int(v.q[b, r, c, head * depth + j]) for w, (r, c) in zip(p, keys, strict=True)
            )
            r = (f32(total) / f32(sum(p))) * f32(2.0**-8) if keys else f32(0)
            assert out[b, row, column, head * depth + j] == one_quantise(r, 7)
    assert len(seen) > 2 if exclude else seen == {height * half}

    monkeypatch.setattr(arithmetic, "QUERY_BLOCK", 5)
    blocks = ops.softmax_attention(q, k, v, heads, "out", exclude=exclude).q
    assert np.array_equal(blocks, out)


def test_softmax_attention_without_any_key() -> None:
    x = Act(integers((1, 2, 1, 8)), 3)
    ops = SpecOps(Model({"out": 7}))  # type: ignore[arg-type]
    assert not ops.softmax_attention(x, x, x, 2, "out", exclude=True).q.any()


@pytest.mark.parametrize("exponent", [-60, 60])
def test_extreme_exponents_give_one_answer(exponent: int) -> None:
    """Overflow to infinity on the way is defined: no result depends on how a NaN is handled."""
    dim = 8
    x = Act(integers((1, 4, 4, dim)), exponent)
    qkv = Act(integers((1, 4, 4, 3 * dim)), exponent)
    layer = Layer(floats((2, 25, 25)))
    norm = Layer(floats((dim,)), gain=floats((dim,)))
    ops = SpecOps(Model({"out": exponent}, attention=layer, norm=norm))  # type: ignore[arg-type]
    with np.errstate(all="ignore"):
        for out in (
            ops.window_attention("attention", qkv, "out"),
            ops.linear_attention(x, x, x, 2, "out"),
            ops.softmax_attention(x, x, x, 2, "out"),
            ops.layer_norm("norm", x, "out"),
        ):
            assert np.abs(out.q.astype(int)).max() <= ACTIVATION_LIMIT


# -- layouts ---------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from(list(Parity)))
def test_layouts(rows: int, columns: int, parity: Parity) -> None:
    height, width = 2 * rows, 2 * columns
    x = Act(integers((2, height, width, 4)), 0)
    ops = SpecOps(Model({}))  # type: ignore[arg-type]
    half = ops.squeeze(x, parity)
    kept, back = ops.keep(x, parity), ops.unsqueeze(half, parity)
    shuffled = ops.pixel_shuffle(x)
    assert np.array_equal(kept.q, back.q)
    assert shuffled.q.shape == (2, 2 * height, 2 * width, 1)
    for b, row, column in np.ndindex(2, height, width):
        mine = (row + column) % 2 == int(parity)
        assert np.array_equal(kept.q[b, row, column], x.q[b, row, column] * mine)
        if mine:
            assert np.array_equal(half.q[b, row, column // 2], x.q[b, row, column])
        for c in range(4):
            assert shuffled.q[b, 2 * row + c // 2, 2 * column + c % 2] == x.q[b, row, column, c]
