"""One encode or decode taken apart: stages, networks, passes, kernels, beside the baseline.

Every kernel has a floor: its products over the machine's measured peak, or the bytes it reads and
writes over the measured bandwidth, whichever is longer. The kernel that is furthest above its floor
is the next to optimise.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mlic_fast.codec import Codec
from mlic_fast.engine.exact_transforms import ExactTransforms
from mlic_fast.errors import EngineError
from mlic_fast.models.checkerboard import Parity
from mlic_fast.profiling.engine_parts import parts_of
from mlic_fast.profiling.kernel_spans import (
    KERNEL,
    LAYOUT,
    MODULE,
    NETWORK,
    NETWORK_METHODS,
    SLICE,
    place,
    watched_kernels,
)
from mlic_fast.profiling.machine import bandwidth, integer_peak, matrix_peak
from mlic_fast.profiling.spans import (
    Span,
    Tracer,
    own_counted,
    own_seconds,
    processor_time,
)
from mlic_fast.profiling.stages import (
    ANALYSIS,
    CODER,
    OTHER,
    STAGE,
    STAGES,
    SYNTHESIS,
    seconds_by_stage,
)

Row = dict[str, Any]

BETWEEN = "between kernels"
BEFORE_PASSES = "before the passes"


@dataclass(frozen=True)
class Peaks:
    """What the machine does a second, as measured: products of the two arithmetics, bytes.

    ``matrices``: of PyTorch's matrix product on the CPU, by the name of the dtype.
    """

    matrix: float
    integer: float
    bandwidth: float
    matrices: dict[str, float] = field(default_factory=dict)


@dataclass
class Lost:
    """Seconds of a kernel in which not all threads worked on its results.

    Attributes:
        waiting: threads waited for others, or for a processor.
        layout: threads moved data: padding, packing, other orders.
        serial: outside the threads: Python, checks, memory, tables of positions.
    """

    waiting: float = 0.0
    layout: float = 0.0
    serial: float = 0.0


@dataclass
class Kernel:
    """One kernel call, or several of them together."""

    operation: str
    network: str
    layer: str
    stage: str
    pass_: str
    seconds: float = 0.0
    calls: int = 0
    bytes: int = 0
    products: int = 0
    floor: float = 0.0
    lost: Lost | None = None


@dataclass
class Profile:
    """Medians over the runs of one way of one codec, in seconds.

    Attributes:
        spans, span_passes: of the last run, for a trace, and the pass of each.
        total: of the whole.
        unwatched: of the whole without any of the spans, which take time too.
        stages, networks, passes: by name; those of the networks without what lies between kernels.
        kernels: in order; none for the reference engine.
    """

    spans: list[Span]
    span_passes: list[str]
    total: float
    unwatched: float
    stages: dict[str, float]
    networks: dict[str, float]
    passes: dict[str, float]
    kernels: list[Kernel] = field(default_factory=list)


def measure_peaks(codec: Codec) -> Peaks:
    """Peaks of the machine in the arithmetic of the codec's engine.

    Raises EngineError for an engine that is not exact: it has no kernels to look at.
    """
    parts = parts_of(codec._engine)
    if parts is None:
        raise EngineError(f"the engine {codec.engine!r} can only be profiled --against another")
    device = codec.device
    integers = matrix = integer_peak(device)
    if not isinstance(parts.transforms, ExactTransforms):
        matrix = matrix_peak(parts.transforms._dtype, device)
    on_cpu = device.type == "cpu"
    matrices = {"float32": matrix_peak(torch.float32, device)} if on_cpu else {}
    return Peaks(matrix, integers, bandwidth(device), matrices)


def profile(
    codecs: Sequence[Codec], way: str, image: torch.Tensor, runs: int, peaks: Peaks
) -> list[Profile]:
    """Profiles of one or two codecs that take turns.

    Args:
        codecs: an exact engine's first.
        way: ``"encode"`` or ``"decode"``.
        image: uint8 [3, H, W].
        runs: of each, watched and not, after one that warms up and one that counts.
        peaks: of the machine.
    """
    works = [_work(codec, way, image) for codec in codecs]
    counted = [_count(codec, work) for codec, work in zip(codecs, works, strict=True)]
    recorded: list[list[list[Span]]] = [[] for _ in codecs]
    unwatched: list[list[float]] = [[] for _ in codecs]
    for _ in range(runs):
        for i, (codec, work) in enumerate(zip(codecs, works, strict=True)):
            tracer = Tracer(codec.device, processor=processor_time(codec.device))
            unwatched[i].append(tracer.record(work)[0].seconds)
            with watched_kernels(codec, processor=processor_time(codec.device)) as tracer:
                recorded[i].append(tracer.record(work))
    return [_reduce(*each, peaks) for each in zip(unwatched, counted, recorded, strict=True)]


def _work(codec: Codec, way: str, image: torch.Tensor) -> Callable[[], object]:
    if way == "encode":
        return lambda: codec.compress(image)
    stream = codec.compress(image)
    assert isinstance(stream, bytes)
    return lambda: codec.decompress(stream)


def _count(codec: Codec, work: Callable[[], object]) -> list[Span]:
    for _ in range(2):  # the second call of a size captures a CUDA graph
        work()
    with watched_kernels(codec) as tracer:
        return tracer.record(work, detailed=True)


def _reduce(
    unwatched: list[float], counted: list[Span], runs: list[list[Span]], peaks: Peaks
) -> Profile:
    if any(len(spans) != len(counted) for spans in runs):
        raise EngineError("the engine's kernels differ from run to run, so there is no median")
    own = _medians([list(own_seconds(spans).values()) for spans in runs])
    losses = _losses(runs, own)
    whole = _medians([[span.seconds for span in spans] for spans in runs])
    stages: dict[str, list[float]] = defaultdict(list)
    for spans in runs:
        for name, seconds in seconds_by_stage(spans).items():
            stages[name].append(seconds)
    totals = stages.pop("total")
    networks: dict[str, float] = defaultdict(float)
    passes: dict[str, float] = defaultdict(float)
    kernels = []
    names = _passes(counted)
    callers = {span.parent for span in counted if span.kind == KERNEL}
    for span, seconds, inclusive, pass_, lost in zip(
        counted, own, whole, names, losses, strict=True
    ):
        if span.kind == KERNEL and not (span in callers and span.name in NETWORK_METHODS):
            kernels.append(_kernel(span, pass_, seconds, peaks, calls_others=span in callers))
            kernels[-1].lost = lost if span.details["pool"] else None
            networks[kernels[-1].network] += seconds
        elif span.kind == NETWORK:
            networks[place(span.name)[0]] += inclusive
        if pass_:
            passes[pass_] += seconds
    return Profile(
        spans=_with_details(counted, runs[-1]),
        span_passes=names,
        total=statistics.median(totals),
        unwatched=statistics.median(unwatched),
        stages={name: statistics.median(stages[name]) for name in STAGES if name in stages},
        networks=dict(networks),
        passes=dict(passes),
        kernels=kernels,
    )


def _losses(runs: list[list[Span]], own: list[float]) -> list[Lost]:
    """The lost time of every span; zero unless threads of the C++ kernels were counted in it."""
    threads = torch.get_num_threads()
    calls, results, layouts = (
        _medians([[1e-9 * n for n in own_counted(spans, i).values()] for spans in runs])
        for i in range(3)
    )
    return [
        Lost(
            waiting=max(0.0, call - (result + layout) / threads),
            layout=layout / threads,
            serial=max(0.0, seconds - call),
        )
        for seconds, call, result, layout in zip(own, calls, results, layouts, strict=True)
    ]


def _medians(runs: list[list[float]]) -> list[float]:
    return [statistics.median(times) for times in zip(*runs, strict=True)]


def _kernel(span: Span, pass_: str, seconds: float, peaks: Peaks, *, calls_others: bool) -> Kernel:
    details = span.details
    products = 0 if calls_others else details["products"]
    inside = span.within(STAGE)
    stage = OTHER if inside is None else inside.name
    layer = _layer(span)
    network, _, _ = place(layer)
    if network == LAYOUT and stage in (ANALYSIS, SYNTHESIS, OTHER):
        network = stage
    free = stage in (ANALYSIS, SYNTHESIS)
    arithmetic = products / (peaks.matrix if free else peaks.integer)
    return Kernel(
        operation=details["operation"],
        network=network,
        layer=layer,
        stage=stage,
        pass_=pass_,
        seconds=seconds,
        calls=1,
        bytes=details["bytes"],
        products=products,
        floor=max(arithmetic, details["bytes"] / peaks.bandwidth),
    )


def _layer(span: Span) -> str:
    """What a kernel computes, or the module or network that calls it."""
    inside: Span | None = span
    while inside is not None:
        if inside.kind == MODULE:
            return inside.name
        if inside.details.get("layer"):
            layer: str = inside.details["layer"]
            return layer
        inside = inside.parent
    return ""


def _passes(spans: list[Span]) -> list[str]:
    """The pass of each span within the entropy path; empty for the others.

    A layer's name tells slice and colour; layouts, the range coder and layers of a later slice,
    which are sums ahead, belong to the pass that is under way.
    """
    has_slices = any(span.kind == SLICE for span in spans)
    slices: list[Span] = []
    found, current = [], BEFORE_PASSES
    for span in spans:
        stage = span.within(STAGE)
        inside = stage is not None and stage.name not in (ANALYSIS, SYNTHESIS)
        if inside and span.kind in (KERNEL, NETWORK):
            _, index, parity = place(_layer(span) or span.name)
            slice_ = span.within(SLICE)
            if slice_ is not None and slice_ not in slices:
                slices.append(slice_)
            latest = len(slices) - 1 if has_slices else index
            if index is not None and parity is not None and latest is not None and index <= latest:
                colour = "anchors" if parity is Parity.ANCHOR else "non-anchors"
                current = f"slice {index}, {colour}"
        found.append(current if inside else "")
    return found


def _with_details(counted: list[Span], spans: list[Span]) -> list[Span]:
    for span, known in zip(spans, counted, strict=True):
        span.details = known.details
    return spans


def device_kernels(codec: Codec, way: str, image: torch.Tensor) -> list[Row]:
    """What runs on a CUDA device in one call, as PyTorch's profiler sees it, within graphs too:
    each kernel's launches and milliseconds, the longest first. Nothing on the CPU.
    """
    if codec.device.type != "cuda":
        return []
    work = _work(codec, way, image)
    work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize(codec.device)
    rows = [
        {"kernel": each.key, "launches": each.count, "ms": each.self_device_time_total / 1e3}
        for each in profiler.key_averages()
        if each.self_device_time_total > 0
    ]
    return sorted(rows, key=lambda row: -row["ms"])


def describe(profiles: Sequence[Profile], peaks: Peaks) -> Row:
    """The rows of all tables, for a JSON document. Times in milliseconds, of the first profile;
    ``baseline_ms`` and ``ratio`` of the second.

    A kernel's row has ``calls``, ``bytes``, ``products``; gigabytes and giga-products a second and
    their shares of the peaks; its floor and how far it is above; on the CPU what is lost, see
    :class:`Lost`. ``order`` is that of the calls.
    """
    ours = profiles[0]
    theirs = profiles[1] if len(profiles) > 1 else None
    by_network = _group(ours.kernels, lambda k: (k.stage, k.network))
    between = _between(ours)
    groups = _group(ours.kernels, lambda k: (k.network, k.operation))
    candidates = sorted([*groups, *between], key=lambda k: k.floor - k.seconds)
    return {
        "total_ms": 1e3 * ours.total,
        "unwatched_ms": 1e3 * ours.unwatched,
        **_beside(ours.total, theirs.total if theirs else None),
        "peaks": {
            "matrix_products_per_second": peaks.matrix,
            "integer_products_per_second": peaks.integer,
            "bytes_per_second": peaks.bandwidth,
            "matrices": peaks.matrices,
        },
        "stages": [
            {
                "stage": name,
                "ms": 1e3 * seconds,
                "share": seconds / ours.total,
                **_beside(seconds, theirs.stages.get(name) if theirs else None),
            }
            for name, seconds in ours.stages.items()
        ],
        "networks": [
            {
                "network": kernel.network,
                **_row(kernel, ours.total, peaks),
                **_beside(kernel.seconds, theirs.networks.get(kernel.network) if theirs else None),
            }
            for kernel in [*by_network, *between]
        ],
        "passes": [
            {
                "pass": name,
                "ms": 1e3 * seconds,
                "calls": sum(kernel.calls for kernel in ours.kernels if kernel.pass_ == name),
                **_beside(seconds, theirs.passes.get(name) if theirs else None),
            }
            for name, seconds in ours.passes.items()
        ],
        "kernels": [
            {"network": k.network, "operation": k.operation, **_row(k, ours.total, peaks)}
            for k in candidates
        ],
        "layers": [
            {
                "network": k.network,
                "layer": k.layer,
                "operation": k.operation,
                "pass": k.pass_,
                "order": order,
                **_row(k, ours.total, peaks),
            }
            for order, k in sorted(
                enumerate(ours.kernels), key=lambda item: item[1].floor - item[1].seconds
            )
        ],
    }


def _group(kernels: Iterable[Kernel], key: Callable[[Kernel], Hashable]) -> list[Kernel]:
    sums: dict[Hashable, Kernel] = {}
    for kernel in kernels:
        total = sums.setdefault(
            key(kernel), Kernel(kernel.operation, kernel.network, "", kernel.stage, "")
        )
        for name in ("seconds", "calls", "bytes", "products", "floor"):
            setattr(total, name, getattr(total, name) + getattr(kernel, name))
        if kernel.lost is not None:
            before = total.lost or Lost()
            total.lost = Lost(
                before.waiting + kernel.lost.waiting,
                before.layout + kernel.lost.layout,
                before.serial + kernel.lost.serial,
            )
    return list(sums.values())


def _between(ours: Profile) -> list[Kernel]:
    """What each stage takes beyond its kernels; all of the range coder, which has no floor.

    Watching takes time between kernels too, alike for each, which is left out.
    """
    watching = max(0.0, ours.total - ours.unwatched) / max(1, len(ours.kernels))
    rows = []
    for stage, seconds in ours.stages.items():
        inside = [kernel for kernel in ours.kernels if kernel.stage == stage]
        rest = seconds - sum(kernel.seconds for kernel in inside) - watching * len(inside)
        name = f"{stage}, {BETWEEN}" if inside else stage
        calls = len(inside)
        if stage == CODER:
            calls = sum(s.kind == STAGE and s.name == CODER for s in ours.spans)
        rows.append(Kernel("", name, "", stage, "", max(0.0, rest), calls))
    return rows


def _row(kernel: Kernel, total: float, peaks: Peaks) -> Row:
    free = kernel.stage in (ANALYSIS, SYNTHESIS)
    seconds = max(kernel.seconds, 1e-9)
    arithmetic = kernel.products / seconds / (peaks.matrix if free else peaks.integer)
    lost = kernel.lost
    return {
        "ms": 1e3 * kernel.seconds,
        "share": kernel.seconds / total,
        "calls": kernel.calls,
        "bytes": kernel.bytes,
        "products": kernel.products,
        "gigabytes_per_second": kernel.bytes / seconds / 1e9,
        "bandwidth_share": kernel.bytes / seconds / peaks.bandwidth,
        "giga_products_per_second": kernel.products / seconds / 1e9,
        "arithmetic_share": arithmetic,
        "floor_ms": 1e3 * kernel.floor,
        "above_floor_ms": 1e3 * (kernel.seconds - kernel.floor),
        **({} if lost is None else {f"{name}_ms": 1e3 * t for name, t in vars(lost).items()}),
    }


def _beside(ours: float, theirs: float | None) -> Row:
    if not theirs:
        return {}
    return {"baseline_ms": 1e3 * theirs, "ratio": theirs / max(ours, 1e-9)}
