"""Fuzz one of the targets beside this file, guided by the coverage of the Python code.

    python fuzz/python/guided.py TARGET FOLDER [options of libFuzzer, e.g. -max_total_time=60]
    python fuzz/python/guided.py TARGET FOLDER --replay

The first needs atheris and keeps what it finds in FOLDER; the second gives every file there to the
target once and needs nothing. A target is a module with ``seeds()``, a list of bytes;
``mutate(data, source, bend)``, other bytes, made with a generator of random numbers and with
``bend``, libFuzzer's own mutator; and ``check(data)``, which raises if something is wrong.
"""

from __future__ import annotations

import importlib
import random
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "tests")]


def fuzz(name: str, folder: Path, options: list[str]) -> None:
    """Does not return."""
    import atheris

    with atheris.instrument_imports(include=["mlic_fast"]):
        target = importlib.import_module(name)
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (folder / f"seed-{number}").write_bytes(seed)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        def bend(part: bytes) -> bytes:
            return atheris.Mutate(part or b"\0", max_size)

        return target.mutate(data, random.Random(seed), bend)[:max_size]

    atheris.Setup([sys.argv[0], *options, str(folder)], target.check, custom_mutator=mutate)
    atheris.Fuzz()


def replay(name: str, folder: Path) -> None:
    target = importlib.import_module(name)
    inputs = sorted(folder.iterdir())
    for path in inputs:
        target.check(path.read_bytes())
    print(f"{name}: {len(inputs)} inputs")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of Pillow, of odd files
    target, place, *rest = sys.argv[1:]
    if rest == ["--replay"]:
        replay(target, Path(place))
    else:
        fuzz(target, Path(place), rest)
