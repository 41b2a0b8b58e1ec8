"""Work that is done again and again on arrays of the same shapes: recorded once, then replayed.

A picture of 768x512 takes some 350 calls of kernels, between which Python takes 8 ms on one thread
while the others wait. A recording holds these calls with the addresses of their arrays, as a CUDA
graph does, and C++ makes them again. What has to be done in Python between them are its steps.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlic_fast._C import exact

Array = npt.NDArray[Any]
#: What is done for a :class:`Client` on arrays, which it takes out of the list, and gives arrays.
#: Nothing but these may differ from one time to the next.
Work = Callable[["Client", list[Array]], list[Array]]

#: A picture with more pixels is not recorded: its work takes memory, and Python little of the time.
RECORDED_PIXELS = 1 << 20
#: Bytes of memory that are kept when no work is done, at most.
KEPT_BYTES = 1 << 29
#: Recordings on one memory, at most.
_RECORDINGS = 32
#: Arrays begin at a multiple of this, where no vector of a kernel straddles two cache lines.
_ALIGNMENT = 64

_thread = threading.local()


def room(shape: Sequence[int], dtype: Any) -> Array:
    """An array to be written, as of numpy.empty: in the recording that this thread makes."""
    recording: Recording | None = getattr(_thread, "recording", None)
    return np.empty(shape, dtype) if recording is None else recording.room(shape, dtype)


def step(do: Callable[[], None]) -> None:
    """Do something that is no kernel: at once, and whenever a recording of it is replayed."""
    recording: Recording | None = getattr(_thread, "recording", None)
    if recording is None:
        do()
    else:
        recording.step(do)


class Client:
    """Whom a work is done for.

    Attributes:
        coder: its range coder.
        digest: of its latents, summed up so far.
    """

    def __init__(self, coder: Any = None) -> None:
        self.coder = coder
        self.digest = 0


class Memory:
    """Where recordings have their arrays. One of them at a time runs on it, and may write all."""

    def __init__(self) -> None:
        self.chunks: list[Array] = []

    @property
    def bytes(self) -> int:
        """In all."""
        return sum(each.nbytes for each in self.chunks)

    def add_chunk(self, size: int) -> Array:
        """A new one of at least so many bytes. No two chunks touch."""
        size = max(size, self.bytes // 4 // _ALIGNMENT * _ALIGNMENT)
        whole = np.empty(size + _ALIGNMENT, np.uint8)
        begin = -whole.ctypes.data % _ALIGNMENT
        self.chunks.append(whole[begin : begin + size])
        return self.chunks[-1]


class _Places:
    """Gives parts of a memory to the arrays of one recording, and takes them back.

    Args:
        memory: all of it is free.
        told: called with each chunk.
    """

    def __init__(self, memory: Memory, told: Callable[[Array], None]) -> None:
        self._memory, self._told = memory, told
        #: Addresses and sizes of what is free, in order; no two touch.
        self._free: list[tuple[int, int]] = []
        for each in memory.chunks:
            self._add(each)

    def _add(self, chunk: Array) -> None:
        self._told(chunk)
        bisect.insort(self._free, (chunk.ctypes.data, chunk.nbytes))

    def take(self, size: int) -> int:
        """The address of so many bytes: the smallest free place that is large enough."""
        fitting = [(free, at) for at, free in self._free if free >= size]
        if not fitting:
            self._add(self._memory.add_chunk(size))
            return self.take(size)
        free, at = min(fitting)
        self._free.remove((at, free))
        if free > size:
            bisect.insort(self._free, (at + size, free - size))
        return at

    def give_back(self, at: int, size: int) -> None:
        """The place is free again, and one with what is free beside it."""
        number = bisect.bisect(self._free, (at, size))
        if number < len(self._free) and self._free[number][0] == at + size:
            size += self._free.pop(number)[1]
        if number > 0 and sum(self._free[number - 1]) == at:
            at, before = self._free.pop(number - 1)
            size += before
        bisect.insort(self._free, (at, size))


class _Place:
    """The base of all arrays that lie in one place; the last one gives it back."""

    def __init__(self, places: _Places, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        size = math.prod(shape) * dtype.itemsize
        self._places, self._size = places, -(-size // _ALIGNMENT) * _ALIGNMENT
        self._at = places.take(self._size)
        self.__array_interface__ = {
            "data": (self._at, False),
            "shape": tuple(shape),
            "typestr": dtype.str,
            "version": 3,
        }

    def __del__(self) -> None:
        self._places.give_back(self._at, self._size)


class Recording:
    """How a work was done once.

    Its arrays take no more memory than doing the work did: where one was that no array of Python is
    in any more, others may be. What kernels share with steps stays, since steps hold it.

    Args:
        arrays: of the shapes and dtypes that it is done on.
        memory: where it is done. It lives as long as the recording.
    """

    def __init__(self, arrays: Sequence[Array], memory: Memory) -> None:
        self._memory = memory
        self._calls = exact.Recording()
        self._steps: list[tuple[int, Callable[[], None]]] = []
        self._places = _Places(memory, self._calls.add_memory)
        self._client = Client()
        self._arrays = [self.room(each.shape, each.dtype) for each in arrays]
        self._results: list[Array] | None = None

    @property
    def complete(self) -> bool:
        """Whether the work was done once."""
        return self._results is not None

    def run(self, work: Work, client: Client, arrays: list[Array]) -> list[Array]:
        """Do the work, always the same one, for a client.

        ``arrays`` are copied, and taken out of the list. The results are copies too.
        """
        for own, given in zip(self._arrays, arrays, strict=True):
            np.copyto(own, given)
        arrays.clear()
        self._client.coder, self._client.digest = client.coder, client.digest
        try:
            if self._results is None:
                self._results = self._record(work)
            else:
                self._replay()
        finally:
            self._client.coder = None
        client.digest = self._client.digest
        return [each.copy() for each in self._results]

    def _record(self, work: Work) -> list[Array]:
        self._begin()
        try:
            return work(self._client, list(self._arrays))
        finally:
            self._end()

    def _begin(self) -> None:
        self._calls.begin()
        _thread.recording = self

    def _end(self) -> None:
        _thread.recording = None
        self._calls.end()

    def _replay(self) -> None:
        begin = 0
        for end, do in self._steps:
            self._calls.replay(begin, end)
            do()
            begin = end
        self._calls.replay(begin, len(self._calls))

    def step(self, do: Callable[[], None]) -> None:
        """As the function of this name."""
        self._end()
        try:
            do()
        finally:
            self._begin()
        self._steps.append((len(self._calls), do))

    def room(self, shape: Sequence[int], dtype: Any) -> Array:
        """As the function of this name."""
        return np.asarray(_Place(self._places, shape, np.dtype(dtype)))


class _Lane:
    """A memory and the recordings on it, the latest last: what one thread at a time uses."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.recordings: dict[Any, Recording] = {}

    def run(self, key: Any, work: Work, client: Client, arrays: list[Array]) -> list[Array]:
        recording = self.recordings.pop(key, None) or Recording(arrays, self.memory)
        try:
            return recording.run(work, client, arrays)
        finally:
            if recording.complete:
                self.recordings[key] = recording
            if len(self.recordings) > _RECORDINGS:
                del self.recordings[next(iter(self.recordings))]


class Recordings:
    """Recordings of the works of a codec, for any number of threads.

    There is no lock, which a process could be forked with: lists are popped and appended to as a
    whole.
    """

    def __init__(self) -> None:
        self._idle: list[_Lane] = []  # the latest last
        self._most_pixels = RECORDED_PIXELS

    def run(self, work: Work, client: Client, pixels: int, arrays: list[Array]) -> list[Array]:
        """``work(client, arrays)`` of a picture of so many pixels, recorded unless it is large."""
        if pixels > self._most_pixels:
            return work(client, arrays)
        lane = _popped(self._idle, -1) or _Lane()
        try:
            # The name alone: what it is a method of has these recordings, and is to be freed.
            key = work.__name__, *((each.shape, each.dtype) for each in arrays)
            return lane.run(key, work, client, arrays)
        finally:
            self._keep(lane, pixels)

    def _keep(self, lane: _Lane, pixels: int) -> None:
        if lane.memory.bytes > KEPT_BYTES:
            self._most_pixels = min(self._most_pixels, pixels - 1)
            return
        self._idle.append(lane)
        while sum(each.memory.bytes for each in list(self._idle)) > KEPT_BYTES:
            _popped(self._idle, 0)


def _popped(lanes: list[_Lane], at: int) -> _Lane | None:
    try:
        return lanes.pop(at)
    except IndexError:
        return None
