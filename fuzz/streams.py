"""Fuzz the container and the whole decoder in Python: headers, checksums, latents of a tiny model.

    python fuzz/streams.py [corpus] [options of libFuzzer, e.g. -max_total_time=60]

Needs atheris, which guides by the coverage of the Python code. A mutator mends the checksum of
most inputs, so that what lies behind it is reached; seeds are streams of the tiny model. Both
engines must give the same latents, or the same subclass of `MlicError` and nothing else.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import atheris
import numpy as np
import torch

with atheris.instrument_imports(include=["mlic_fast"]):
    import mlic_fast
    from mlic_fast import bitstream

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from lively import BLOCKS, lively_model

torch.set_num_threads(1)
MODEL = lively_model(BLOCKS)
CODECS = [mlic_fast.load(MODEL, device="cpu", engine=name) for name in ("cpu", "spec")]
#: A decode costs time for each pixel that a header claims.
MAX_PIXELS = 1 << 14


def seeds() -> list[bytes]:
    random = np.random.default_rng(0)
    pictures = [
        random.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((1, 1), (64, 65), (9, 70))
    ]
    return [CODECS[0].compress(p // 16 * 16, quality) for p in pictures for quality in (1, 60, 100)]


SEEDS = seeds()


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Of the payload alone or of all, with a right checksum mostly."""
    source = random.Random(seed)
    try:
        header, payload = bitstream.read(data)
    except mlic_fast.MlicError:
        header, payload = bitstream.read(source.choice(SEEDS))
    if source.random() < 0.2:
        return atheris.Mutate(data or SEEDS[0], max_size)
    if source.random() < 0.3:
        width, height = (source.choice([1, 64, 65, header.width]) for _ in range(2))
        lanes = 1 << source.randrange(1, 11)
        header = replace(header, width=width, height=height, lanes=lanes)
    return bitstream.write(header, atheris.Mutate(payload, max_size - bitstream.HEADER_BYTES))


def test_one_input(data: bytes) -> None:
    outcomes = []
    for codec in CODECS:
        try:
            latents = codec.decode_latents(data, max_pixels=MAX_PIXELS)
            outcomes.append(latents.numpy().tobytes())
        except mlic_fast.MlicError as error:
            outcomes.append(type(error).__name__.encode())
    if outcomes[0] != outcomes[1]:
        raise AssertionError("the engines disagree")


if __name__ == "__main__":
    folder = next((Path(a) for a in sys.argv[1:] if not a.startswith("-")), None)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(SEEDS):
            (folder / f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, test_one_input, custom_mutator=mutate)
    atheris.Fuzz()
