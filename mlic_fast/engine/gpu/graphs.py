"""CUDA graphs of whole encodes and decodes, and a cache of them that is bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Generic, Protocol, TypeVar

import torch

from mlic_fast.engine.path import INTER
from mlic_fast.errors import MlicError

Result = TypeVar("Result")


class Gate:
    """Any number of threads work at once, or one of them captures.

    What a thread does for the first time (a module loaded, a library's handle made) may wait for
    the whole device, which ends another thread's capture. Who wants to capture goes first: threads
    that keep working would otherwise never leave it alone.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = 0
        self._wanted = 0
        self._capturing = False

    @contextmanager
    def working(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._wanted)
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """For a thread that is working: alone until it leaves."""
        with self._changed:
            self._working -= 1
            self._wanted += 1
            self._changed.notify_all()
        mine = False
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._working and not self._capturing)
                self._capturing = mine = True
            yield
        finally:
            with self._changed:
                if mine:  # not if the wait was interrupted
                    self._capturing = False
                self._wanted -= 1
                self._working += 1
                self._changed.notify_all()


#: Of all engines of the process. Whoever calls a :class:`Recording` is working.
GATE = Gate()


#: Of the stream that the rest waits for, and of the longest branch; others have -1.
_PRIORITIES = {"": -3, INTER: -2}
#: All streams for captures.
_BRANCHES: list[torch.cuda.Stream] = []


@cache
def capture_stream(device: torch.device, name: str = "") -> torch.cuda.Stream:
    """A stream for captures alone; by ``name`` one for each branch of a graph.

    PyTorch lends streams of usual priority in turn, the same one again after 32. What anybody
    launched on one that captures would become part of the graph, or end the capture, so these come
    from the other pool.
    """
    stream = torch.cuda.Stream(device, priority=_PRIORITIES.get(name, -1))
    _BRANCHES.append(stream)
    return stream


def _join_branches(stream: torch.cuda.Stream) -> None:
    """A capture waits for all of its branches."""
    for branch in _BRANCHES:
        with torch.cuda.stream(branch):
            captures = torch.cuda.is_current_stream_capturing()
        if captures and branch != stream:
            stream.wait_stream(branch)


#: For launches one by one. The first of a kernel loads it, in Triton not safely beside another
#: thread's; and more threads would not launch faster, as Python lets one of them run.
_LAUNCHING = threading.Lock()


class Recording(Generic[Result]):
    """Work on buffers that stay where they are: run at first, from its second time on replayed.

    The first run makes what is made once (weights in the form of kernels, compiled kernels), so
    that a shape seen once costs no capture. A thread captures only what it has run: the handles and
    plans of cuDNN are a thread's own, and must not be made in a capture. On a CPU it is always run.

    Attributes:
        nbytes: of GPU memory that the graph holds, 0 before there is one.
    """

    def __init__(self, work: Callable[[], Result], device: torch.device) -> None:
        self._work = work
        self._device = device
        self._graph: tuple[torch.cuda.CUDAGraph, Result] | None = None
        self._here = threading.local()
        self.nbytes = 0

    def __call__(self, capture: bool = True) -> Result:
        """Do the work on the current stream; without ``capture`` launch by launch.

        What a graph returns, its next replay overwrites.
        """
        replays = self._graph is not None or hasattr(self._here, "ran")
        if self._device.type != "cuda" or not capture or not replays:
            with _LAUNCHING:
                result = self._work()
            self._here.ran = True
            return result
        if self._graph is None:
            self._graph = self._capture()
        graph, result = self._graph
        graph.replay()
        return result

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, Result]:
        graph, stream = torch.cuda.CUDAGraph(), capture_stream(self._device)
        with (
            GATE.capturing(),
            torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            try:
                result = self._work()
            except BaseException:
                _join_branches(stream)  # else the capture ends with an error of its own
                raise
        segments = torch.cuda.memory_snapshot(graph.pool())
        self.nbytes = sum(segment["total_size"] for segment in segments)
        return graph, result


class Sized(Protocol):
    """What a pool can hold: it says how many bytes of the device it takes."""

    @property
    def nbytes(self) -> int: ...


Item = TypeVar("Item", bound=Sized)


class Pool(Generic[Item]):
    """Items that one thread uses at a time, kept for the next by key.

    Free items beyond ``limit`` bytes are dropped, the least recently used first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._free: OrderedDict[int, tuple[Hashable, Item]] = OrderedDict()

    @contextmanager
    def lent(self, key: Hashable, make: Callable[[], Item]) -> Iterator[Item]:
        """An item, given back afterwards.

        Not after an error other than ours, which are raised when all work is done: kernels that
        write to the item may still be on their way.
        """
        item = self.take(key, make)
        try:
            yield item
        except MlicError:
            self.give(key, item)
            raise
        self.give(key, item)

    def take(self, key: Hashable, make: Callable[[], Item]) -> Item:
        """A free item of the key, the most recently used, or a new one."""
        with self._lock:
            for number in reversed(self._free):
                if self._free[number][0] == key:
                    return self._free.pop(number)[1]
        return make()

    def give(self, key: Hashable, item: Item) -> None:
        """Back for others to take."""
        with self._lock:
            self._free[id(item)] = key, item
            while len(self._free) > 1 and self._bytes() > self._limit:
                self._free.popitem(last=False)

    def clear(self) -> None:
        """Drop all free items."""
        with self._lock:
            self._free.clear()

    def _bytes(self) -> int:
        return sum(item.nbytes for _, item in self._free.values())
