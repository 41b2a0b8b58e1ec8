"""The whole CPU engine, both ways, in an extension that was built with AddressSanitizer.

    python fuzz/engine.py EXTENSION       `make -C fuzz engine` builds it and sets what it needs

Small models of every kind, on every instruction set of the machine, on one thread and on eight.
What one of them encodes, all must decode to the same latents; and all must refuse, or decode to the
same, what was damaged behind a right checksum.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("mlic_fast._C", sys.argv[1])
assert spec is not None and spec.loader is not None
sys.modules["mlic_fast._C"] = extension = importlib.util.module_from_spec(spec)
spec.loader.exec_module(extension)

import numpy as np  # noqa: E402

import mlic_fast  # noqa: E402
from mlic_fast import bitstream  # noqa: E402
from mlic_fast.engine.cpu import instruction_sets  # noqa: E402
from mlic_fast.engine.surroundings import set_thread_count  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from lively import BLOCKS, SMALL, lively_model  # noqa: E402

assert instruction_sets.exact is extension.exact  # not the one that is installed


def make_pictures(source: np.random.Generator) -> list[np.ndarray]:
    """uint8 [H, W, 3 or 4] of odd sizes, one of them not opaque."""
    shapes = ((1, 1, 3), (65, 70, 4), (9, 130, 3))
    return [source.integers(0, 256, shape, np.uint8) // 16 * 16 for shape in shapes]


def damaged(source: random.Random, stream: bytes) -> bytes:
    header, payload = bitstream.read(stream)
    data = bytearray(payload)
    for _ in range(source.choice([1, 1, 3])):
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bitstream.write(header, bytes(data[: source.choice([len(data), len(data) - 2])]))


def outcome(codec: mlic_fast.Codec, stream: bytes) -> bytes | str:
    try:
        return codec.decode_latents(stream).numpy().tobytes()
    except mlic_fast.MlicError as error:
        return f"{type(error).__name__}: {error}"


for name, config in {"blocks": BLOCKS, **SMALL}.items():
    model, pictures = lively_model(config), make_pictures(np.random.default_rng(0))
    source = random.Random(0)
    streams: list[bytes] = []
    expected: list[bytes | str] = []
    for isa in extension.exact.instruction_sets():
        os.environ[instruction_sets.ISA_VARIABLE] = isa
        for threads in (1, 8):
            set_thread_count(threads)
            codec = mlic_fast.load(model, device="cpu", engine="cpu")
            quality = 60 if codec.packed.config.rates else None
            made = [codec.compress(picture, quality) for picture in pictures]
            if not streams:
                streams = made + [damaged(source, s) for s in made for _ in range(8)]
                expected = [outcome(codec, stream) for stream in streams]
            if name == "blocks":  # all of it is exact
                assert made == streams[: len(made)], f"{isa}, {threads} threads: other bytes"
            for stream, picture in zip(made, pictures, strict=True):
                decoded = codec.decompress(stream, "numpy")
                assert decoded.shape == picture.shape
            assert [outcome(codec, s) for s in streams] == expected, f"{isa}, {threads} threads"
    refused = sum(isinstance(each, str) for each in expected)
    print(f"{name}: {len(streams)} streams, {refused} refused, the same everywhere")
