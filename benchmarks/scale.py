"""Encode many small pictures three ways: a plain loop, processes of multiprocessing, Ray.

    python benchmarks/scale.py [--pictures 2000] [--size 128x96] [--json FILE]

Ray runs on three nodes on this machine, two of which compute on one CPU each; a third of the way a
worker is killed, half way a node is removed and another one added. All three must give the same
bytes. Times on a machine that does other work at the same time are rough.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import ray
import skimage.data
import torch
from PIL import Image
from ray.cluster_utils import Cluster

import mlic_fast
from mlic_fast.cli import main as mlic_fast_command
from mlic_fast.cli.options import picture_size
from mlic_fast.profiling.machine import describe_machine


def make_pictures(folder: Path, count: int, width: int, height: int) -> None:
    """Parts of three photographs, as PNG."""
    photographs = [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee")]
    random = np.random.default_rng(0)
    for number in range(count):
        photograph = photographs[number % 3]
        top = random.integers(photograph.shape[0] - height)
        left = random.integers(photograph.shape[1] - width)
        part = photograph[top : top + height, left : left + width]
        path = folder / f"{number % 10}" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(part).save(path)


def encode_file(codec: mlic_fast.Codec, source: Path, output: Path) -> None:
    data = codec.compress(source, quality=50)
    assert isinstance(data, bytes)
    target = output / source.parent.name / f"{source.stem}.mlic"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def plain_loop(sources: list[Path], output: Path) -> None:
    torch.set_num_threads(1)
    codec = mlic_fast.load("photo", device="cpu")
    for source in sources:
        encode_file(codec, source, output)


def processes(sources: list[Path], output: Path) -> None:
    codec = mlic_fast.load("photo", device="cpu")
    with ProcessPoolExecutor(
        2,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        list(pool.map(partial(encode_file, codec, output=output), sources, chunksize=8))


def worker_processes(cluster: Cluster) -> list[int]:
    """Those that code pictures, on all nodes."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes]
    children = [
        int(child)
        for raylet in raylets
        for file in Path(f"/proc/{raylet}/task").glob("*/children")
        for child in file.read_text().split()
    ]
    names = {child: Path(f"/proc/{child}/comm").read_text() for child in children}
    return [child for child, name in names.items() if name.startswith("ray::MapWorker")]


def on_ray(folder: Path, output: Path, count: int, harm: bool) -> None:
    memory = {"object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
    for _ in range(2):
        cluster.add_node(num_cpus=1, **memory)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")

    report = io.StringIO()
    arguments = ["encode", str(folder), "--recursive", "--output-dir", str(output)]
    arguments += ["--ray", "auto", "-q", "50", "--json"]
    # In another thread, as nodes can be added from the main one alone.
    with ThreadPoolExecutor(1) as executor, contextlib.redirect_stdout(report):
        encoding = executor.submit(mlic_fast_command, arguments)

        def wait_for(part: float) -> int:
            while (made := len(list(output.rglob("*.mlic")))) < part * count:
                if encoding.done():
                    raise SystemExit(f"the command ended after {made} pictures")
                time.sleep(0.1)
            return made

        if harm:
            made = [wait_for(1 / 3)]
            os.kill(worker_processes(cluster)[0], signal.SIGKILL)
            made.append(wait_for(1 / 2))
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            cluster.add_node(num_cpus=1, **memory)
            print("killed a worker and removed a node after", made, "pictures", file=sys.stderr)
        code = encoding.result()
    results = [json.loads(line) for line in report.getvalue().splitlines()]
    assert code == 0 and len(results) == count, (code, len(results))
    ray.shutdown()
    cluster.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.mlic"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--size", type=picture_size, default=(128, 96))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make_pictures(root / "in", args.pictures, *args.size)
        sources = sorted((root / "in").rglob("*.png"))
        ways = {
            "plain loop, one thread": lambda to: plain_loop(sources, to),
            "two processes": lambda to: processes(sources, to),
            "Ray, two workers": lambda to: on_ray(root / "in", to, args.pictures, False),
            "Ray, harmed": lambda to: on_ray(root / "in", to, args.pictures, True),
        }
        expected: dict[str, bytes] | None = None
        for number, (name, run) in enumerate(ways.items()):
            output = root / str(number)
            output.mkdir()
            start = time.perf_counter()
            run(output)
            seconds[name] = time.perf_counter() - start
            made = contents(output)
            expected = expected or made
            if len(made) != args.pictures or made != expected:
                raise SystemExit(f"{name} gives other files: {len(made)} of {args.pictures}")
            rate = args.pictures / seconds[name]
            print(f"{name}: {seconds[name]:.0f} s, {rate:.1f} a second, the same bytes", flush=True)
    if args.json:
        result = {"pictures": args.pictures, "size": args.size, "seconds": seconds}
        args.json.write_text(json.dumps({**result, "machine": describe_machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
