"""A 32-bit digest of decoded latents, carried in the start states of the rANS lanes.

An encoder and a decoder that disagree in one bit of one latent disagree in the digest, so a wrong
picture is never shown. The digest is a sum over latents, hence independent of order: a GPU adds it
up in parallel.

    digest = sum_i mix(bits(yhat[i]) + i * 0x9E3779B1)   (mod 2^32)

with i the flat index in (channel, row, column) order, bits the IEEE 754 pattern of the float32
(negative zero as positive zero) and mix the finaliser of MurmurHash3 (``docs/format.md``,
section 5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 16  # elements; the working set stays in the cache however large the image


def latents_digest(latents: torch.Tensor | npt.NDArray[np.float32], first: int = 0) -> int:
    """The digest of the latents of one image, float32 of any shape and layout, e.g. [M, H/16,
    W/16].

    For a part of the channels, ``first`` is the flat index of its first latent; the sum over all
    parts modulo 2^32 is the digest of the whole.

    Raises `TypeError` for another dtype: a converted value has other bits.
    """
    if not isinstance(latents, np.ndarray):
        latents = latents.detach().cpu().numpy()
    if latents.dtype != np.float32:
        raise TypeError(f"the digest is defined on float32 latents, not {latents.dtype}")
    total = 0
    steps = np.arange(min(_CHUNK, latents.size), dtype=np.uint32) * np.uint32(0x9E3779B1)
    parts = np.nditer(
        latents, ["external_loop", "buffered", "zerosize_ok"], order="C", buffersize=_CHUNK
    )
    for part in parts:
        h = np.array(part).view(np.uint32)
        h[h == 0x80000000] = 0
        h += steps[: h.size]
        h += np.uint32(first * 0x9E3779B1 & 0xFFFFFFFF)
        first += h.size
        h ^= h >> np.uint32(16)
        h *= np.uint32(0x85EBCA6B)
        h ^= h >> np.uint32(13)
        h *= np.uint32(0xC2B2AE35)
        h ^= h >> np.uint32(16)
        total += int(h.sum(dtype=np.uint64))
    return total & 0xFFFFFFFF
