"""Linear attention of MLIC++: kernels == twin == specification."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planes_of import (
    activation,
    inputs_of,
    poisoned_slice,
    qkv_of,
    result,
    specification,
    values_of,
)

from mlic_fast.engine.arithmetic import Act, Int16
from mlic_fast.kernels import configs
from mlic_fast.kernels import linear_attention as module
from mlic_fast.kernels.depthwise import key_sums_twin
from mlic_fast.kernels.layouts import Input, KeySums
from mlic_fast.kernels.linear_attention import (
    chunks_of,
    linear_attention,
    linear_attention_twin,
)
from mlic_fast.kernels.planes import ALL, ANCHORS, NON_ANCHORS
from mlic_fast.models.checkerboard import Parity

#: Of q, k, v and out.
EXPONENTS = (9, 10, 8, 10)
SCALE = 2.0 ** EXPONENTS[3]

pytestmark = pytest.mark.usefixtures("poisoned")


def with_sums(k: Input, heads: int) -> Input:
    """As the launch gives them that makes the keys."""
    return replace(k, sums=key_sums_twin(k.planes, k.read, heads))


def check(
    qkv: list[Int16],
    heads: int,
    device: torch.device,
    colours: tuple[int, int] = (ALL, ALL),
    exponents: tuple[int, int, int, int] = EXPONENTS,
) -> Int16:
    ops = specification({}, {"out": exponents[3]})
    acts = []
    for x, exponent, colour in zip(qkv, exponents, (*colours, colours[1]), strict=False):
        act = Act(x, exponent)
        acts.append(act if colour == ALL else ops.squeeze(act, Parity(colour)))
    with np.errstate(all="ignore"):
        expected = ops.linear_attention(*acts, heads, "out").q

    q, k, v = inputs_of(qkv, colours, device)
    arguments = q, with_sums(k, heads), v, heads, exponents[:3]
    scale = 2.0 ** exponents[3]
    out = result(
        expected.shape,
        device,
        lambda out: linear_attention(*arguments, out=out, out_scale=scale),
    )
    twin = values_of(linear_attention_twin(*arguments, scale))
    np.testing.assert_array_equal(twin.reshape(expected.shape), expected)
    np.testing.assert_array_equal(out, expected)
    return out


@pytest.mark.parametrize(
    ("depth", "heads", "shape", "colours", "values"),
    [
        (16, 2, (2, 5, 2), (NON_ANCHORS, ANCHORS), "random"),
        (32, 3, (1, 3, 6), (ALL, ALL), "random"),
        (32, 2, (2, 1, 2), (ALL, ALL), "ends"),
        (32, 1, (1, 1, 2), (NON_ANCHORS, ANCHORS), "random"),
        (6, 2, (1, 3, 4), (ANCHORS, NON_ANCHORS), "random"),
        (48, 1, (1, 3, 4), (ALL, ANCHORS), "ends"),
        (64, 2, (1, 2, 3), (ALL, ALL), "random"),
    ],
)
def test_linear_attention(
    depth: int,
    heads: int,
    shape: tuple[int, ...],
    colours: tuple[int, int],
    values: str,
    device: torch.device,
) -> None:
    check(qkv_of(values, (*shape, heads * depth)), heads, device, colours)


@pytest.mark.parametrize("size", ["small", "large"])
def test_chunks(size: str, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Several chunks, the last one not full, of several blocks each."""
    if size == "large":
        monkeypatch.setattr(configs, "SMALL_POSITIONS", 0)
    qkv = qkv_of("random", (1, 9, 17, 64))
    # Weights that spread over all positions, and keys that are largest in different chunks.
    qkv[1] //= 8
    many = check(qkv, 2, device)
    assert chunks_of(9 * 17) == (3, 64)
    monkeypatch.setattr(module, "CHUNKS", 2)
    assert chunks_of(9 * 17) == (2, 128)
    np.testing.assert_array_equal(check(qkv, 2, device), many)
    assert len(np.unique(many)) > 1000


def test_many_maxima(device: torch.device) -> None:
    """More than are loaded at a time; the largest are among the last."""
    qkv = qkv_of("random", (2, 3, 4, 32))
    expected = check(qkv, 2, device)
    q, k, v = inputs_of(qkv, (ALL, ALL), device)
    maxima, *sums = key_sums_twin(k.planes, ALL, 2)
    least = torch.full((2, 2 * module.MAXIMA + 3, 32), -4095, dtype=torch.int32, device=device)
    k = replace(k, sums=KeySums(torch.cat([least, maxima], 1), *sums))
    out = result(
        expected.shape,
        device,
        lambda out: linear_attention(q, k, v, 2, EXPONENTS[:3], out=out, out_scale=SCALE),
    )
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("depth", [32, 64])
@pytest.mark.parametrize("sign", [-1, 1])
def test_largest_sums(depth: int, sign: int, device: torch.device) -> None:
    """All weights and all values at their largest: sums over positions and channels need int64."""
    shape = (1, 12, 12, depth)
    q, k = (activation("equal", shape, seed) for seed in range(2))
    v = np.full(shape, sign * 4095, np.int16)
    out = check([q, k, v], 1, device, exponents=(9, 10, 8, 7))
    assert (out == sign * 2048).all()


@pytest.mark.parametrize("exponent", [-60, 60])
@pytest.mark.parametrize("which", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)])
def test_extreme_exponents(exponent: int, which: tuple[int, ...], device: torch.device) -> None:
    exponents = [exponent if i in which else e for i, e in enumerate(EXPONENTS)]
    check(qkv_of("random", (1, 3, 2, 32)), 2, device, exponents=tuple(exponents))  # type: ignore[arg-type]


def test_exponents_of_contexts(device: torch.device) -> None:
    """Of nothing, of one unit, and where a largest value just below a power of two would saturate.

    The small values beside it show with which exponent they were rounded.
    """
    q, k, v = qkv_of("random", (1, 8, 10, 64))
    k[...] = 5
    v[..., :16] = 0
    v[..., 16:32] = 0
    v[0, 0, 0, 16] = 1
    v[..., 32:] //= 1024
    v[..., 32] = v[..., 48] = 64
    v[0, 0, 0, 32] = 63  # on average 64 * (1 - 1 / 5120): more than 4095/4096 of 64
    v[0, 0, :2, 48] = 63  # less
    check([q, k, v], 4, device, exponents=(9, 10, 8, 13))


def test_chunks_cover_all_positions_and_stay_small() -> None:
    for positions in [1, 63, 64, 65, 1536, 4096, 4097, 32640, 510 * 270, module.LARGEST]:
        chunks, length = chunks_of(positions)
        assert chunks <= module.CHUNKS and (chunks - 1) * length < positions <= chunks * length
        # The largest sums of a chunk: of weights, and of products of low bytes.
        assert length * 16383 < 2**31 and length * 128 * 128 < 2**31


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(32, 48), (68, 120)])
@pytest.mark.parametrize(
    ("depth", "heads", "colours"),
    [(16, 2, (NON_ANCHORS, ANCHORS)), (32, 9, (ALL, ALL)), (32, 2, (ALL, ALL))],
)
def test_full_size_batches_and_repeats(
    size: tuple[int, int],
    depth: int,
    heads: int,
    colours: tuple[int, int],
    device: torch.device,
) -> None:
    qkv = qkv_of("random", (3, *size, depth * heads))
    qkv[1] //= 8
    out = check(qkv, heads, device, colours)
    q, k, v = inputs_of(qkv, colours, device)
    for _ in range(10):
        again = poisoned_slice((2, *out.shape), device)
        arguments = q, with_sums(k, heads), v, heads, EXPONENTS[:3]
        linear_attention(*arguments, out=again, out_scale=SCALE)
        np.testing.assert_array_equal(values_of(again), out)
    for image in range(3):
        alone = check([x[image : image + 1] for x in qkv], heads, device, colours)
        np.testing.assert_array_equal(alone[0], out[image])
