"""The branches of a graph wait for each other wherever they share memory.

No GPU is needed: launches are recorded with the memory that they are given. The allocator gives the
memory of a stream out again as soon as nothing refers to it, so whoever read it on another stream
must have ended before the next launch on its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from lively import SMALL, lively_model

from mlic_fast.engine.gpu.gpu_operations import GpuOps
from mlic_fast.engine.packing.packer import pack
from mlic_fast.engine.path import code_latents

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
#: What a kernel writes beside what it is the first to touch.
WRITTEN = {"decoded": ("latents", "out"), "conv": ("real", "out"), "totals": ("real", "out")}


def tensors(arguments: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor, int]]:
    """Name, tensor and address of all that a launch is given."""
    for name, value in arguments.items():
        for tensor in value if isinstance(value, tuple) else (value,):
            if isinstance(tensor, torch.Tensor):
                yield name, tensor, tensor.data_ptr()
    for i in range(1, arguments.get("inputs", 1)):  # inputs lie beside the first
        if "x_input" in arguments:
            yield "x", arguments["x"], arguments["x"].data_ptr() + i * arguments["x_input"]


class Kept:
    """Memory that was there before: weights."""

    def __init__(self) -> None:
        self.storages: dict[int, Any] = {}

    def add(self, launch: tuple[str, dict[str, Any]]) -> None:
        for _, tensor, _ in tensors(launch[1]):
            storage = tensor.untyped_storage()
            self.storages[storage._cdata] = storage

    def drop_what_is_free(self) -> None:
        for key in [key for key, storage in self.storages.items() if is_free(storage)]:
            del self.storages[key]


def is_free(storage: Any) -> bool:
    """Nobody but us refers to it."""
    return bool(torch._C._storage_Use_Count(storage._cdata) == 1)


class Watch:
    """Launches as bits: those before each, and those that touched or wrote memory."""

    def __init__(self, kept: Kept) -> None:
        self.kept, self.branch = kept, ""
        self.tails: defaultdict[str, int] = defaultdict(int)
        self.count, self.launches_of_branches = 0, 0
        self.alive: dict[int, tuple[Any, str, int]] = {}  # storage, its branch, its first launch
        self.touched: defaultdict[int, int] = defaultdict(int)  # by storage
        self.views: defaultdict[tuple[int, int], int] = defaultdict(int)
        self.written: defaultdict[tuple[int, int], int] = defaultdict(int)
        self.given_back: defaultdict[str, int] = defaultdict(int)
        self.hazards: list[str] = []

    def add(self, launch: tuple[str, dict[str, Any]]) -> None:
        kernel, arguments = launch
        before, me = self.tails[self.branch], 1 << self.count
        self.count += 1
        self.launches_of_branches += self.branch != ""
        for key, (storage, branch, _) in list(self.alive.items()):
            if is_free(storage):
                self.given_back[branch] |= self.touched.pop(key)
                del self.alive[key]
        if self.given_back.pop(self.branch, 0) & ~before:
            self.hazards.append(f"{kernel} may be given memory that is still read")
        for name, tensor, address in tensors(arguments):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self.kept.storages:
                continue
            if key not in self.alive:
                self.alive[key] = storage, self.branch, me
            first = self.alive[key][2]
            view = first, address  # an address alone may have been another's before
            writes = name in WRITTEN.get(kernel, ()) or first == me
            needed = first | (self.views[view] if writes else self.written[view])
            if needed & ~(before | me):
                self.hazards.append(f"{kernel} does not wait for who shares its {name}")
            self.touched[key] |= me
            self.views[view] |= me
            self.written[view] |= me if writes else 0
        self.tails[self.branch] = before | me

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        before, self.branch = self.branch, name
        self.tails[name] |= self.tails[before]
        yield
        self.branch = before

    def join(self, name: str) -> None:
        self.tails[self.branch] |= self.tails[name]


@pytest.fixture(params=sorted(SMALL))
def watch(request: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the path of a model, watched, after it has run once."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    critical_path = import_module("critical_path")
    monkeypatch.setattr(critical_path, "_launch", lambda kernel, _, arguments: (kernel, arguments))
    ops = GpuOps(pack(lively_model(SMALL[request.param]).eval()), torch.device("cpu"))
    z = torch.zeros((1, 1, 2, ops.config.N), dtype=torch.int32)
    symbols = torch.zeros((1, 4, 4, ops.config.slice_channels), dtype=torch.int32)

    def run(kind: type[Watch]) -> Watch:
        def launches(graph: Any) -> None:
            with critical_path.recorded(graph):
                code_latents(ops, z, lambda *_: symbols)

        kept = Kept()
        launches(kept)
        kept.drop_what_is_free()
        watch = kind(kept)
        monkeypatch.setattr(ops, "aside", watch.aside)
        monkeypatch.setattr(ops, "join", watch.join)
        launches(watch)
        return watch

    return run


def test_branches_wait_where_they_share_memory(watch: Any) -> None:
    seen = watch(Watch)
    assert seen.hazards == []
    assert 10 < seen.launches_of_branches < seen.count
    assert seen.count == seen.tails[""].bit_count()  # none is left behind


def test_branches_that_do_not_wait_are_found(watch: Any) -> None:
    class WithoutJoin(Watch):
        def join(self, name: str) -> None:
            pass

    class WithoutFork(Watch):
        @contextmanager
        def aside(self, name: str) -> Iterator[None]:
            before, self.branch = self.branch, name
            yield
            self.branch = before

    for kind in (WithoutJoin, WithoutFork):
        assert watch(kind).hazards
