"""Results that are kept: ``benchmarks/results/<machine>/<date>-<commit>.json``.

    python benchmarks/results.py FILE...

adds what ``mlic-fast bench --json``, ``mlic-fast profile --json``, ``mlic-fast eval --json``,
``benchmarks/suite.py --json`` or the scripts in ``benchmarks/gpu`` wrote to the file of this day,
commit and machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlic_fast.atomic_files import write_atomically
from mlic_fast.profiling.machine import describe_commit

FOLDER = Path(__file__).parent / "results"

Document = dict[str, Any]

#: Of a profile: the single layers furthest above their floors.
KEPT_LAYERS = 20


def section_of(document: Document) -> str:
    """What a document is about: ``bench``, ``profile``, ``eval``, ``suite`` or ``gpu``."""
    keys = {"gpu": "gpu", "suite": "suite", "measurements": "eval"}
    keys |= {"kernels": "profile", "results": "bench"}
    for key, section in keys.items():
        if key in document:
            return section
    raise SystemExit("this is no result of bench, profile, eval, suite or gpu")


def add(into: Document, document: Document) -> None:
    """One suite; several of the others, of which a newer one of the same name takes the place."""
    section = section_of(document)
    if section == "gpu":
        into["gpu"] = {**into.get("gpu", {}), **document["gpu"]}
        return
    if section == "suite":
        into["suite"] = document["suite"]
        return
    machine = document["machine"]
    added = {key: value for key, value in document.items() if key != "machine"}
    # These may differ from run to run of a day.
    added |= {"threads": machine["threads"], "load": machine["load"]}
    if section == "eval":  # of the images the means are enough
        added["measurements"] = [m for m in added["measurements"] if m["image"] == "mean"]
    if section == "profile":
        added["layers"] = added["layers"][:KEPT_LAYERS]
    others = [each for each in into.get(section, []) if name_of(each) != name_of(added)]
    into[section] = [*others, added]


def name_of(document: Document) -> tuple[Any, ...]:
    """What two documents of a section have in common if one can take the other's place."""
    first = document.get("results", [{}])[0]
    engines = list(first.get("engines", [document.get("engine")]))
    what = (document.get(key) for key in ("model", "images", "way", "threads"))
    return *what, *engines


def oldest_first(files: Iterable[Path]) -> list[Path]:
    """By day and hour; files from before the hour was kept come first on their day."""

    def key(file: Path) -> tuple[str, str, str]:
        stored = json.loads(file.read_text())
        return stored["date"], stored.get("time", ""), file.name

    return sorted(files, key=key)


def newest_with(section: str, machine: str) -> Path | None:
    """The newest file of a machine that has a section."""
    files = reversed(oldest_first((FOLDER / machine).glob("*.json")))
    return next((file for file in files if section in json.loads(file.read_text())), None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    for path in parser.parse_args().files:
        document = json.loads(path.read_text())
        machine = document["machine"]
        # Made outside of a checkout, maybe filed there too.
        machine["commit"] = machine["commit"] or describe_commit() or "unknown"
        now = datetime.datetime.now(datetime.timezone.utc)
        date = now.date().isoformat()
        file = FOLDER / machine["name"] / f"{date}-{machine['commit'].removesuffix('-dirty')}.json"
        stored = {"date": date, "time": now.time().isoformat("seconds"), "machine": machine}
        if file.exists():
            stored = json.loads(file.read_text())
        add(stored, document)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, (json.dumps(stored, indent=1) + "\n").encode())
        print(f"{path.name} -> {file.relative_to(FOLDER.parent)}")


if __name__ == "__main__":
    main()
