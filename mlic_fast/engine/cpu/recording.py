"""Work that is done again and again on arrays of the same shapes: recorded, then replayed.

A picture of 768x512 takes some 350 calls of kernels, between which Python takes 8 ms on one thread
while the others wait. A recording (csrc/exact/recording.h) holds these calls with the addresses of
their arrays, as a CUDA graph does, and makes them again in C++. What has to be done in Python
between them are its steps.
"""

from __future__ import annotations

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
#: Recordings on one memory, at most; and sizes that are remembered.
_RECORDINGS, _REMEMBERED = 32, 256


def room(shape: Sequence[int], dtype: Any) -> Array:
    """An array to be written, as of numpy.empty: in the recording that this thread makes."""
    recording = exact.Recording.current()
    if recording is None:
        return np.empty(shape, dtype)
    array: Array = recording.room(shape, np.dtype(dtype))
    return array


def step(do: Callable[[], None]) -> None:
    """Do something that is no kernel: at once, and whenever a recording of it is replayed."""
    recording = exact.Recording.current()
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


class RecordedWork:
    """How a work was done once, and its arrays.

    Args:
        arrays: of the shapes and dtypes that it is done on.
        memory: where it is done.
    """

    def __init__(self, arrays: Sequence[Array], memory: Any) -> None:
        self._recording = exact.Recording(memory)
        self._client = Client()
        self._arrays = [self._recording.room(each.shape, each.dtype) for each in arrays]
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
                self._results = self._recorded(work)
            else:
                self._recording.replay()
        finally:
            self._client.coder = None
        client.digest = self._client.digest
        return [each.copy() for each in self._results]

    def _recorded(self, work: Work) -> list[Array]:
        results: list[Array] = self._recording.during(
            lambda: work(self._client, list(self._arrays))
        )
        for each in results:
            self._recording.check(each)
        return results


class _Lane:
    """A memory and the works that are recorded on it, the latest last: what one thread at a time
    uses.

    Attributes:
        pixels: of all pictures that it has worked on.
    """

    def __init__(self) -> None:
        self.memory = exact.Memory()
        self.works: dict[Any, RecordedWork] = {}
        self.pixels: set[int] = set()

    def run(self, key: Any, work: Work, client: Client, arrays: list[Array]) -> list[Array]:
        recorded = self.works.pop(key, None) or RecordedWork(arrays, self.memory)
        try:
            return recorded.run(work, client, arrays)
        finally:
            if recorded.complete:
                self.works[key] = recorded
            if len(self.works) > _RECORDINGS:
                del self.works[next(iter(self.works))]


class Recordings:
    """The recorded works of a codec, for any number of threads.

    There is no lock, which a process could be forked with: lists and dictionaries are changed in
    single operations.
    """

    def __init__(self) -> None:
        self._idle: list[_Lane] = []  # the latest last
        self._most_pixels = RECORDED_PIXELS
        self._seen: dict[Any, None] = {}

    def run(self, work: Work, client: Client, pixels: int, arrays: list[Array]) -> list[Array]:
        """``work(client, arrays)`` of a picture of so many pixels.

        It is recorded when arrays of such shapes come for the second time, unless the picture is
        large: to record takes a little longer, and more memory, than to do it.
        """
        # The name alone: what it is a method of has these recordings, and is to be freed.
        key = work.__name__, *((each.shape, each.dtype) for each in arrays)
        try:
            if exact.Recording.current() is not None:  # a signal came while this thread records
                again: list[Array] = exact.Recording.current().pause(lambda: work(client, arrays))
                return again
            if pixels > self._most_pixels or self._is_new(key):
                return work(client, arrays)
            lane = _popped(self._idle, -1) or _Lane()
            lane.pixels.add(pixels)
            try:
                return lane.run(key, work, client, arrays)
            finally:
                self._keep(lane)
        except MemoryError:
            self.clear()  # others may need it more
            raise

    def clear(self) -> None:
        """Forget all recordings that are not in use, and free their memory."""
        self._idle.clear()

    def _is_new(self, key: Any) -> bool:
        if key in self._seen:
            return False
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen[key] = None
        return True

    def _keep(self, lane: _Lane) -> None:
        if lane.memory.bytes > KEPT_BYTES:
            if len(lane.pixels) == 1:  # else part of it are gaps that other sizes left
                self._most_pixels = min(self._most_pixels, *lane.pixels) - 1
            return
        self._idle.append(lane)
        while sum(each.memory.bytes for each in list(self._idle)) > KEPT_BYTES:
            _popped(self._idle, 0)


def _popped(lanes: list[_Lane], at: int) -> _Lane | None:
    try:
        return lanes.pop(at)
    except IndexError:
        return None
