"""Engines side by side: correctness first, then time, taking turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from mlic_fast.codec import Codec
from mlic_fast.engine.arithmetic import SpecOps
from mlic_fast.engine.exact_engine import ExactEngine, cpu_transforms
from mlic_fast.errors import MlicError
from mlic_fast.profiling.engine_parts import parts_of
from mlic_fast.profiling.floors import stage_floors
from mlic_fast.profiling.memory import peak_memory
from mlic_fast.profiling.pictures import synthetic_photograph
from mlic_fast.profiling.spans import TOTAL, Tracer, processor_time
from mlic_fast.profiling.stages import (
    ANALYSIS,
    ENTROPY_PATH,
    SYNTHESIS,
    Seconds,
    seconds_by_stage,
    watched,
)

Result = dict[str, Any]
Work = Callable[[], object]
WAYS = ("encode", "decode")
WALL, PROCESSOR = "wall", "processor"


class WrongResultError(MlicError):
    """An engine does not do what is to be timed."""


def check_arithmetic(codecs: Sequence[Codec]) -> None:
    """A small picture's stream must decode to the same latents as the specification's, bit for bit.

    Engines that are not exact have no such rule. Raises WrongResultError.
    """
    picture = synthetic_photograph(192, 128)
    for codec in _exact(codecs):
        stream = codec.compress(picture)
        assert isinstance(stream, bytes)
        transforms = cpu_transforms(codec.model, SpecOps)
        judge = ExactEngine(transforms, codec.packed, SpecOps(codec.packed), "spec")
        judged = Codec(codec.model, codec.packed, torch.device("cpu"), judge)
        _check_same_latents([codec, judged], stream)


def compare(codecs: Sequence[Codec], images: torch.Tensor, runs: int) -> Result:
    """Times encoding and decoding of a batch, uint8 [B, 3, H, W], with one codec or two.

    The result has for each engine its bits a pixel, and of encoding and decoding:

    - milliseconds a batch: median, p10 and p90 of the runs, by the ``clock`` of the result: on the
      processor with one thread of the CPU, else on the wall; ``wall_ms`` and ``processor_ms`` (of
      all threads) are the medians of both;
    - images and megapixels a second, and peak memory in bytes;
    - the median of each stage; of an exact engine also the floor (operations over the machine's
      measured peak) and how many times the floor it takes.

    With two, ``ratio`` is how many times as long the second one takes: median, p10 and p90 over the
    runs, each compared with its neighbour.

    Raises WrongResultError if a stream does not decode to what was encoded.
    """
    batch, _, height, width = images.shape
    streams = [_checked_streams(codec, images) for codec in codecs]
    _check_exact_engines_agree(codecs, streams)
    works = [_works(codec, images, made) for codec, made in zip(codecs, streams, strict=True)]
    memory = [
        {way: peak_memory(work, codec.device) for way, work in ways.items()}
        for codec, ways in zip(codecs, works, strict=True)
    ]
    times = _time_in_turns(codecs, works, runs)
    engines: Result = {}
    for i, (codec, made) in enumerate(zip(codecs, streams, strict=True)):
        bytes_ = sum(map(len, made))
        engine: Result = {
            "device": str(codec.device),
            "bytes": bytes_,
            "bits_per_pixel": 8 * bytes_ / (batch * width * height),
        }
        floors = {name: batch * floor for name, floor in stage_floors(codec, width, height).items()}
        for way in WAYS:
            summary = _summary(times[i, way], floors)
            seconds = summary["median_ms"] / 1e3
            engine[way] = {
                **summary,
                "images_per_second": batch / seconds,
                "megapixels_per_second": batch * width * height / 1e6 / seconds,
                "peak_memory_bytes": memory[i][way],
            }
        engines[codec.engine] = engine
    result: Result = {
        "width": width,
        "height": height,
        "batch": batch,
        "runs": runs,
        "clock": "processor" if _on_processor(codecs) else "wall",
        "engines": engines,
    }
    if len(codecs) == 2:
        result["ratio"] = {way: _ratio(times[0, way], times[1, way]) for way in WAYS}
    return result


def _works(codec: Codec, images: torch.Tensor, streams: list[bytes]) -> dict[str, Work]:
    return {
        "encode": lambda: codec.compress(images),
        "decode": lambda: codec.decompress(streams),
    }


def _time_in_turns(
    codecs: Sequence[Codec], works: Sequence[dict[str, Work]], runs: int
) -> dict[tuple[int, str], list[Seconds]]:
    """The whole of each run, and its stages.

    On a CUDA device the stages are of further runs: watching them keeps the graphs out.
    """
    whole: dict[tuple[int, str], list[Seconds]] = {}
    stages: dict[tuple[int, str], list[Seconds]] = {}
    with ExitStack() as stack:
        processor = _on_processor(codecs)
        tracers = [_tracer(stack, codec, processor) for codec in codecs]
        for _ in range(runs):
            for way in WAYS:
                for i, tracer in enumerate(tracers):
                    spans = tracer.record(works[i][way])
                    other = {WALL: spans[0].wall_seconds, PROCESSOR: spans[0].processor_seconds}
                    whole.setdefault((i, way), []).append(seconds_by_stage(spans) | other)
    for i, codec in enumerate(codecs):
        if codec.device.type == "cuda":
            with watched(codec) as tracer:
                for way in WAYS:
                    tracer.record(works[i][way])
                    for _ in range(runs):
                        found = seconds_by_stage(tracer.record(works[i][way]))
                        stages.setdefault((i, way), []).append(found)
    return {
        key: [
            {**inside, **{name: run[name] for name in (TOTAL, WALL, PROCESSOR)}}
            for run, inside in zip(times, stages.get(key, times), strict=True)
        ]
        for key, times in whole.items()
    }


def _tracer(stack: ExitStack, codec: Codec, processor: bool) -> Tracer:
    if codec.device.type == "cuda":
        return Tracer(codec.device)
    return stack.enter_context(watched(codec, processor=processor))


def _on_processor(codecs: Sequence[Codec]) -> bool:
    return all(processor_time(codec.device) for codec in codecs)


def _checked_streams(codec: Codec, images: torch.Tensor) -> list[bytes]:
    """A stream of each image; decoding compares the digests of encoded and decoded latents."""
    streams = codec.compress(images)
    assert isinstance(streams, list)
    try:
        decoded = codec.decompress(streams)
    except MlicError as error:
        raise WrongResultError(f"{codec.engine} does not decode its own stream: {error}") from error
    if any(image.shape != images.shape[1:] for image in decoded):
        raise WrongResultError(f"{codec.engine} decodes {list(images.shape[1:])} to another shape")
    return streams


def _check_exact_engines_agree(codecs: Sequence[Codec], streams: Sequence[list[bytes]]) -> None:
    exact = _exact(codecs)
    if len(exact) < 2:
        return
    for made, maker in zip(streams, codecs, strict=True):
        if maker in exact:
            for stream in made:
                _check_same_latents(exact, stream)


def _exact(codecs: Sequence[Codec]) -> list[Codec]:
    return [codec for codec in codecs if parts_of(codec._engine) is not None]


def _check_same_latents(codecs: Sequence[Codec], stream: bytes) -> None:
    try:
        latents = [codec.decode_latents(stream).cpu().view(torch.int32) for codec in codecs]
    except MlicError as error:
        raise WrongResultError(f"an engine does not decode another's stream: {error}") from error
    if not all(torch.equal(each, latents[0]) for each in latents):
        names = " and ".join(codec.engine for codec in codecs)
        raise WrongResultError(f"{names} decode a stream to different latents")


def _summary(times: list[Seconds], floors: Seconds) -> Result:
    stages = {}
    for name in times[0]:
        if name not in (TOTAL, WALL, PROCESSOR):
            median = statistics.median(seconds[name] for seconds in times)
            stages[name] = {"median_ms": 1e3 * median}
            if name in floors:
                stages[name]["floor_ms"] = 1e3 * floors[name]
                stages[name]["times_floor"] = median / floors[name]
    totals = spread([1e3 * seconds[TOTAL] for seconds in times])
    summary: Result = {
        **{f"{name}_ms": value for name, value in totals.items()},
        "wall_ms": 1e3 * statistics.median(seconds[WALL] for seconds in times),
        "processor_ms": 1e3 * statistics.median(seconds[PROCESSOR] for seconds in times),
        "stages": stages,
    }
    if {ENTROPY_PATH} < set(floors):
        transform = ANALYSIS if ANALYSIS in stages else SYNTHESIS
        floor = floors[ENTROPY_PATH] + floors[transform]
        summary["floor_ms"] = 1e3 * floor
        summary["times_floor"] = summary["median_ms"] / summary["floor_ms"]
    return summary


def _ratio(first: list[Seconds], second: list[Seconds]) -> dict[str, float]:
    pairs = zip(first, second, strict=True)
    return spread([theirs[TOTAL] / ours[TOTAL] for ours, theirs in pairs])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, p10 and p90, linear between the values."""
    wanted = torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
    found = torch.tensor(values, dtype=torch.float64).quantile(wanted).tolist()
    return dict(zip(("median", "p10", "p90"), found, strict=True))
