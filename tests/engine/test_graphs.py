"""Captures that fail, on stand-ins for PyTorch's streams and graphs that keep CUDA's rules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mlic_fast.engine.gpu import graphs
from mlic_fast.engine.gpu.graphs import GATE, Recording


class Stream:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def wait_stream(self, other: Stream) -> None:
        """Who waits for a capturing stream captures too; whom a capture waits for is joined."""
        if other in self._cuda.capturing:
            self._cuda.capturing.add(self)
            self._cuda.unjoined.add(self)
        self._cuda.unjoined.discard(other)


class FakeCuda:
    def __init__(self) -> None:
        self.current = Stream(self)
        self.capturing: set[Stream] = set()
        self.unjoined: set[Stream] = set()
        self.captures = 0

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: object, stream: Stream, **_: object) -> Iterator[None]:
        self.captures += 1
        self.capturing = {stream}
        try:
            with self.stream(stream):
                yield
        finally:
            unjoined, self.capturing, self.unjoined = self.unjoined - {stream}, set(), set()
            if unjoined:
                raise RuntimeError("cudaStreamEndCapture: unjoined work")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    streams: dict[str, Stream] = {}

    def capture_stream(device: torch.device, name: str = "") -> Stream:
        if name not in streams:
            streams[name] = Stream(fake)
            graphs._BRANCHES.append(streams[name])  # type: ignore[arg-type]
        return streams[name]

    class Graph:
        def replay(self) -> None:
            pass

        def pool(self) -> int:
            return 0

    monkeypatch.setattr(graphs, "_BRANCHES", [])
    monkeypatch.setattr(graphs, "capture_stream", capture_stream)
    monkeypatch.setattr(torch.cuda, "stream", fake.stream)
    monkeypatch.setattr(torch.cuda, "graph", fake.graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda pool: [{"total_size": 5}])
    monkeypatch.setattr(
        torch.cuda, "is_current_stream_capturing", lambda: fake.current in fake.capturing
    )
    return fake


def test_out_of_memory_in_a_branch_of_a_capture(cuda: FakeCuda) -> None:
    """It comes out as what it is, the branches are joined, and the next run captures."""
    device, short = torch.device("cuda:0"), False

    def work() -> str:
        main = cuda.current
        branch: Any = graphs.capture_stream(device, "inter")
        branch.wait_stream(main)
        with torch.cuda.stream(branch):
            if short:
                raise torch.OutOfMemoryError("a fake")
        main.wait_stream(branch)
        return "done"

    recording = Recording(work, device)
    with GATE.working():
        assert recording() == "done" and cuda.captures == 0  # the first run launches
    short = True
    with pytest.raises(torch.OutOfMemoryError), GATE.working():
        recording()
    assert cuda.captures == 1 and recording.nbytes == 0
    assert GATE._working == 0 and not GATE._capturing
    short = False
    for _ in range(2):  # captures, then replays
        with GATE.working():
            assert recording() == "done"
    assert cuda.captures == 2 and recording.nbytes == 5
