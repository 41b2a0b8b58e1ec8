"""Doing many files: reading, coding and writing overlap; progress, summaries, JSON and failures."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from mlic_fast.cli import UsageError, explain, print_error, print_note, printable
from mlic_fast.cli.files import STREAM, Job
from mlic_fast.engine.surroundings import thread_count

if TYPE_CHECKING:
    from mlic_fast.codec import Codec

Result = dict[str, Any]


@dataclass(frozen=True)
class Steps:
    """What is done with a file: ``read`` and ``write`` in other threads, ``code`` in this one, or
    in several.

    ``write`` gives what ``--json`` prints of the file.

    Attributes:
        coders: files coded at a time. If more than one, each in a thread that calls ``begin``
            first.
        workers: threads that read, and threads that write. One more file is read ahead of those
            that are coded, and as many are being written behind them: that bounds memory.
    """

    read: Callable[[Job], Any]
    code: Callable[[Any], Any]
    write: Callable[[Job, Any], Result]
    coders: int = 1
    workers: int = 2
    begin: Callable[[], None] = lambda: None


def in_flight(codec: Codec) -> dict[str, Any]:
    """The last three attributes of Steps that use a codec.

    Two images are in flight. On a CPU of several cores one image has work for all of them while the
    other is where one thread works alone. On a GPU each is on a stream of its thread: host and
    copies of one work beside the kernels of the other. Images are then coded faster than two
    threads read files.
    """
    if codec.engine != "gpu":
        return {"coders": min(2, thread_count())}

    def begin() -> None:
        import torch

        torch.cuda.set_stream(torch.cuda.Stream(codec.device))

    return {"coders": 2, "workers": min(8, max(2, (os.cpu_count() or 1) - 2)), "begin": begin}


def run_batch(
    jobs: list[Job],
    prepare: Callable[[], Steps],
    describe: Callable[[Result], str],
    *,
    as_json: bool,
    quiet: bool = False,
) -> int:
    """Do every job that can be done, go on after a failure, and return the exit code.

    ``prepare`` makes the steps of a job; it is called only if there is work, and its errors end the
    command. ``describe`` gives the line or lines about a result for people, which are left out if
    ``quiet``. Results come in the order of the jobs.
    """
    if as_json and any(str(job.target) == STREAM for job in jobs):
        raise UsageError("--json and the output - would both go to stdout; name a file")
    steps = prepare() if any(_is_work(job) for job in jobs) else None
    failures = 0
    start = time.perf_counter()
    with _progress(len(jobs), quiet) as bar:
        for job, outcome in _outcomes(jobs, steps):
            result = {"input": str(job.source), **outcome}
            with bar.external_write_mode(file=sys.stderr) if bar is not None else nullcontext():
                if "error" in result:
                    failures += 1
                    print_error(result["error"])
                for note in () if quiet else result.get("notes", ()):
                    print_note(note)
                if as_json:
                    print(json.dumps(result), flush=True)
                elif not (
                    quiet or {"error", "left"} & set(result) or result.get("output") == STREAM
                ):
                    print("\n".join(map(printable, describe(result).splitlines())), flush=True)
            if bar is not None:
                bar.update()
    seconds = time.perf_counter() - start
    left = sum(job.left for job in jobs)
    done = len(jobs) - failures - left
    if done > 1 and not (quiet or as_json):
        print(f"{done} files in {seconds:.2f} s, {done / seconds:.1f} a second")
    if left and not (quiet or as_json):
        print(f"{left} of {len(jobs)} files were left, as their results exist")
    if failures and len(jobs) > 1:
        print_error(f"{failures} of {len(jobs)} files failed")
    return 1 if failures else 0


def _progress(files: int, quiet: bool) -> AbstractContextManager[Any]:
    """A bar with rate and time left; None for a single file."""
    if quiet or files == 1:
        return nullcontext()
    from tqdm import tqdm

    # disable=None: no bar where stderr is not a terminal.
    bar: AbstractContextManager[Any] = tqdm(total=files, unit="file", leave=False, disable=None)
    return bar


def _outcomes(jobs: list[Job], steps: Steps | None) -> Iterator[tuple[Job, Result]]:
    """Every job with its result, or with ``{"error": message}`` or ``{"left": True}``."""
    if steps is None:
        yield from ((job, _known_outcome(job)) for job in jobs)
        return
    ahead = steps.workers + 1
    with (
        ThreadPoolExecutor(steps.workers) as readers,
        ThreadPoolExecutor(steps.coders, initializer=steps.begin) as coders,
        ThreadPoolExecutor(steps.workers) as writers,
    ):

        def begin(job: Job) -> tuple[Job, Future[Any] | None]:
            return job, readers.submit(steps.read, job) if _is_work(job) else None

        def code(job: Job, read: Future[Any] | None) -> Callable[[], Result]:
            """Codes a file and begins to write it; what comes back waits for that, or raises."""
            if read is None:
                return lambda: _known_outcome(job)
            if steps.coders > 1:
                coded = coders.submit(lambda: steps.code(read.result()))
                return writers.submit(lambda: steps.write(job, coded.result())).result
            try:
                done = steps.code(read.result())
            except Exception as error:
                return _raiser(error)
            return writers.submit(steps.write, job, done).result

        waiting = iter(jobs)
        reading = deque(map(begin, islice(waiting, ahead)))
        writing: deque[tuple[Job, Callable[[], Result]]] = deque()
        while reading:
            job, read = reading.popleft()
            reading.extend(map(begin, islice(waiting, 1)))
            writing.append((job, code(job, read)))
            while len(writing) > ahead or (writing and not reading):
                job, result = writing.popleft()
                yield job, _attempt(job, result)


def _is_work(job: Job) -> bool:
    return job.problem is None and not job.left


def _known_outcome(job: Job) -> Result:
    """Of a job that is no work."""
    if job.left:
        return {"output": str(job.target), "left": True}
    return {"error": job.problem}


def _raiser(error: Exception) -> Callable[[], Result]:
    def raise_it() -> Result:
        raise error

    return raise_it


def _attempt(job: Job, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
    return {"error": message if str(job.source) in message else f"{job.source}: {message}"}
