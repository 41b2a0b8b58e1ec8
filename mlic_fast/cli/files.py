"""Which files a command reads, and which it writes."""

from __future__ import annotations

import glob
import os
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from mlic_fast.cli import UsageError

#: Stands for standard input, or output.
STREAM = "-"

INPUTS_TEXT = """\
A folder stands for the {what} directly in it, without hidden files and without subfolders. A
pattern such as 'photos/**/*{example}' may be quoted, ** goes into subfolders. - is standard input
or output."""


@dataclass(frozen=True)
class Job:
    """One file to read, and the one to write (None for a command that writes nothing).

    ``problem`` says why the job cannot be done, found before any work begins. ``root`` is the
    folder in which the file was found, if its subfolders were searched. ``skipped`` says that the
    target exists already and stays as it is.
    """

    source: Path
    target: Path | None = None
    problem: str | None = None
    root: Path | None = None
    left: bool = False


def find_inputs(
    arguments: Iterable[str], suffixes: Collection[str], *, recursive: bool = False
) -> list[Job]:
    """Files, folders (their files with one of the suffixes) and patterns -> jobs, each file once.

    What is missing becomes a job with a problem, so that the other files are done all the same. A
    link is a file of its own beside what it points to.
    """
    jobs: dict[str, Job] = {}
    for job in _expand_all(arguments, suffixes, recursive):
        folder = os.path.realpath(job.source.parent)
        jobs.setdefault(os.path.join(folder, job.source.name), job)
    return list(jobs.values())


def find_jobs(
    arguments: list[str],
    *,
    suffixes: Collection[str],
    output: str | None,
    output_dir: str | None,
    target_suffix: str,
    overwrite: bool,
    recursive: bool = False,
    skip_existing: bool = False,
) -> list[Job]:
    """Like `find_inputs`, with a target each: ``output``, or the source's name with another suffix.

    Sources that differ in their suffix alone keep it in the names of their targets. What would be
    written to the target of another all the same becomes a job with a problem.
    """
    _check_order(arguments, output, output_dir)
    inputs = find_inputs(arguments, suffixes, recursive=recursive)
    if output is None and output_dir is None and arguments == [STREAM]:
        output = STREAM
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
        targets = _targets(inputs, output_dir, target_suffix)
    jobs = []
    for job, target, collision in zip(inputs, targets, _collisions(inputs, targets), strict=True):
        problem = (
            job.problem
            or collision
            or _other_command(job.source, suffixes, target_suffix)
            or _target_problem(job.source, target, overwrite or skip_existing)
        )
        left = problem is None and skip_existing and os.path.isfile(target)
        jobs.append(Job(job.source, target, problem, left=left))
    return jobs


def _check_order(arguments: list[str], output: str | None, output_dir: str | None) -> None:
    """Raise `UsageError` for a last argument that other codecs would take for the output."""
    if output == "" or output_dir == "":
        raise UsageError("the output has an empty name")
    last = arguments[-1]
    given = output is not None or output_dir is not None
    if not given and os.path.isdir(last) and not all(map(os.path.isdir, arguments)):
        raise UsageError(
            f"{last} is a folder: write into it with --output-dir {last}; or, for the files in it, "
            "call again with folders alone"
        )


def _targets(inputs: list[Job], output_dir: str | None, suffix: str) -> list[Path]:
    def target(job: Job, name: str) -> Path:
        if str(job.source) == STREAM:
            name = "stdin"
        if output_dir is None:
            folder = job.source.parent
        elif job.root is None:
            folder = Path(output_dir)
        else:
            folder = Path(output_dir) / job.source.parent.relative_to(job.root)
        return folder / (name + suffix)

    plain = [target(job, job.source.stem) for job in inputs]
    folders: defaultdict[Path, set[Path]] = defaultdict(set)
    names: defaultdict[Path, set[str]] = defaultdict(set)
    for job, path in zip(inputs, plain, strict=True):
        folders[path].add(job.source.parent)
        names[path].add(job.source.name)
    return [
        target(job, job.source.name) if len(folders[path]) < len(names[path]) else path
        for job, path in zip(inputs, plain, strict=True)
    ]


def _collisions(inputs: list[Job], targets: list[Path]) -> list[str | None]:
    """Why a source cannot have its target: another one before it has it."""
    first: dict[str, Path] = {}
    problems: list[str | None] = []
    for job, target in zip(inputs, targets, strict=True):
        other = None if job.problem else first.setdefault(os.path.realpath(target), job.source)
        taken = other is not None and other is not job.source
        problems.append(
            f"{job.source} would be written to {target}, as {other} is; do it alone"
            if taken
            else None
        )
    return problems


def check_folder_of(output: str) -> None:
    """Raise `UsageError` if the folder of a file to be written is missing: before long work."""
    folder = Path(output).parent
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist; make it first")


def is_pattern(argument: str) -> bool:
    """Whether the argument is a glob pattern rather than the name of something that exists."""
    return glob.has_magic(argument) and not os.path.lexists(argument)


def _expand_all(
    arguments: Iterable[str], suffixes: Collection[str], recursive: bool
) -> Iterator[Job]:
    for argument in arguments:
        if is_pattern(argument):
            matches = sorted(glob.glob(argument, recursive=True))
            if not matches:
                yield Job(Path(argument), problem=f"nothing matches {argument}")
            for match in matches:
                # Of the folders that ** matches, the files match as well.
                if "**" not in argument or not os.path.isdir(match):
                    yield from _expand(Path(match), suffixes, recursive)
        elif argument == STREAM:
            yield Job(Path(STREAM))
        elif argument:
            yield from _expand(Path(argument), suffixes, recursive)
        else:
            yield Job(Path(), problem="an argument is empty: it names no file")


def _expand(path: Path, suffixes: Collection[str], recursive: bool) -> Iterator[Job]:
    try:
        if recursive and path.is_dir():
            yield from _expand_tree(path, suffixes)
        else:
            yield from _expand_known(path, suffixes)
    except OSError as error:  # a name too long, a folder without permission
        yield Job(path, problem=f"{path}: {error.strerror}")


def _expand_tree(root: Path, suffixes: Collection[str]) -> Iterator[Job]:
    """All files of a folder and of its subfolders, but for hidden ones and links to folders."""
    unreadable: list[OSError] = []
    found = False
    for folder, subfolders, names in os.walk(root, onerror=unreadable.append):
        subfolders[:] = sorted(name for name in subfolders if name[0] != ".")
        for name in sorted(names):
            file = Path(folder, name)
            if file.suffix.lower() in suffixes and name[0] != ".":
                found = True
                for job in _expand_known(file, suffixes):
                    yield replace(job, root=root)
    for error in unreadable:
        yield Job(root, problem=f"cannot read the folder {error.filename}: {error.strerror}")
    if not found and not unreadable:
        kinds = " ".join(sorted(suffixes))
        yield Job(root, problem=f"the folder {root} contains no file with a suffix of {kinds}")


def _expand_known(path: Path, suffixes: Collection[str]) -> Iterator[Job]:
    if path.is_dir():
        try:
            files = sorted(
                file
                for file in path.iterdir()
                if file.suffix.lower() in suffixes
                and file.name[0] != "."
                and (file.is_file() or file.is_symlink())
            )
        except OSError as error:
            yield Job(path, problem=f"cannot read the folder {path}: {error.strerror}")
            return
        if not files:
            kinds = " ".join(sorted(suffixes))
            yield Job(path, problem=f"the folder {path} contains no file with a suffix of {kinds}")
        for file in files:
            if file.is_file():
                yield Job(file)
            elif not file.exists():  # a link that leads nowhere
                yield from _expand_known(file, suffixes)
    elif path.exists():
        yield Job(path)
    elif path.is_symlink():
        yield Job(path, problem=f"{path} is a link to {os.readlink(path)}, which does not exist")
    else:
        yield Job(path, problem=f"{path} does not exist")


def _other_command(source: Path, suffixes: Collection[str], target_suffix: str) -> str | None:
    """What to do with a file that is a result already."""
    suffix = source.suffix.lower()
    if suffix in suffixes or suffix != target_suffix:
        return None
    other = "decode" if target_suffix == ".mlic" else "encode"
    return f"{source} is a {suffix} file already; use mlic-fast {other} {source}"


def _target_problem(source: Path, target: Path, overwrite: bool) -> str | None:
    try:
        return _known_target_problem(source, target, overwrite)
    except OSError as error:
        return f"{target}: {error.strerror}"


def _known_target_problem(source: Path, target: Path, overwrite: bool) -> str | None:
    if str(target) == STREAM:
        return None
    if os.path.realpath(source) == os.path.realpath(target):
        return f"{target} would overwrite its own input; choose another name"
    if target.exists() and not target.is_file():
        return f"{target} exists and is not a file; choose another name"
    if target.exists() and not overwrite:
        return f"{target} exists already; use --force to overwrite it"
    return None


def check_outputs(outputs: Iterable[str | None], inputs: Iterable[str], overwrite: bool) -> None:
    """Raise `UsageError` unless files that a command writes beside its work can be written."""
    sources = {os.path.realpath(source) for source in inputs}
    for output in outputs:
        if output is None:
            continue
        if not output:
            raise UsageError("the output has an empty name")
        check_folder_of(output)
        if os.path.realpath(output) in sources:
            raise UsageError(f"{output} is an input; choose another name")
        if os.path.exists(output) and not overwrite:
            raise UsageError(f"{output} exists already; use --force to overwrite it")


def open_input(source: Path) -> Path | BinaryIO:
    """A path, or standard input."""
    if str(source) != STREAM:
        return source
    if sys.stdin is None:
        raise UsageError("standard input is closed; name a file instead of -")
    return sys.stdin.buffer


def read_input(source: Path) -> bytes:
    """All bytes of a file, or of standard input."""
    opened = open_input(source)
    return opened.read_bytes() if isinstance(opened, Path) else opened.read()


def write_output(target: Path, data: bytes) -> None:
    """To a file, made atomically, or to standard output."""
    if str(target) == STREAM:
        if sys.__stdout__ is None:
            raise UsageError("standard output is closed; name a file instead of -")
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    from mlic_fast.atomic_files import write_atomically

    write_atomically(target, data)
