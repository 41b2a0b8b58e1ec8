"""Spans of time, one within another, on the host's clock or a CUDA device's.

On a device a span is from one event of the stream to another, so nothing waits for the device
while it works, and a span is the time that its kernels take there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

TOTAL = "total"


@dataclass(eq=False)
class Span:
    """One call of something.

    Attributes:
        kind: what sort of thing, such as ``"stage"``.
        name: of the thing.
        parent: the span within which this one lies; None for the whole.
        details: whatever the caller of :meth:`Tracer.wrap` wants to know of it.
        start, end: seconds from the start of the recording.
        counted: by how much the counters of the tracer went on.
        wall_seconds, processor_seconds: of the whole alone: by the clock on the wall, and of all
            threads of the process on the processor.
    """

    kind: str
    name: str
    parent: Span | None
    details: dict[str, Any]
    start: float = 0.0
    end: float = 0.0
    counted: tuple[float, ...] = ()
    wall_seconds: float = 0.0
    processor_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """From start to end."""
        return self.end - self.start

    def within(self, kind: str) -> Span | None:
        """The innermost span of a kind that this one is or lies in."""
        span: Span | None = self
        while span is not None and span.kind != kind:
            span = span.parent
        return span


class _Clock(Protocol):
    def mark(self) -> Any: ...
    def seconds(self, mark: Any) -> float: ...


class _HostClock:
    def __init__(self, processor: bool) -> None:
        self.mark = time.process_time if processor else time.perf_counter

    def seconds(self, mark: float) -> float:
        return mark


class _CudaClock:
    def __init__(self) -> None:
        self._first = self.mark()

    def mark(self) -> torch.cuda.Event | None:
        if torch.cuda.is_current_stream_capturing():
            return None  # events within a graph have no time
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, mark: Any) -> float:
        if mark is None or self._first is None:
            raise RuntimeError("a CUDA graph was captured while it was timed: warm up first")
        return float(self._first.elapsed_time(mark)) / 1e3


class Tracer:
    """Records the calls of functions that it has wrapped.

    Args:
        device: whose clock to read.
        processor: on the CPU read the time that the process has had on the processor, so that
            waiting for one does not count. Only sensible with one thread.
        counters: numbers that go on, to be read at the start and the end of every span.

    Attributes:
        open: during a recording, the innermost span that has begun and not ended.
    """

    def __init__(
        self,
        device: torch.device | None = None,
        *,
        processor: bool = False,
        counters: Callable[[], tuple[float, ...]] = tuple,
    ) -> None:
        self._counters = counters
        self._device = device
        self._processor = processor
        self._clock = self._new_clock()
        self._detailed = False
        self.open: Span | None = None
        self._spans: list[tuple[Span, list[Any]]] = []

    def wrap(
        self,
        kind: str,
        name: str,
        function: Callable[..., Any],
        details: Callable[..., dict[str, Any]] | None = None,
    ) -> Callable[..., Any]:
        """The function with a span around each call made during :meth:`record`.

        ``details`` is called with the result and the arguments, in a detailed recording.
        """

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.open is None:
                return function(*args, **kwargs)
            span = Span(kind, name, self.open, {})
            self.open = span
            before = self._counters()
            marks = [self._clock.mark()]
            self._spans.append((span, marks))
            try:
                result = function(*args, **kwargs)
            finally:
                marks.append(self._clock.mark())
                self.open = span.parent
            span.counted = tuple(b - a for a, b in zip(before, self._counters(), strict=True))
            if self._detailed and details is not None:
                self.open = None  # what they call is not to be recorded
                span.details = details(result, *args, **kwargs)
                self.open = span.parent
            return result

        return timed

    def record(self, work: Callable[[], object], *, detailed: bool = False) -> list[Span]:
        """The spans of one call in order of their starts, the whole of it (``total``) first.

        A detailed recording asks for all details, which takes time between the spans.
        """
        self._detailed = detailed
        self._synchronise()
        self._clock = self._new_clock()
        self._spans = []
        whole = self.open = Span(TOTAL, TOTAL, None, {})
        processor, begin, first = time.process_time(), time.perf_counter(), self._clock.mark()
        try:
            work()
        finally:
            self.open = None
        self._synchronise()
        whole.processor_seconds = time.process_time() - processor
        whole.wall_seconds = time.perf_counter() - begin
        whole.end = whole.processor_seconds if self._processor else whole.wall_seconds
        origin = self._clock.seconds(first)
        for span, (start, end) in self._spans:
            span.start = self._clock.seconds(start) - origin
            span.end = self._clock.seconds(end) - origin
        return [whole, *(span for span, _ in self._spans)]

    def _new_clock(self) -> _Clock:
        return _CudaClock() if self._on_device() else _HostClock(self._processor)

    def _on_device(self) -> bool:
        return self._device is not None and self._device.type == "cuda"

    def _synchronise(self) -> None:
        if self._on_device():
            torch.cuda.synchronize(self._device)


def processor_time(device: torch.device) -> bool:
    """Whether to time on the processor: with one thread that is what the work would take alone,
    however busy the machine is; several threads that wait for each other take it too.
    """
    return device.type == "cpu" and torch.get_num_threads() == 1


def own_seconds(spans: list[Span]) -> dict[Span, float]:
    """For each span the seconds that none of the spans within it takes."""
    return _own(spans, {span: span.seconds for span in spans})


def own_counted(spans: list[Span], counter: int) -> dict[Span, float]:
    """For each span how far a counter went on outside the spans within it; 0 without counters."""
    return _own(spans, {s: s.counted[counter] if s.counted else 0.0 for s in spans})


def _own(spans: list[Span], inclusive: dict[Span, float]) -> dict[Span, float]:
    own = dict(inclusive)
    for span in spans:
        if span.parent is not None:
            own[span.parent] -= inclusive[span]
    return own
