"""``mlic-fast encode --ray``: pictures on many machines, in any order, into any storage.

Every picture is one line of ``--json``. What is there and valid is not made again, so a run that
was interrupted is repeated as it was called.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import posixpath
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any

from mlic_fast import bitstream
from mlic_fast.bitstream import Header
from mlic_fast.cli import UsageError, explain, print_error
from mlic_fast.errors import CorruptStreamError, MlicError
from mlic_fast.sections import Sections

SUFFIX = ".mlic"
#: Files that a worker reads ahead of the pictures that it codes.
READERS = 4
#: Pictures of a task: a lost worker costs no more, and one of equal sizes codes them together.
BATCH = 8
MAX_BLOCKS = 100_000
#: Passes of single pictures in a row without a result, before what is left counts as fatal.
FRUITLESS = 2


def run_encode(args: argparse.Namespace) -> int:
    """Encode on a cluster; 1 if a picture failed."""
    if args.output_dir is None:
        raise UsageError("--ray needs --output-dir: a folder that all machines share, or a URL")
    if args.output is not None or args.skip_existing:
        raise UsageError(
            "--ray goes without --output, and without --skip-existing, as what is there and valid "
            "is always left"
        )
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise UsageError("--ray needs Ray: pip install 'mlic_fast[ray]'")

    from tqdm import tqdm

    jobs = find_jobs(args)
    start = time.perf_counter()
    counts: Counter[str] = Counter()
    report = sys.stdout
    with (
        contextlib.redirect_stdout(sys.stderr),  # Ray prints to stdout when machines are lost
        tqdm(total=len(jobs), unit="file", leave=False, disable=args.quiet or None) as bar,
    ):
        for result in _results(args, jobs):
            counts["failed" if "error" in result else "done"] += 1
            counts["left"] += result.get("left", False)
            with bar.external_write_mode(file=sys.stderr):
                if "error" in result:
                    print_error(f"{result['input']}: {result['error']}")
                if args.json:
                    print(json.dumps(result), file=report, flush=True)
            bar.update()
    if not (args.quiet or args.json):
        seconds = time.perf_counter() - start
        print(
            f"{counts['done']} files in {seconds:.1f} s, of which {counts['left']} were there; "
            f"{counts['failed']} failed"
        )
    return 1 if counts["failed"] else 0


def find_jobs(args: argparse.Namespace) -> list[dict[str, str]]:
    """``root``, ``source`` below it, and ``target`` below the output of every picture.

    Sources of one folder that differ in their suffix alone keep it in the names of their targets.
    Raises UsageError where there are no pictures, or two would have one target.
    """
    from mlic_fast import storage
    from mlic_fast.images import IMAGE_SUFFIXES

    jobs: list[dict[str, str]] = []
    for root in args.paths:
        try:
            filesystem, path = storage.resolve(root)
            files = storage.find_files(filesystem, path, IMAGE_SUFFIXES, args.recursive)
        except (OSError, ValueError) as error:
            raise UsageError(f"{root}: {explain(error) or error}") from error
        if not files:
            raise UsageError(f"{root} holds no pictures")
        folder = posixpath.dirname(path) if files == [path] else path
        stems = Counter(posixpath.splitext(file)[0] for file in files)
        for file in files:
            stem = posixpath.splitext(file)[0]
            name = posixpath.relpath(file if stems[stem] > 1 else stem, folder)
            jobs.append({"root": root, "source": file, "target": name + SUFFIX})
    targets = Counter(job["target"] for job in jobs)
    if twice := [target for target, count in targets.items() if count > 1]:
        raise UsageError(f"{len(twice)} targets have several sources, such as {twice[0]}")
    return jobs


def _results(args: argparse.Namespace, jobs: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """A result for every job, as they come.

    A job whose worker is lost is repeated by Ray. What is lost again, because of another picture,
    of a machine that Ray does not know to be lost yet, or of itself, is done alone, as long as
    something comes of that: machines that are lost again and again cost no picture, but one that
    takes its worker with it ends after two passes that give nothing.
    """
    import ray

    if not ray.is_initialized():
        address = None if args.ray == "auto" else args.ray
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise MlicError(f"there is no Ray cluster at {args.ray}: {error}") from error
    remaining = {job["target"]: job for job in jobs}
    together, fruitless = BATCH, 0
    while remaining and fruitless < FRUITLESS:
        before = len(remaining)
        for result in _pass(args, list(remaining.values()), together):
            del remaining[result.pop("target")]
            yield result
        alone = together == 1
        fruitless = fruitless + 1 if alone and len(remaining) == before else 0
        together = 1
    for job in remaining.values():
        yield {"input": job["source"], "error": "its worker was lost again and again"}


def _pass(
    args: argparse.Namespace, jobs: list[dict[str, str]], together: int
) -> Iterator[dict[str, Any]]:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a line a picture says it all
    wanted = {name: getattr(args, name) for name in ("quality", "target_bytes", "target_psnr")}
    options = {
        "model": args.model,
        "device": args.device,
        "engine": args.engine,
        "output_dir": args.output_dir,
        "force": args.force,
        "metadata": args.metadata,
        "wanted": {name: value for name, value in wanted.items() if value is not None},
    }
    # A worker has a GPU, or as many CPUs as --threads says.
    each = {"num_gpus": 1} if args.device.startswith("cuda") else {"num_cpus": args.threads or 1}
    blocks = max(1, min(len(jobs) // together, MAX_BLOCKS))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args`")  # of Ray 2.64, which is not taken
        results = ray.data.from_items(jobs, override_num_blocks=blocks).map_batches(
            FileEncoder,
            fn_constructor_kwargs=options,
            batch_size=together,
            # Alone: a picture that kills its worker must take no other with it.
            compute=ray.data.ActorPoolStrategy(
                max_tasks_in_flight_per_actor=1 if together == 1 else 4
            ),
            max_restarts=-1,
            max_task_retries=0 if together == 1 else 1,
            **each,
        )
    results.context.enable_progress_bars = False
    results.context.max_errored_blocks = -1  # what is missing is found by its absence
    for row in results.iter_rows():
        yield json.loads(row["result"])


class FileEncoder:
    """A worker: jobs -> results as JSON."""

    def __init__(
        self,
        model: str,
        device: str,
        engine: str,
        output_dir: str,
        force: bool,
        metadata: str,
        wanted: dict[str, Any],
    ) -> None:
        from mlic_fast import storage
        from mlic_fast.codec import DEFAULT_QUALITY
        from mlic_fast.ray import load_here

        self.codec = load_here(model, device, engine)
        self.force = force
        self.metadata = metadata
        self.wanted = wanted
        self.output, self.folder = storage.resolve(output_dir)
        #: What a file that is left must have; one for a target may have any quality.
        self.quality: int | None = None
        if not self.codec.packed.config.rates:
            self.quality = 0
        elif not wanted.keys() - {"quality"}:
            self.quality = wanted.get("quality", DEFAULT_QUALITY)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of jobs -> a column of their results, as JSON."""
        jobs = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
        with ThreadPoolExecutor(READERS) as pool:
            opened = list(pool.map(partial(_attempt, self._open), jobs))
            coded = self._encode(opened)
            written = list(pool.map(partial(_attempt, self._write), jobs, coded))
        results = [
            {"target": job["target"], "input": job["source"], **result}
            for job, result in zip(jobs, written, strict=True)
        ]
        return {"result": [json.dumps(result) for result in results]}

    def _open(self, job: dict[str, str]) -> Any:
        """The picture, or the result where there is nothing to do."""
        from mlic_fast import storage
        from mlic_fast.images import load_picture

        target = posixpath.join(self.folder, job["target"])
        there = storage.read_if_there(self.output, target)
        if there is not None and not self.force:
            header = _header_if_whole(there)
            if header is not None:
                if header.model_id != self.codec.model_id or self.quality not in (
                    None,
                    header.quality,
                ):
                    raise FileExistsError(
                        f"{target} exists already, of another model or quality; use --force to "
                        "overwrite it"
                    )
                return {
                    "output": target,
                    "bytes": len(there),
                    "width": header.width,
                    "height": header.height,
                    "left": True,
                }
        filesystem, _ = storage.resolve(job["root"])
        data = storage.read(filesystem, job["source"])
        return load_picture(data, metadata=self.metadata == "all")

    def _encode(self, opened: list[Any]) -> list[Any]:
        """Streams in the place of pictures; of each that fails, its error."""
        from mlic_fast.images import Picture

        coded = list(opened)
        numbers = [i for i, item in enumerate(opened) if isinstance(item, Picture)]
        pictures = [opened[i] for i in numbers]
        try:
            streams: list[Any] = list(self.codec.compress(pictures, **self.wanted))
        except Exception:  # of one of them: each alone
            streams = [
                _attempt(lambda p: self.codec.compress(p, **self.wanted), p) for p in pictures
            ]
        for i, stream in zip(numbers, streams, strict=True):
            size = opened[i].pixels.shape[1:]
            coded[i] = (size, stream) if isinstance(stream, bytes) else stream
        return coded

    def _write(self, job: dict[str, str], coded: Any) -> dict[str, Any]:
        from mlic_fast import storage

        if isinstance(coded, dict):
            return coded
        (height, width), data = coded
        target = posixpath.join(self.folder, job["target"])
        storage.write(self.output, target, data)
        return {"output": target, "bytes": len(data), "width": width, "height": height}


def _attempt(work: Callable[..., Any], *arguments: Any) -> Any:
    """What comes of it, or ``{"error": message}``: a picture costs no other."""
    try:
        return work(*arguments)
    except Exception as error:
        return {"error": explain(error) or f"{type(error).__name__}: {error}"}


def _header_if_whole(data: bytes) -> Header | None:
    """That of a stream whose checksums are right; damaged files are made again."""
    try:
        stream = bitstream.split(data)
        Sections(stream.sections).check()
        return stream.header
    except CorruptStreamError:
        return None
