"""Encode and decode times of the photograph model beside AVIF at the same PSNR, on this CPU.

    python benchmarks/bench_avif.py PHOTOGRAPHS.. [--quality 50] [--threads 2] [--runs 7]

AVIF is Pillow's (4:4:4, speed 4; Pillow decodes with dav1d), at the quality whose PSNR over RGB
comes nearest. Both are told the same number of threads and take turns; times are medians of the
runs, from pixels to bytes and back in memory.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import AvifImagePlugin, Image

import mlic_fast
from mlic_fast.evaluation import PillowCodec
from mlic_fast.evaluation.metrics import psnr
from mlic_fast.images import load_image


def timed(calls: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Medians in ms; the calls take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(each[1:]) for name, each in times.items()}


def decode_avif(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photographs", nargs="+", type=Path)
    parser.add_argument("--quality", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    AvifImagePlugin.DEFAULT_MAX_THREADS = args.threads
    codec, avif = mlic_fast.load("photo", device="cpu"), PillowCodec("avif")
    print("| photograph | dB | bytes, AVIF | encode, AVIF (ms) | decode, AVIF (ms) |")
    print("|---|---|---|---|---|")
    for path in args.photographs:
        image = load_image(path)
        data = codec.compress(image, quality=args.quality)
        assert isinstance(data, bytes)
        reached = psnr(image, codec.decompress(data))
        files = {quality: avif.compress(image, quality) for quality in range(30, 96, 3)}
        near = min(files, key=lambda q: abs(psnr(image, avif.decompress(files[q])) - reached))
        times = timed(
            {
                "encode": lambda i=image: codec.compress(i, quality=args.quality),
                "encode AVIF": lambda i=image, q=near: avif.compress(i, q),
                "decode": lambda d=data: codec.decompress(d),
                "decode AVIF": lambda d=files[near]: decode_avif(d),
            },
            args.runs,
        )
        print(
            f"| {path.name} | {reached:.2f} | {len(data)}, {len(files[near])} | "
            f"{times['encode']:.0f}, {times['encode AVIF']:.0f} | "
            f"{times['decode']:.0f}, {times['decode AVIF']:.1f} |"
        )


if __name__ == "__main__":
    main()
