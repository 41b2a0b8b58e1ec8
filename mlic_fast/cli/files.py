"""Which files a command reads, and which it writes."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlic_fast.cli import UsageError

INPUTS_TEXT = """\
A folder stands for the {what} directly in it, without hidden files and without subfolders. A
pattern such as 'photos/**/*{example}' may be quoted, ** goes into subfolders."""


@dataclass(frozen=True)
class Job:
    """One file to read, and the one to write (None for a command that writes nothing).

    ``problem`` says why the job cannot be done, found before any work begins.
    """

    source: Path
    target: Path | None = None
    problem: str | None = None


def find_inputs(arguments: Iterable[str], suffixes: Collection[str]) -> list[Job]:
    """Files, folders (their files with one of the suffixes) and patterns -> jobs, each file once.

    What is missing becomes a job with a problem, so that the other files are done all the same.
    """
    jobs = {os.path.realpath(job.source): job for job in _expand_all(arguments, suffixes)}
    return list(jobs.values())


def find_jobs(
    arguments: list[str],
    *,
    suffixes: Collection[str],
    output: str | None,
    output_dir: str | None,
    target_suffix: str,
    overwrite: bool,
) -> list[Job]:
    """Like `find_inputs`, with a target each: ``output``, or the source's name with another suffix.

    Raises `UsageError` if two sources would be written to one target.
    """
    inputs = find_inputs(arguments, suffixes)
    if output is not None:
        check_folder_of(output)
        if output_dir is not None:
            raise UsageError("give either an output file or --output-dir, not both")
        if len(inputs) > 1:
            raise UsageError(
                f"{output} cannot take the results of {len(inputs)} inputs; use --output-dir"
            )
        targets = [Path(output)] * len(inputs)
    else:
        targets = [
            (job.source.parent if output_dir is None else Path(output_dir))
            / (job.source.stem + target_suffix)
            for job in inputs
        ]
    _check_targets_differ(inputs, targets)
    return [
        Job(job.source, target, job.problem or _target_problem(job.source, target, overwrite))
        for job, target in zip(inputs, targets, strict=True)
    ]


def check_folder_of(output: str) -> None:
    """Raise `UsageError` if the folder of a file to be written is missing: before long work."""
    folder = Path(output).parent
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist; make it first")


def is_pattern(argument: str) -> bool:
    """Whether the argument is a glob pattern rather than the name of something that exists."""
    return glob.has_magic(argument) and not os.path.lexists(argument)


def _expand_all(arguments: Iterable[str], suffixes: Collection[str]) -> Iterator[Job]:
    for argument in arguments:
        if is_pattern(argument):
            matches = sorted(glob.glob(argument, recursive=True))
            if not matches:
                yield Job(Path(argument), problem=f"nothing matches {argument}")
            for match in matches:
                # Of the folders that ** matches, the files match as well.
                if "**" not in argument or not os.path.isdir(match):
                    yield from _expand(Path(match), suffixes)
        else:
            yield from _expand(Path(argument), suffixes)


def _expand(path: Path, suffixes: Collection[str]) -> Iterator[Job]:
    if path.is_dir():
        try:
            files = sorted(
                file
                for file in path.iterdir()
                if file.suffix.lower() in suffixes and file.name[0] != "." and file.is_file()
            )
        except OSError as error:
            yield Job(path, problem=f"cannot read the folder {path}: {error.strerror}")
            return
        if not files:
            kinds = " ".join(sorted(suffixes))
            yield Job(path, problem=f"the folder {path} contains no file with a suffix of {kinds}")
        yield from map(Job, files)
    elif path.exists():
        yield Job(path)
    else:
        yield Job(path, problem=f"{path} does not exist")


def _check_targets_differ(inputs: list[Job], targets: list[Path]) -> None:
    sources = defaultdict(list)
    for job, target in zip(inputs, targets, strict=True):
        if job.problem is None:
            sources[os.path.realpath(target)].append(job.source)
    for name, several in sources.items():
        if len(several) > 1:
            raise UsageError(
                f"{several[0]} and {several[1]} would both be written to {name}; do them one by one"
            )


def _target_problem(source: Path, target: Path, overwrite: bool) -> str | None:
    if os.path.realpath(source) == os.path.realpath(target):
        return f"{target} would overwrite its own input; choose another name"
    if target.exists() and not target.is_file():
        return f"{target} exists and is not a file; choose another name"
    if target.exists() and not overwrite:
        return f"{target} exists already; use --force to overwrite it"
    return None
