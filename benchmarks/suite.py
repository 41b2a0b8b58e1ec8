"""Runs the suites several times, prints what they take, and compares with a stored result.

    python benchmarks/suite.py [--json FILE] [--compare] [--baseline FILE] [--repeats 3] [-k NAME]

How far the medians of one benchmark lie apart from repeat to repeat is its noise. Every median is
divided by the yardstick that was timed beside it (``benchmarks/conftest.py``). With ``--compare`` a
benchmark of this project that got slower than in the newest stored result of a machine of the same
name, by more than both their noises, and does so again when it is run once more, is a regression:
they are listed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from results import newest_with

from mlic_fast.profiling.machine import describe_machine

FOLDER = Path(__file__).parent
#: In the names of benchmarks of others' code, which stand beside ours.
OTHERS = ("reference", "compressai.ans", "constriction", "twin")
#: A change below this is never a regression: between two builds code lands at other addresses.
LEAST_NOISE = 0.05

Suite = dict[str, dict[str, Any]]


def run_suites(repeats: int, selection: list[str]) -> tuple[Suite, bool]:
    """``selection``: arguments of pytest.

    Benchmark -> group, seconds and units of the yardstick of each repeat, what else is known; and
    whether any failed, which are left out."""
    suite: Suite = {}
    failed = False
    for repeat in range(repeats):
        print(f"repeat {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
        benchmarks, some_failed = _run_once(selection)
        failed |= some_failed
        for each in benchmarks:
            name = each["fullname"].split("/")[-1]
            extra = dict(each["extra_info"])
            yardstick = extra.pop("yardstick_seconds", None)
            entry = suite.setdefault(
                name, {"group": each["group"], "seconds": [], "units": [], "extra": extra}
            )
            median = each["stats"]["median"] / extra.pop("repetitions", 1)
            entry["seconds"].append(median)
            entry["units"].append(median / yardstick if yardstick else median)
    return suite, failed


def _run_once(selection: list[str]) -> tuple[list[dict[str, Any]], bool]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            str(FOLDER),
            "-q",
            "-o",
            "python_files=bench_*.py",
        ]
        command += ["-p", "no:cacheprovider", "--benchmark-json", str(file)]
        command += ["--benchmark-max-time=0.3", "--benchmark-quiet"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        if done.returncode:
            print(f"the suites failed:\n{done.stdout}", file=sys.stderr)
        if not file.exists():
            raise SystemExit(done.returncode)
        benchmarks: list[dict[str, Any]] = json.loads(file.read_text())["benchmarks"]
        return benchmarks, done.returncode != 0


def noise(entry: dict[str, Any]) -> float:
    """How far the repeats lie apart, of their median."""
    units = entry["units"]
    return (max(units) - min(units)) / statistics.median(units)


def regressions(before: Suite, after: Suite) -> dict[str, str]:
    """Benchmarks of ours that got slower by more than the noise of both, with words for it."""
    found = {}
    for name in sorted(before.keys() & after.keys()):
        if not before[name]["units"] or any(other in name for other in OTHERS):
            continue
        change = statistics.median(after[name]["units"]) / statistics.median(before[name]["units"])
        allowed = max(LEAST_NOISE, noise(before[name]) + noise(after[name]))
        if change > 1 + allowed:
            found[name] = f"{change:.2f} times as slow, noise {allowed:.0%}"
    return found


def print_table(suite: Suite) -> None:
    width = max(map(len, suite))
    for group in sorted({entry["group"] or "" for entry in suite.values()}):
        print(f"\n{group:<{width}}{'ms':>10}{'noise':>7}")
        for name, entry in suite.items():
            if (entry["group"] or "") == group:
                milliseconds = 1e3 * statistics.median(entry["seconds"])
                print(f"{name:<{width}}{milliseconds:>10.3f}{noise(entry):>7.0%}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-k", metavar="NAME", help="as pytest's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    parser.add_argument("--compare", action="store_true", help="fail on a regression")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="compare with this result")
    args = parser.parse_args()
    machine = describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    before = None
    if args.compare or args.baseline:
        file = args.baseline or newest_with("suite", machine["name"])
        if file is None:
            raise SystemExit(f"no stored suite of a machine called {machine['name']}")
        before = json.loads(file.read_text())["suite"]
    suite, failed = run_suites(args.repeats, [str(FOLDER), *(["-k", args.k] if args.k else [])])
    print_table(suite)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "suite": suite}, indent=1) + "\n")
    if before is None:
        return int(failed)
    found = regressions(before, suite)
    if found:
        again, _ = run_suites(args.repeats, [f"{FOLDER}/{name}" for name in found])
        found = regressions(before, again)
    print(f"\ncompared with {file.name}: {len(found)} regressions")
    for name, change in found.items():
        print(f"{name}: {change}")
    return int(failed or bool(found))


if __name__ == "__main__":
    sys.exit(main())
