"""The weights that come with the package: all qualities of one photograph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import skimage.data
import torch

from mlic_fast.codec import Codec, load
from mlic_fast.evaluation.metrics import psnr


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load("photo", device="cpu")


def test_quality_is_smooth(codec: Codec) -> None:
    photograph = torch.from_numpy(skimage.data.astronaut()[:192, 128:320]).permute(2, 0, 1)
    sizes, qualities = [], []
    for quality in range(1, 101):
        stream = codec.compress(photograph, quality=quality)
        sizes.append(len(stream))
        qualities.append(psnr(photograph, codec.decompress(stream)))
    growth = np.diff(np.log(sizes))
    # From one quality to the next a file grows by 1 to 2 %; rounding of latents makes some noise.
    assert growth.min() > -0.005 and growth.max() < 0.05 and sizes[-1] > 2.5 * sizes[0]
    assert np.diff(qualities).min() > -0.1 and qualities[-1] > qualities[0] + 3
    assert (np.array(qualities[10:]) > np.array(qualities[:-10])).all()


@pytest.mark.parametrize("quality", [1, 2, 33, 50, 99, 100])
def test_engines_decode_to_the_encoders_latents(
    codec: Codec, quality: int, compress_to_latents: Any
) -> None:
    photograph = torch.from_numpy(skimage.data.coffee()[100:163, 200:297]).permute(2, 0, 1)
    stream, latents = compress_to_latents(codec, photograph, quality=quality)
    for engine in ("cpu", "spec"):
        decoded = load("photo", device="cpu", engine=engine).decode_latents(stream)
        assert np.array_equal(decoded.numpy(), latents)
