"""Doing many files one after the other: progress, summaries, JSON and failures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from mlic_fast.cli import explain, print_error
from mlic_fast.cli.files import Job

Result = dict[str, Any]


def run_batch(
    jobs: list[Job],
    prepare: Callable[[], Callable[[Job], Result]],
    describe: Callable[[Result], str],
    *,
    as_json: bool,
) -> int:
    """Do every job that can be done, go on after a failure, and return the exit code.

    ``prepare`` makes the function that does one job; it is called only if there is work, and its
    errors end the command. A result is what ``--json`` prints of a file, ``describe`` its line or
    lines for people.
    """
    from tqdm import tqdm

    work = prepare() if any(job.problem is None for job in jobs) else None
    results = []
    failures = 0
    # disable=None: no bar where stderr is not a terminal.
    with tqdm(total=len(jobs), unit="file", leave=False, disable=None if jobs[1:] else True) as bar:
        for job in jobs:
            result = {"input": str(job.source), **_attempt(job, work)}
            results.append(result)
            with bar.external_write_mode(file=sys.stderr):
                if "error" in result:
                    failures += 1
                    print_error(result["error"])
                elif not as_json:
                    print(describe(result), flush=True)
            bar.update()
    if as_json:
        print(json.dumps({"files": results, "failed": failures}, indent=2))
    if failures and len(jobs) > 1:
        print_error(f"{failures} of {len(jobs)} files failed")
    return 1 if failures else 0


def _attempt(job: Job, work: Callable[[Job], Result] | None) -> Result:
    """The result of a job, or ``{"error": message}``."""
    if job.problem is not None or work is None:
        return {"error": job.problem}
    try:
        return work(job)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
    return {"error": message if str(job.source) in message else f"{job.source}: {message}"}
