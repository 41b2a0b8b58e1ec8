"""The time of every stage, by wrapping what an engine calls while it is watched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

from mlic_fast.codec import Codec
from mlic_fast.engine import exact_engine
from mlic_fast.engine.exact_engine import ExactEngine
from mlic_fast.engine.reference_engine import ReferenceEngine
from mlic_fast.models import reference
from mlic_fast.profiling.engine_parts import is_gpu, parts_of
from mlic_fast.profiling.spans import TOTAL, Span, Tracer, own_seconds

STAGE = "stage"
ANALYSIS = "g_a + h_a"
ENTROPY_PATH = "entropy path"
CODER = "range coder"
SYNTHESIS = "g_s"
OTHER = "other"
#: In the order of tables.
STAGES = (ANALYSIS, ENTROPY_PATH, CODER, SYNTHESIS, OTHER)

Seconds = dict[str, float]


def seconds_by_stage(spans: list[Span]) -> Seconds:
    """In all (``total``) and by stage; what a stage calls of another counts there alone."""
    stages: defaultdict[str, float] = defaultdict(float)
    for span, own in own_seconds(spans).items():
        stage = span.within(STAGE)
        if stage is not None:
            stages[stage.name] += own
    known = {name: stages[name] for name in STAGES if name in stages}
    whole = spans[0].seconds
    return {TOTAL: whole, **known, OTHER: whole - sum(known.values())}


class _TimedCoder:
    """A range coder whose methods count as its stage."""

    def __init__(self, tracer: Tracer, coder: Any) -> None:
        self._tracer, self._coder = tracer, coder

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._coder, name)
        return self._tracer.wrap(STAGE, CODER, value) if callable(value) else value


@contextmanager
def watched(
    codec: Codec, *, processor: bool = False, counters: Callable[[], tuple[float, ...]] = tuple
) -> Iterator[Tracer]:
    """A tracer that knows the stages of the codec's engine while entered.

    The CPU engine replays no recordings then. The GPU engine runs without its CUDA graphs, one
    thing after the other. Both take longer so.
    """
    tracer, engine = Tracer(codec.device, processor=processor, counters=counters), codec._engine
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(replaced(owner, name, value))

        def stage(owner: Any, name: str, stage: str) -> None:
            replace(owner, name, tracer.wrap(STAGE, stage, getattr(owner, name)))

        def timed_coder(make: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args: _TimedCoder(tracer, make(*args))

        if isinstance(engine, ExactEngine):
            replace(engine, "_recordings", None)  # they would not call what is watched
            for name in ("analysis", "at_rate"):
                stage(engine._transforms, name, ANALYSIS)
            stage(engine._transforms, "synthesis", SYNTHESIS)
            stage(exact_engine, "code_latents", ENTROPY_PATH)
            for name in ("Encoder", "Decoder"):
                replace(exact_engine, name, timed_coder(getattr(exact_engine, name)))
        elif is_gpu(engine):
            from mlic_fast.coder.gpu_coder import DeviceDecoder, DeviceEncoder
            from mlic_fast.engine.gpu import gpu_engine, graphs

            parts = parts_of(engine)
            assert parts is not None
            stage(parts.transforms, "analyse", ANALYSIS)
            stage(parts.transforms, "synthesise", SYNTHESIS)
            stage(gpu_engine, "code_latents", ENTROPY_PATH)
            for coder in (DeviceEncoder, DeviceDecoder):
                for name, method in list(vars(coder).items()):
                    if callable(method) and not name.startswith("_"):
                        stage(coder, name, CODER)
            # In a graph, and on streams beside each other, stages could not be told apart.
            replace(graphs.Recording, "__call__", lambda recording, capture=True: recording._work())
            replace(parts.ops, "aside", lambda name: nullcontext())
            replace(parts.ops, "join", lambda name: None)
        elif isinstance(engine, ReferenceEngine):
            model = engine._model
            stage(model, "analyse", ANALYSIS)
            stage(model.h_a, "forward", ANALYSIS)
            stage(model, "synthesise", SYNTHESIS)
            stage(model.h_s, "forward", ENTROPY_PATH)
            stage(model, "code_latents", ENTROPY_PATH)
            coders = reference.compressai_ans()
            names = ("RansEncoder", "RansDecoder", "BufferedRansEncoder")
            timed = SimpleNamespace(**{name: timed_coder(getattr(coders, name)) for name in names})
            replace(reference, "compressai_ans", lambda: timed)
        yield tracer


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of another value while entered."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
