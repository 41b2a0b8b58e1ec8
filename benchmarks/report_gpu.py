"""The tables of what ``benchmarks/gpu/measure.py`` and ``tune.py`` found."""

from __future__ import annotations

from report_tables import MODELS, WAYS, Lines, machines, table
from results import Document

#: Kernels of a decode that are shown; the rest is summed up.
SHOWN = 10


def gpu(stored: list[Document]) -> Lines:
    for name, found in machines(stored).items():
        for result in found:
            measured = result.get("gpu", {})
            if not measured:
                continue
            commit = result["machine"]["commit"].removesuffix("-dirty")
            yield f"### {name}, {result['date']}, commit {commit}"
            yield ""
            for section, write in _SECTIONS.items():
                if section in measured:
                    yield from write(measured[section])


def _codec(rows: list[Document]) -> Lines:
    yield "Pixels on the device to bytes and back, host included: median (least) of the runs, ms."
    yield ""
    header = "model, size | | encode | decode | its graph, encode | decode | g_a, h_a | path | g_s"
    yield from table(f"{header} | peak, GB", map(_codec_row, rows))


def _codec_row(row: Document) -> list[str]:
    batch = f", batch {row['batch']}" if row["batch"] > 1 else ""
    parts = row.get("parts_ms", {})
    return [
        f"{MODELS[row['model']]}, {row['width']}x{row['height']}{batch}",
        f"`{row['engine']}`" if "engine" in row else row.get("note", ""),
        *(f"{row[f'{way}_ms'][0]:.4g} ({row[f'{way}_ms'][1]:.4g})" for way in WAYS),
        *(_number(row.get(f"{way}_graph_ms")) for way in WAYS),
        *(_number(parts.get(part)) for part in ("g_a, h_a", "path", "g_s")),
        _number(row.get("peak_gb")),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _kernels(documents: list[Document]) -> Lines:
    for document in documents:
        kernels = document["kernels"]
        total = sum(us for _, us in kernels.values())
        what = f"{MODELS[document['model']]}, {document['width']}x{document['height']}"
        what += f", {document['note']}" if document["note"] else ""
        yield (
            f"{document['way'].capitalize()}, kernel by kernel, {what}: "
            f"{total / 1e3:.2f} ms in all, some of it side by side."
        )
        yield ""
        rows = [[name.strip(": "), f"{n:.0f}", f"{us:.0f}"] for name, (n, us) in kernels.items()]
        rest = list(kernels.values())[SHOWN:]
        left = ["all others", f"{sum(n for n, _ in rest):.0f}", f"{sum(us for _, us in rest):.0f}"]
        yield from table("kernel | launches | us", [*rows[:SHOWN], left])


def _coder(rows: list[Document]) -> Lines:
    yield "The range coder alone, by lanes, 20 passes of 24,576 symbols, a graph each way:"
    yield ""
    cells = (
        [
            f"{row['lanes']}",
            f"{row['bytes']:,}",
            *(f"{row[f'{way}_ms']:.3g}" for way in WAYS),
        ]
        for row in rows
    )
    yield from table("lanes | bytes | encode, ms | decode, ms", cells)


def _constants(constants: dict[str, float]) -> Lines:
    yield "Constants of the card, in microseconds:"
    yield ""
    yield from table("what | us", ([name, f"{us:.4g}"] for name, us in constants.items()))


def _tiles(rows: list[Document]) -> Lines:
    launches = sum(row["launches"] for row in rows if row["kernel"] == rows[0]["kernel"])
    yield f"The {launches} products of a decode of MLIC++ at 768x512, by kernel and tiles:"
    yield ""
    kernels = dict.fromkeys(row["kernel"] for row in rows)
    yield from table(
        "kernel | best tiles for all | ms | best of each shape, ms",
        (
            _tiles_row(kernel, [row for row in rows if row["kernel"] == kernel])
            for kernel in kernels
        ),
    )


def _tiles_row(kernel: str, rows: list[Document]) -> list[str]:
    whole = set.intersection(*(set(row["us"]) for row in rows))
    sums = {tile: sum(row["launches"] * row["us"][tile] for row in rows) for tile in sorted(whole)}
    tile = min(sums, key=lambda name: sums[name])
    best = sum(row["launches"] * min(row["us"].values()) for row in rows)
    return [kernel, tile, f"{sums[tile] / 1e3:.2f}", f"{best / 1e3:.2f}"]


def _predictions(rows: list[dict[str, str]]) -> Lines:
    yield "What had been predicted, by counting and reading compiled code, and what came:"
    yield ""
    cells = ([row["what"], row["predicted"], row["came"]] for row in rows)
    yield from table("what | predicted | came", cells)


_SECTIONS = {
    "codec": _codec,
    "predictions": _predictions,
    "kernels": _kernels,
    "coder": _coder,
    "tiles": _tiles,
    "constants": _constants,
}
