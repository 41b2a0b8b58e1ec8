"""Softmax attention of MLIC and MLIC+: kernel == twin == specification."""

from __future__ import annotations

from typing import Any

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
from mlic_fast.kernels import softmax_attention as module
from mlic_fast.kernels.planes import ALL, ANCHORS, NON_ANCHORS
from mlic_fast.kernels.softmax_attention import softmax_attention, softmax_attention_twin
from mlic_fast.models.checkerboard import Parity

#: Of q, k, v and out.
EXPONENTS = (11, 11, 8, 9)
SCALE = 2.0 ** EXPONENTS[3]
SQUEEZED_BEFORE = (ALL, ALL)
READ_AT_COLOURS = (NON_ANCHORS, ANCHORS)

pytestmark = pytest.mark.usefixtures("poisoned")


def check(
    qkv: list[Int16],
    heads: int,
    device: torch.device,
    exclude: bool = False,
    colours: tuple[int, int] = (ALL, ALL),
    exponents: tuple[int, int, int, int] = EXPONENTS,
) -> Int16:
    ops = specification({}, {"out": exponents[3]})
    acts = []
    for x, exponent, colour in zip(qkv, exponents, (*colours, colours[1]), strict=False):
        act = Act(x, exponent)
        acts.append(act if colour == ALL else ops.squeeze(act, Parity(colour)))
    with np.errstate(all="ignore"):
        expected = ops.softmax_attention(*acts, heads, "out", exclude=exclude).q

    arguments = *inputs_of(qkv, colours, device), heads, exponents[:3]
    scale = 2.0 ** exponents[3]
    out = result(
        expected.shape,
        device,
        lambda out: softmax_attention(*arguments, exclude=exclude, out=out, out_scale=scale),
    )
    twin = values_of(softmax_attention_twin(*arguments, scale, exclude))
    np.testing.assert_array_equal(twin.reshape(expected.shape), expected)
    np.testing.assert_array_equal(out, expected)
    return out


@pytest.mark.parametrize(
    ("depth", "heads", "shape", "colours", "values"),
    [
        (32, 3, (1, 3, 5), (ALL, ALL), "random"),
        (32, 1, (2, 1, 2), (ALL, ALL), "ends"),
        (16, 2, (1, 3, 4), READ_AT_COLOURS, "equal"),
        (48, 1, (1, 3, 4), (ALL, ANCHORS), "random"),
        (64, 1, (2, 3, 2), (NON_ANCHORS, ALL), "ends"),
    ],
)
def test_all_keys(
    depth: int,
    heads: int,
    shape: tuple[int, ...],
    colours: tuple[int, int],
    values: str,
    device: torch.device,
) -> None:
    check(qkv_of(values, (*shape, heads * depth)), heads, device, False, colours)


@pytest.mark.parametrize("colours", [SQUEEZED_BEFORE, READ_AT_COLOURS])
@pytest.mark.parametrize(
    ("depth", "shape", "values"),
    [(16, (2, 7, 2), "random"), (8, (1, 3, 12), "random"), (16, (1, 6, 8), "ends")],
)
def test_excluded_keys(
    depth: int,
    shape: tuple[int, ...],
    values: str,
    colours: tuple[int, int],
    device: torch.device,
) -> None:
    check(qkv_of(values, (*shape, 2 * depth)), 2, device, True, colours)


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 1, 2), (2, 3, 2)])
def test_queries_without_keys(shape: tuple[int, ...], device: torch.device) -> None:
    out = check(qkv_of("random", (*shape, 32)), 2, device, True, READ_AT_COLOURS)
    assert not out.any()


@pytest.mark.parametrize("size", ["small", "large"])
def test_blocks(size: str, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Several blocks of queries and of keys, with keys that matter in all of them."""
    if size == "large":
        monkeypatch.setattr(configs, "SMALL_POSITIONS", 0)
    qkv = qkv_of("random", (1, 7, 20, 32))
    qkv[0] //= 8
    out = check(qkv, 1, device)
    assert len(np.unique(out)) > 1000


def test_sums_beyond_a_span(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Sums go to int64 after a span of keys, here a short one."""
    monkeypatch.setattr(module, "SPAN", module.KEYS)
    shape = (1, 12, 12, 32)
    q, k = (activation("equal", shape, seed) for seed in range(2))
    out = check([q, k, np.full(shape, -4095, np.int16)], 1, device, exponents=(11, 11, 8, 7))
    assert (out == -2048).all()


@pytest.mark.parametrize("exponent", [-60, 60])
@pytest.mark.parametrize("which", [(0, 1), (2,), (3,), (0, 1, 2, 3)])
def test_extreme_exponents(exponent: int, which: tuple[int, ...], device: torch.device) -> None:
    exponents: Any = tuple(exponent if i in which else e for i, e in enumerate(EXPONENTS))
    for exclude in (False, True):
        check(qkv_of("random", (1, 6, 2, 16)), 1, device, exclude, SQUEEZED_BEFORE, exponents)


def test_a_span_fits_int32() -> None:
    assert module.SPAN * 128 * 128 < 2**31 and module.SPAN * 16383 < 2**31
    assert module.SPAN % module.KEYS == 0


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(32, 48), (68, 72)])
@pytest.mark.parametrize(
    ("depth", "heads", "exclude", "colours"),
    [(16, 2, True, READ_AT_COLOURS), (32, 9, False, (ALL, ALL))],
)
def test_full_size_batches_and_repeats(
    size: tuple[int, int],
    depth: int,
    heads: int,
    exclude: bool,
    colours: tuple[int, int],
    device: torch.device,
) -> None:
    heads = 2 if size == (68, 72) else heads  # the specification is slow
    qkv = qkv_of("random", (2, *size, depth * heads))
    out = check(qkv, heads, device, exclude, colours)
    inputs = inputs_of(qkv, colours, device)
    for _ in range(10):
        again = poisoned_slice((2, *out.shape), device)
        softmax_attention(
            *inputs, heads, EXPONENTS[:3], exclude=exclude, out=again, out_scale=SCALE
        )
        np.testing.assert_array_equal(values_of(again), out)
    for image in range(2):
        alone = check([x[image : image + 1] for x in qkv], heads, device, exclude, colours)
        np.testing.assert_array_equal(alone[0], out[image])


@pytest.mark.gpu
def test_more_keys_than_a_span(device: torch.device) -> None:
    """Against the twin alone: the specification would take minutes."""
    shape = (1, 260, 256, 16)
    qkv = qkv_of("random", shape)
    qkv[0] //= 16
    arguments = *inputs_of(qkv, (ALL, ALL), device), 1, EXPONENTS[:3]
    out = result(shape, device, lambda out: softmax_attention(*arguments, out=out, out_scale=SCALE))
    twin = values_of(softmax_attention_twin(*arguments, SCALE))
    np.testing.assert_array_equal(out, twin.reshape(shape))
