"""Golden streams: what every installation must reproduce, bit for bit.

A golden file (``*.zip`` in this folder) is a model and some of its streams:

- ``model.safetensors``: a packed model (:mod:`mlic_fast.engine.packing.packer`); without it, the
  model is the one that comes with the package;
- ``NAME.mlic``: streams;
- ``expected.json``: for every stream the digest of its latents, and SHA-256 hashes of the symbols
  of z, then of every pass in coding order: scale indexes, means, symbols, decoded latents; for
  block transforms also of the pixels, uint8 [H, W, 3], and of the stream that these make.

Hashes are of little-endian bytes in (channel, row, column) order, the order of the stream: symbols
int32, scale indexes uint8, means and latents float32; those of a pass are of its half of a slice,
squeezed to [C, H, W/2]. ``python -m mlic_fast.conformance.make`` made the files.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def golden_files() -> list[Path]:
    """The golden files that come with the package."""
    return sorted(FOLDER.glob("*.zip"))
