"""Hours of the life of a service: nothing grows, nothing differs from the specification.

    python tests/soak.py --minutes 60 [--seed 0]

Pictures of random sizes, in batches, at random qualities, on one thread or two; damaged streams
between good ones, half of them with a right checksum; models dropped and loaded again; processes
killed while they write files. A part of the streams is decoded by the specification too.

The largest pictures come first, since buffers keep the largest size that was needed. Memory and
descriptors are taken after every round from a quarter of the time on; at the end stands the slope
of the memory, with its confidence over ten parts of the rest.

PyTorch's convolutions, of which models with residual transforms are made, keep what they prepare
for each size of picture, 1,024 of them. `make soak` sets ONEDNN_PRIMITIVE_CACHE_CAPACITY=16, or
that would fill for hours.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from lively import BLOCKS, SMALL, lively_model

import mlic_fast
from mlic_fast import bitstream
from mlic_fast.atomic_files import write_atomically
from mlic_fast.models import save_checkpoint

#: Widths and heights are below.
LARGEST = 200
#: Growth that fails the run: MB an hour, where the confidence leaves no doubt of it.
GROWTH = 10.0


def make_picture(source: random.Random, width: int, height: int) -> torch.Tensor:
    """uint8 [3, H, W]: a gradient, an edge and noise."""
    noise = torch.from_numpy(
        np.random.default_rng(source.getrandbits(32)).random((3, height, width))
    )
    rows = torch.arange(height)[:, None] * source.uniform(-2, 2)
    columns = torch.arange(width) * source.uniform(-2, 2)
    picture = 128 + rows + columns + 60 * (rows > columns) + source.choice([0, 5, 80]) * noise
    return picture.clamp(0, 255).to(torch.uint8)


def damaged(source: random.Random, stream: bytes) -> bytes:
    """With bits turned, bytes cut or added; half of the time the checksum is right again."""
    header, payload = bitstream.read(stream)
    mended = source.random() < 0.5
    data = bytearray(payload if mended else stream)
    for _ in range(source.choice([1, 1, 3, 20])):
        if data:
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    if source.random() < 0.3:
        data = data[: source.randrange(len(data) + 1)]
    if source.random() < 0.1:
        data += source.randbytes(source.randrange(1, 50))
    return bitstream.write(header, bytes(data)) if mended else bytes(data)


def write_for_ever(folder: Path, stream: bytes) -> None:
    for number in range(1 << 30):
        write_atomically(folder / f"{number % 50}.mlic", stream)


def kill_a_writer(source: random.Random, stream: bytes) -> None:
    """Of the files that it was writing, each is whole."""
    with tempfile.TemporaryDirectory() as folder:
        process = multiprocessing.get_context("fork").Process(
            target=write_for_ever, args=(Path(folder), stream)
        )
        process.start()
        time.sleep(source.uniform(0.01, 0.1))
        process.kill()
        process.join()
        process.close()
        for path in Path(folder).glob("*.mlic"):
            if path.read_bytes() != stream:
                raise SystemExit(f"a killed process left half a file, {path.name}")


def largest_first(loaded: dict[Path, mlic_fast.Codec]) -> None:
    batch = torch.stack([make_picture(random.Random(0), LARGEST, LARGEST)] * 3)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for path, codec in loaded.items():
            streams = codec.compress(batch)
            codec.decompress(streams)
            mlic_fast.load(path, device="cpu", engine="spec").decode_latents(streams[0])


def a_round(
    source: random.Random, loaded: dict[Path, mlic_fast.Codec], counts: Counter[str]
) -> None:
    torch.set_num_threads(source.choice([1, 2]))
    path = source.choice(list(loaded))
    codec = loaded[path]
    width, height = (source.choice([1, source.randrange(1, LARGEST), 64]) for _ in range(2))
    batch = torch.stack(
        [make_picture(source, width, height) for _ in range(source.choice([1, 1, 3]))]
    )
    quality = source.randrange(1, 101) if codec.packed.config.rates else None
    streams = codec.compress(batch, quality)
    pictures = codec.decompress(streams)
    counts["pictures"] += len(streams)
    for stream, picture in zip(streams, pictures, strict=True):
        if not torch.equal(codec.decompress(stream), picture):
            raise SystemExit("a batch and a single stream decode differently")
        if source.random() < 0.05:
            specification = mlic_fast.load(path, device="cpu", engine="spec")
            counts["checked by the specification"] += 1
            if not torch.equal(specification.decode_latents(stream), codec.decode_latents(stream)):
                raise SystemExit("the specification decodes other latents")
        for _ in range(3):
            bad = damaged(source, stream)
            try:
                codec.decompress(bad)
                counts["damaged, decoded"] += 1
            except mlic_fast.MlicError:
                counts["damaged, refused"] += 1
    if source.random() < 0.05:
        kill_a_writer(source, streams[0])
        counts["writers killed"] += 1
    if source.random() < 0.02:
        loaded[path] = mlic_fast.load(path, device="cpu")
        counts["models loaded"] += 1


def megabytes() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def slope(hours: list[float], values: list[float]) -> tuple[float, float]:
    """Growth an hour, and the half width of its 95 % interval: of medians of ten parts of the run,
    as neighbouring values are alike.
    """
    x = np.array([part.mean() for part in np.array_split(hours, 10)])
    y = np.array([np.median(part) for part in np.array_split(values, 10)])
    x -= x.mean()
    growth = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - growth * x
    deviation = math.sqrt(float((rest**2).sum()) / 8 / float((x * x).sum()))
    return growth, 2.31 * deviation  # Student's t, 8 degrees of freedom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    source = random.Random(args.seed)
    counts: Counter[str] = Counter()
    hours, memory, descriptors = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.safetensors" for name in ("blocks", "residual", "plus")]
        configurations = (BLOCKS, SMALL["mlic"], SMALL["mlic_plus"])
        for path, configuration in zip(paths, configurations, strict=True):
            save_checkpoint(lively_model(configuration), path)
        loaded = {path: mlic_fast.load(path, device="cpu") for path in paths}
        largest_first(loaded)
        start = time.monotonic()
        while (now := (time.monotonic() - start) / 3600) < args.minutes / 60:
            a_round(source, loaded, counts)
            if now > args.minutes / 60 / 4:
                hours.append(now)
                memory.append(megabytes())
                descriptors.append(len(os.listdir("/proc/self/fd")))
    growth, doubt = slope(hours, memory)
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    print(
        f"memory {np.median(memory):.0f} MB, {growth:+.2f} MB an hour (95 %: {doubt:.2f} either "
        f"way); descriptors {min(descriptors)} to {max(descriptors)}"
    )
    if growth - doubt > GROWTH or descriptors[-1] > descriptors[0]:
        sys.exit("memory or descriptors grow")


if __name__ == "__main__":
    main()
