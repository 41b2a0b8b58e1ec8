"""The time of every stage, by wrapping what an engine calls; an engine that is not watched has none
of it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

from mlic_fast.codec import Codec
from mlic_fast.engine import exact
from mlic_fast.engine.exact import ExactEngine
from mlic_fast.engine.reference import ReferenceEngine
from mlic_fast.models import reference

ANALYSIS = "g_a + h_a"
ENTROPY_PATH = "entropy path"
CODER = "range coder"
SYNTHESIS = "g_s"
OTHER = "other"
_ORDER = (ANALYSIS, ENTROPY_PATH, CODER, SYNTHESIS)

Seconds = dict[str, float]


class Stopwatch:
    """Adds up the time of functions by stage; what a stage calls of another counts there alone."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                self.seconds[stage] += elapsed - self._inner.pop()
                self._inner[-1] += elapsed

        return timed

    def time(self, work: Callable[[], object]) -> Seconds:
        """Seconds of one call in all (``total``) and by stage."""
        self.seconds.clear()
        start = time.perf_counter()
        work()
        total = time.perf_counter() - start
        stages = {name: self.seconds[name] for name in _ORDER if name in self.seconds}
        return {"total": total, **stages, OTHER: total - sum(stages.values())}


class _TimedCoder:
    """A range coder whose methods count as its stage."""

    def __init__(self, watch: Stopwatch, coder: Any) -> None:
        self._watch, self._coder = watch, coder

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._coder, name)
        return self._watch.wrap(CODER, value) if callable(value) else value


@contextmanager
def watched(codec: Codec) -> Iterator[Stopwatch]:
    """A stopwatch that knows the stages of the codec's engine while entered."""
    watch, engine = Stopwatch(), codec._engine
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(_replaced(owner, name, value))

        def stage(owner: Any, name: str, stage: str) -> None:
            replace(owner, name, watch.wrap(stage, getattr(owner, name)))

        def timed_coder(make: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args: _TimedCoder(watch, make(*args))

        if isinstance(engine, ExactEngine):
            stage(engine._transforms, "analyse", ANALYSIS)
            stage(engine._transforms, "synthesise", SYNTHESIS)
            stage(exact, "code_latents", ENTROPY_PATH)
            for name in ("Encoder", "Decoder"):
                replace(exact, name, timed_coder(getattr(exact, name)))
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
        yield watch


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
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
