"""What the scripts of this folder share: the card, or the stand-in of a rehearsal; clocks; results.

    python benchmarks/gpu/SCRIPT.py FOLDER [--seconds S] [--rehearse]

writes ``FOLDER/SCRIPT.json``, also what is known of it when the time is up. With ``--rehearse``
nothing is timed: kernels are compiled, loaded and launched on a driver that runs nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch

#: A launch is timed in a graph of so many, as one alone takes less than its graph's replay.
REPETITIONS = 20


class Card:
    """A GPU and a time by which all must be done.

    Attributes:
        device: the GPU; in a rehearsal the CPU, where its tensors lie.
        rehearses: whether it is one.
    """

    def __init__(self, description: str | None, seconds: float) -> None:
        self._start = time.monotonic()
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("folder", type=Path, metavar="FOLDER", help="for the results")
        parser.add_argument("--seconds", type=float, default=seconds, help="default: %(default)s")
        parser.add_argument("--rehearse", action="store_true", help="without a GPU")
        args = parser.parse_args()
        self.rehearses: bool = args.rehearse
        self._end = math.inf if self.rehearses else self._start + args.seconds
        self._folder: Path = args.folder
        if self.rehearses:
            from fake_driver import install

            self._driver = install()
        elif not torch.cuda.is_available():
            raise SystemExit("PyTorch finds no GPU here; --rehearse does without one")
        self._folder.mkdir(parents=True, exist_ok=True)
        self.device = torch.device("cpu" if self.rehearses else "cuda:0")

    def do(self, section: str, work: Callable[[], object], least: float = 0.0) -> None:
        """One part; its failure is printed and costs no other. Left out with less time left."""
        elapsed = time.monotonic() - self._start
        if time.monotonic() + least > self._end:
            print(f"[{elapsed:5.1f} s] {section}: left out, {least:.0f} s are not left", flush=True)
            return
        print(f"[{elapsed:5.1f} s] {section}", flush=True)
        try:
            with torch.inference_mode():
                work()
        except Exception as error:
            traceback.print_exc()
            if self.rehearses or "CUDA error" in str(error):  # the context is lost
                raise SystemExit(1) from error

    def save(self, found: dict[str, Any]) -> None:
        """Into ``SCRIPT.json``, with the machine; what a rehearsal finds is no result."""
        document = {"rehearsal": found}
        if not self.rehearses:
            document = {"machine": self.machine(), "gpu": found}
        self.write(Path(sys.argv[0]).stem, document)

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Into ``NAME.json``; a cut leaves the one before."""
        temporary = self._folder / f"{name}.tmp"
        temporary.write_text(json.dumps(document, indent=1) + "\n")
        os.replace(temporary, self._folder / f"{name}.json")

    def machine(self) -> dict[str, Any]:
        return _machine(self.device)

    def launches(self) -> str:
        """In a rehearsal: what the driver was given. Exits where a GPU would refuse some."""
        if not self.rehearses:
            return ""
        library = self._driver.library
        if library.fake_refused():
            raise SystemExit(f"a GPU would refuse {library.fake_refused()} launches")
        return f"{library.fake_launches()} launches on the fake driver"

    def spin(self, seconds: float = 1.0) -> None:
        """Until the clocks are up."""
        if not self.rehearses:
            spin(seconds)

    def milliseconds(self, work: Callable[[], object], runs: int) -> list[float]:
        """Median and least of calls, each to the end of what it launched."""
        times = []
        for _ in range(1 if self.rehearses else runs):
            self._synchronise()
            start = time.perf_counter()
            work()
            self._synchronise()
            times.append(1e3 * (time.perf_counter() - start))
        return [round(statistics.median(times), 4), round(min(times), 4)]

    def launch_us(self, work: Callable[[], object], repetitions: int = REPETITIONS) -> float:
        """Microseconds of what ``work`` launches, in a graph of it several times."""
        if self.rehearses:
            work()
            return 0.0
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(repetitions):
                work()
        return self.replay_us(graph, 5) / repetitions

    def replay_us(self, graph: torch.cuda.CUDAGraph, runs: int = REPETITIONS) -> float:
        """Microseconds of a replay, one after the other."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()
        torch.cuda.synchronize()
        start.record()
        for _ in range(runs):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) * 1e3 / runs

    def _synchronise(self) -> None:
        if not self.rehearses:
            torch.cuda.synchronize()


@cache
def _machine(device: torch.device) -> dict[str, Any]:
    from mlic_fast.profiling.machine import describe_machine

    return describe_machine(device)


def spin(seconds: float) -> None:
    """Work for the GPU until its clocks are up."""
    a = torch.ones(4096, 4096, device="cuda", dtype=torch.bfloat16)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(8):
            a @ a
        torch.cuda.synchronize()
