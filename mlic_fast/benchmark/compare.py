"""Engines side by side: correctness first, then time, taking turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from mlic_fast.benchmark.machine import integer_peak, matrix_peak
from mlic_fast.benchmark.operations import count_entropy_path, count_transforms
from mlic_fast.benchmark.stages import ANALYSIS, ENTROPY_PATH, SYNTHESIS, Seconds, watched
from mlic_fast.codec import Codec
from mlic_fast.engine.cpu import CpuOps
from mlic_fast.engine.exact import ExactEngine
from mlic_fast.errors import MlicError
from mlic_fast.models.mlic import ALIGNMENT

Result = dict[str, Any]


class WrongResultError(MlicError):
    """An engine does not do what is to be timed."""


def compare(codecs: Sequence[Codec], image: torch.Tensor, runs: int) -> Result:
    """Times encoding and decoding of an image, uint8 [3, H, W], with one codec or two.

    The result has for each engine its bytes, bits a pixel, and the times in milliseconds of
    encoding and decoding: median, p10 and p90 of the runs, and the median of each stage; of an
    exact engine also the floor (operations over the machine's measured peak) and how many times the
    floor it takes. With two, ``ratio`` is the second one's median time over the first one's.

    Raises WrongResultError if a stream does not decode to what was encoded.
    """
    _, height, width = image.shape
    streams = [_checked_stream(codec, image) for codec in codecs]
    _check_exact_engines_agree(codecs, streams)
    times: dict[tuple[str, str], list[Seconds]] = {}
    with ExitStack() as stack:
        watches = [stack.enter_context(watched(codec)) for codec in codecs]
        for _ in range(runs):
            for codec, watch, stream in zip(codecs, watches, streams, strict=True):
                for way, work in _work(codec, image, stream):
                    times.setdefault((codec.engine, way), []).append(watch.time(work))
    engines: Result = {}
    for codec, stream in zip(codecs, streams, strict=True):
        engine: Result = {
            "bytes": len(stream),
            "bits_per_pixel": 8 * len(stream) / (width * height),
        }
        floors = _floors(codec, width, height)
        for way in ("encode", "decode"):
            engine[way] = _summary(times[codec.engine, way], floors)
        engines[codec.engine] = engine
    result: Result = {"width": width, "height": height, "runs": runs, "engines": engines}
    if len(codecs) == 2:
        first, second = (engines[codec.engine] for codec in codecs)
        result["ratio"] = {
            way: second[way]["median_ms"] / first[way]["median_ms"] for way in ("encode", "decode")
        }
    return result


def _work(
    codec: Codec, image: torch.Tensor, stream: bytes
) -> list[tuple[str, Callable[[], object]]]:
    return [
        ("encode", lambda: codec.compress(image)),
        ("decode", lambda: codec.decompress(stream)),
    ]


def _checked_stream(codec: Codec, image: torch.Tensor) -> bytes:
    """A stream of the image; decoding it compares the digests of encoded and decoded latents."""
    stream = codec.compress(image)
    assert isinstance(stream, bytes)
    try:
        decoded = codec.decompress(stream)
    except MlicError as error:
        raise WrongResultError(f"{codec.engine} does not decode its own stream: {error}") from error
    if decoded.shape != image.shape:
        raise WrongResultError(f"{codec.engine} decodes {list(image.shape)} to another shape")
    return stream


def _check_exact_engines_agree(codecs: Sequence[Codec], streams: Sequence[bytes]) -> None:
    exact = [codec for codec in codecs if isinstance(codec._engine, ExactEngine)]
    if len(exact) < 2:
        return
    for stream, maker in zip(streams, codecs, strict=True):
        if maker not in exact:
            continue
        latents = [codec.decode_latents(stream).cpu().view(torch.int32) for codec in exact]
        if not all(torch.equal(each, latents[0]) for each in latents):
            raise WrongResultError("the engines decode a stream to different latents")


def _floors(codec: Codec, width: int, height: int) -> Seconds:
    """Seconds of every stage at the machine's peak; none for engines other than the exact ones."""
    engine = codec._engine
    if not isinstance(engine, ExactEngine) or codec.device.type != "cpu":
        return {}
    padded = [-(-side // ALIGNMENT) * ALIGNMENT for side in (width, height)]
    peak = matrix_peak(engine._transforms._dtype)
    transforms = count_transforms(codec.model, *padded)
    floors = {name: count / peak for name, count in transforms.items()}
    if isinstance(engine._ops, CpuOps):
        peak = integer_peak(engine._ops.isa, engine._ops.threads)
        floors[ENTROPY_PATH] = count_entropy_path(codec.packed, *padded) / peak
    return floors


def _summary(times: list[Seconds], floors: Seconds) -> Result:
    totals = [seconds["total"] for seconds in times]
    stages = {}
    for name in times[0]:
        if name != "total":
            median = statistics.median(seconds[name] for seconds in times)
            stages[name] = {"median_ms": 1e3 * median}
            if name in floors:
                stages[name]["floor_ms"] = 1e3 * floors[name]
                stages[name]["times_floor"] = median / floors[name]
    summary: Result = {
        "median_ms": 1e3 * statistics.median(totals),
        "p10_ms": 1e3 * _quantile(totals, 0.1),
        "p90_ms": 1e3 * _quantile(totals, 0.9),
        "stages": stages,
    }
    if {ENTROPY_PATH} < set(floors):
        transform = ANALYSIS if ANALYSIS in stages else SYNTHESIS
        floor = floors[ENTROPY_PATH] + floors[transform]
        summary["floor_ms"] = 1e3 * floor
        summary["times_floor"] = summary["median_ms"] / summary["floor_ms"]
    return summary


def _quantile(values: list[float], q: float) -> float:
    """Linear between the values."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(q))
