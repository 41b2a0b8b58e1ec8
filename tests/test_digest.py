"""The digest of the latents against the slow decoder's, which follows docs/format.md."""

from __future__ import annotations

import numpy as np
import pytest
import slow_decoder
import torch

from mlic_fast.engine import digest
from mlic_fast.engine.digest import latents_digest


@pytest.mark.parametrize("chunk", [7, 1 << 16])
def test_digest_is_its_definition(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "_CHUNK", chunk)
    latents = np.random.default_rng(1).normal(0, 30, (5, 7, 9)).astype(np.float32)
    latents[0, 0, :4] = [0.0, -0.0, np.inf, 1e-45]
    expected = slow_decoder.latents_digest(latents.ravel().tolist())
    assert latents_digest(latents) == expected
    assert latents_digest(torch.from_numpy(latents)) == expected
    strided = torch.from_numpy(np.ascontiguousarray(latents.transpose(2, 0, 1))).permute(1, 2, 0)
    assert not strided.is_contiguous() and latents_digest(strided) == expected
    assert latents_digest(latents[:, :0]) == 0


def test_digest_sees_a_single_bit_and_a_swap_but_not_the_sign_of_zero() -> None:
    latents = torch.tensor([0.0, 1.0, 2.0])
    base = latents_digest(latents)
    assert latents_digest(torch.tensor([-0.0, 1.0, 2.0])) == base
    assert latents_digest(torch.nextafter(latents, torch.tensor(9.0))) != base
    assert latents_digest(torch.tensor([0.0, 2.0, 1.0])) != base


def test_digest_refuses_other_dtypes() -> None:
    with pytest.raises(TypeError, match="float64"):
        latents_digest(np.zeros(3))
