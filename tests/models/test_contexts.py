"""The contexts against loops over positions, windows and keys, written from the papers' text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lively import SMALL
from torch import Tensor

from mlic_fast.models import MlicModel
from mlic_fast.models.checkerboard import Parity, keep
from mlic_fast.models.contexts import (
    GlobalIntraContext,
    LocalContext,
    StackedCheckerboardContext,
)

C = 32


def is_anchor(row: int, column: int) -> bool:
    return (row + column) % 2 == 1


@pytest.fixture(scope="module")
def anchors() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return keep(torch.randn(2, C, 4, 6, generator=generator) * 2, Parity.ANCHOR)


def test_local_context_window_by_window(
    small_models: dict[str, MlicModel], anchors: Tensor
) -> None:
    context = small_models["mlic_plus_plus"].local_context[1]
    assert isinstance(context, LocalContext)
    height, width = anchors.shape[2:]
    with torch.no_grad():
        actual = context(anchors)
        for b, row, column in np.ndindex(2, height, width):
            if not is_anchor(row, column):
                expected = _one_window(context, anchors[b], row, column)
                torch.testing.assert_close(actual[b, :, row, column], expected)


def _one_window(context: LocalContext, image: Tensor, row: int, column: int) -> Tensor:
    """Section 5 of the description, for the window centred on one position."""
    _, height, width = image.shape
    q, k, v = torch.zeros(3, 25, C)
    colours = []
    for token in range(25):
        r, c = row + token // 5 - 2, column + token % 5 - 2
        inside = 0 <= r < height and 0 <= c < width
        colours.append("anchor" if inside and is_anchor(r, c) else "other")
        if inside:
            x = context.norm1(image[:, r, c])
            q[token], k[token], v[token] = context.qkv_proj(x).split(C)
    windows = torch.zeros(C, 5, 5)
    for head in range(2):
        channels = [2 * d + head for d in range(16)]  # the head is the fastest
        for a in range(25):
            logits = []
            for b in range(25):
                if colours[a] == "anchor" and colours[b] != "anchor":
                    logits.append(-math.inf)
                    continue
                dr, dc = a // 5 - b // 5 + 4, a % 5 - b % 5 + 4
                bias = context.relative_position_table[9 * dr + dc, head]
                logits.append(float(q[a, channels] @ k[b, channels] / 4 + bias))
            weights = torch.softmax(torch.tensor(logits), 0)
            windows[16 * head : 16 * head + 16, a // 5, a % 5] = weights @ v[:, channels]
    f = context.proj(F.conv2d(windows[None], context.fusion.weight, context.fusion.bias).flatten())
    hidden = F.gelu(context.mlp.fc1(context.norm2(f)))
    return f + context.mlp.fc2(hidden)


def test_softmax_intra_context_leaves_the_neighbourhood_out(
    small_models: dict[str, MlicModel],
) -> None:
    """On a map so small that some queries have no key at all: they get zero."""
    context = small_models["mlic_plus"].global_intra_context[1]
    assert isinstance(context, GlobalIntraContext)
    previous, current = torch.randn(2, 1, C, 4, 4)
    current = keep(current, Parity.ANCHOR)
    with torch.no_grad():
        actual = context(previous, current)
        q = context.queries(keep(previous, Parity.NON_ANCHOR))[0]
        k = context.keys(keep(previous, Parity.ANCHOR))[0]
        v = context.values(current)[0]
        out = torch.zeros(C, 4, 4)
        without = 0
        for row, column in np.ndindex(4, 4):
            if is_anchor(row, column):
                continue
            keys = [
                (r, c)
                for r, c in np.ndindex(4, 4)
                if is_anchor(r, c) and (abs(r - row) > 2 or abs(c - column) > 2)
            ]
            without += not keys
            for head in range(2) if keys else ():
                part = slice(16 * head, 16 * head + 16)
                logits = [float(q[part, row, column] @ k[part, r, c]) / 4 for r, c in keys]
                weights = torch.softmax(torch.tensor(logits), 0)
                values = torch.stack([v[part, r, c] for r, c in keys])
                out[part, row, column] = weights @ values
        r = context.reprojection(out[None])
        torch.testing.assert_close(actual, r + context.mlp(r), atol=1e-4, rtol=1e-4)
    assert without == 2


def test_linear_contexts_head_by_head(small_models: dict[str, MlicModel]) -> None:
    """softmax over channels of q and over positions of k, heads of 32, no division."""
    context = small_models["mlic_plus_plus"].global_inter_context[2]
    previous = torch.randn(1, 2 * C, 4, 6)
    with torch.no_grad():
        q, k, v = (
            getattr(context, name)(previous)[0].flatten(1).double()
            for name in ("queries", "keys", "values")
        )
        out = torch.zeros(2 * C, 24, dtype=torch.float64)
        for head in range(2):
            part = range(32 * head, 32 * head + 32)
            for n in range(24):
                total = sum(math.exp(q[d, n]) for d in part)
                for d in part:
                    weights = torch.softmax(k[d], 0)
                    for j in part:
                        share = math.exp(q[d, n]) / total
                        out[j, n] += share * float(weights @ v[j])
        r = context.reprojection(out.float().reshape(1, 2 * C, 4, 6))
        torch.testing.assert_close(context(previous), context.skip(r) + context.mlp(r))


def test_stacked_checkerboard_reads_the_other_colour_only(
    small_models: dict[str, MlicModel],
) -> None:
    context = small_models["mlic"].local_context[0]
    assert isinstance(context, StackedCheckerboardContext)
    x = torch.randn(1, SMALL["mlic"].slice_channels, 16, 18)

    def non_anchors(x: Tensor) -> Tensor:
        return keep(context(x), Parity.NON_ANCHOR)

    with torch.no_grad():
        base = non_anchors(x)
        # What is at non-anchors of the input must not matter, what is at anchors must.
        assert torch.equal(non_anchors(keep(x, Parity.ANCHOR)), base)
        changed = x.clone()
        changed[:, :, 7, 8] += 5.0
        reached = (non_anchors(changed) != base).any(1)[0].nonzero()
        distance = (reached - torch.tensor([7, 8])).abs().amax(1)
    # Three 5x5 layers: a radius of 6, of which masks keep odd distances.
    assert distance.max() == 6
    assert not any(is_anchor(r, c) for r, c in reached.tolist())
