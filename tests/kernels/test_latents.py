"""From symbols to latents, and their digest: kernels == twins == specification."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planes_of import floats, planes, result, unwritten, values_of

from mlic_fast.engine import arithmetic as spec
from mlic_fast.engine.digest import latents_digest
from mlic_fast.kernels import latents as kernel
from mlic_fast.kernels.layouts import Grid
from mlic_fast.models.checkerboard import Parity

LARGEST = 1 << 22


def symbols_of(shape: tuple[int, ...]) -> np.ndarray:
    symbols = np.random.default_rng(0).integers(-60, 60, shape).astype(np.int32)
    symbols.flat[:2] = LARGEST, -LARGEST
    return symbols


def test_hyper_latents(device: torch.device) -> None:
    symbols, medians = symbols_of((2, 3, 1, 20)), floats((20,))
    there = torch.from_numpy(symbols).to(device), torch.from_numpy(medians).to(device)
    out = unwritten((2, *symbols.shape), torch.int8, device)
    kernel.hyper_latents(*there, out=out, out_scale=8.0)
    expected = spec.quantise(symbols.astype(np.float32) + medians, 3)
    assert np.array_equal(values_of(out), expected)
    assert torch.equal(kernel.hyper_latents_twin(*there, 8.0), out)


@pytest.mark.parametrize("size", [(2, 3, 6), (1, 1, 2)])
def test_decoded(device: torch.device, size: tuple[int, int, int]) -> None:
    """Anchors make the other positions zero, non-anchors leave them; in slices of the channels."""
    channels, grid = 12, Grid(*size)
    wide = unwritten((*size, 3 * channels), torch.float32, device)
    y = wide[..., channels : 2 * channels]
    expected, q = np.zeros((*size, channels), np.float32), np.zeros((*size, channels), np.int16)
    for parity in (Parity.ANCHOR, Parity.NON_ANCHOR):
        shape = (*size[:2], size[2] // 2, channels)
        symbols, means = symbols_of(shape), floats(shape, 5)
        means.flat[2] = np.nan
        there = torch.from_numpy(symbols).to(device), torch.from_numpy(means).to(device)
        before = torch.from_numpy(expected).to(device)
        before_q = q

        def launch(out: torch.Tensor, there=there, parity=parity, before_q=before_q) -> None:  # type: ignore[no-untyped-def]
            if parity is Parity.NON_ANCHOR:
                out.copy_(planes(before_q, device))
            kernel.decoded(*there, int(parity), grid, latents=y, out=out, out_scale=4.0)

        q = result((*size, channels), device, launch)
        expected = spec.place(symbols.astype(np.float32) + means, parity, expected)
        assert np.array_equal(y.cpu().numpy(), expected, equal_nan=True)
        assert np.array_equal(q, spec.quantise(expected, 2))
        twin = kernel.decoded_twin(*there, int(parity), before)
        assert np.array_equal(twin.cpu().numpy(), expected, equal_nan=True)
    assert wide[..., :channels].isnan().all() and wide[..., 2 * channels :].isnan().all()


@pytest.mark.parametrize("shape", [(2, 3, 5, 130), (1, 1, 2, 6)])
def test_digest(device: torch.device, shape: tuple[int, ...]) -> None:
    y = floats(shape, 100)
    y.flat[:5] = [0.0, -0.0, np.inf, 1e-40, -3.5]
    out = unwritten(shape[:1], torch.int32, device)
    kernel.digest(torch.from_numpy(y).to(device), out=out)
    expected = [latents_digest(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in y]
    assert [value & 0xFFFFFFFF for value in out.tolist()] == expected
