"""What the tables of ``docs/benchmarks.md`` have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from results import Document, name_of

MODELS = {
    "mlic": "MLIC",
    "mlic_plus": "MLIC+",
    "mlic_plus_plus": "MLIC++",
    "demo": "demo",  # which was shipped until 2026-11-26
    "photo": "photo",
}
WAYS = ("encode", "decode")

Lines = Iterator[str]


def machines(stored: list[Document]) -> dict[str, list[Document]]:
    """The results of each machine, the newest first; the machine of the newest result first."""
    found: dict[str, list[Document]] = {}
    for result in reversed(stored):
        found.setdefault(result["machine"]["name"], []).append(result)
    return found


def newest(found: list[Document], section: str) -> list[tuple[Document, Document]]:
    """Of one machine's results: the newest document of each name, and the result it is in."""
    documents: dict[tuple[Any, ...], tuple[Document, Document]] = {}
    for result in found:
        for document in result.get(section, []):
            documents.setdefault(name_of(document), (document, result))
    order = list(MODELS)
    return sorted(
        documents.values(),
        key=lambda pair: (order.index(pair[0]["model"]), pair[0].get("way") == "decode"),
    )


def table(header: str, rows: Iterable[Sequence[str]]) -> Lines:
    """``header``: the columns between bars."""
    yield f"| {header} |"
    yield "|---" * (header.count("|") + 1) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def threads_of(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"
