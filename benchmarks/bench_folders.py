"""Throughput of many photographs on this CPU, by how the cores are shared among them.

    python benchmarks/bench_folders.py PHOTOGRAPHS.. [--quality 50] [--threads N] [--runs 3]

From pixels to bytes and back in memory, photographs a second. The ways take turns; each figure is
the median of the runs, with the least and the most. Bytes are compared first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import mlic_fast
from mlic_fast.codec import Codec
from mlic_fast.engine.surroundings import set_thread_count
from mlic_fast.images import load_image

Map = Callable[[Callable[[Codec, Any], Any], list[Any]], list[Any]]
_of_process: list[Codec] = []


def load(threads: int) -> Codec:
    set_thread_count(threads)
    return mlic_fast.load("photo", device="cpu")


def begin_process() -> None:
    _of_process.append(load(1))


def in_process(work: Callable[[Codec, Any], Any], argument: Any) -> Any:
    return work(_of_process[0], argument)


@contextmanager
def processes(number: int) -> Iterator[Map]:
    with ProcessPoolExecutor(number, get_context("spawn"), begin_process) as pool:
        yield lambda work, arguments: list(pool.map(partial(in_process, work), arguments))


@contextmanager
def threads(number: int, codec: Codec) -> Iterator[Map]:
    with ThreadPoolExecutor(number) as pool:
        yield lambda work, arguments: list(pool.map(partial(work, codec), arguments))


def encode(codec: Codec, image: torch.Tensor, quality: int) -> Any:
    return codec.compress(image, quality=quality)


def decode(codec: Codec, data: bytes) -> int:
    return int(codec.decompress(data).numel())  # pixels are not sent between processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photographs", nargs="+", type=Path)
    parser.add_argument("--quality", type=int, default=50)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    images, n = [load_image(path) for path in args.photographs], args.threads
    all_threads, one_thread = load(n), load(1)
    ways = {
        f"one at a time, {n} threads": partial(threads, 1, all_threads),
        f"two at a time, {n} threads each": partial(threads, 2, all_threads),
        f"{n} at a time, one thread each": partial(threads, n, one_thread),
        f"{n} processes, one thread each": partial(processes, n),
    }
    rates: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in ways}
    expected: list[Any] = []
    for _ in range(args.runs):
        for name, way in ways.items():
            with way() as run:
                run(partial(encode, quality=args.quality), images[: 2 * n])
                start = time.perf_counter()
                streams = run(partial(encode, quality=args.quality), images)
                encoded = time.perf_counter()
                run(decode, streams)
                decoded = time.perf_counter()
            expected = expected or streams
            assert streams == expected, f"{name}: other bytes"
            rates[name][0].append(len(images) / (encoded - start))
            rates[name][1].append(len(images) / (decoded - encoded))
    print("| way | encode, photographs a second | decode |\n|---|---|---|")
    for name, both in rates.items():
        cells = [f"{statistics.median(x):.2f} ({min(x):.2f} to {max(x):.2f})" for x in both]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
