"""Profiles as a trace that chrome://tracing and https://ui.perfetto.dev show."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from mlic_fast.profiling.breakdown import Profile
from mlic_fast.profiling.kernel_spans import KERNEL

Event = dict[str, Any]


def chrome_trace(profiles: Mapping[str, Profile]) -> dict[str, Any]:
    """The last run of each engine as a process: its calls, and above them its passes."""
    events: list[Event] = []
    for process, (name, profile) in enumerate(profiles.items(), start=1):
        events.append(_name("process_name", name, process, 0))
        events.append(_name("thread_name", "passes", process, 1))
        events.append(_name("thread_name", "stages, networks, kernels", process, 2))
        events += _passes(profile, process)
        events += [_call(span, process) for span in profile.spans]
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _name(what: str, name: str, process: int, thread: int) -> Event:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": name}}


def _call(span: Any, process: int) -> Event:
    name = span.name
    if span.kind == KERNEL:
        name = f"{span.details['operation']} {span.details['layer']}".strip()
    return _event(name, span.kind, span.start, span.end, process, 2, span.details)


def _passes(profile: Profile, process: int) -> Iterator[Event]:
    """Neighbouring calls of one pass are one event."""
    pairs = zip(profile.span_passes, profile.spans, strict=True)
    kernels = ((pass_, span) for pass_, span in pairs if pass_ and span.kind != "stage")
    for pass_, group in itertools.groupby(kernels, key=lambda pair: pair[0]):
        spans = [span for _, span in group]
        yield _event(pass_, "pass", spans[0].start, max(s.end for s in spans), process, 1, {})


def _event(
    name: str, kind: str, start: float, end: float, process: int, thread: int, details: Event
) -> Event:
    return {
        "ph": "X",
        "name": name,
        "cat": kind,
        "ts": 1e6 * start,
        "dur": 1e6 * (end - start),
        "pid": process,
        "tid": thread,
        "args": details,
    }
