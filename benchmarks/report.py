"""Writes ``docs/benchmarks.md`` and its figures from the results and the prose of a template.

    python benchmarks/report.py

The template is ``docs/benchmarks.in.md``. A line ``<!-- NAME -->`` in it, with a name of
``SECTIONS`` below, becomes the tables and figures of that name; every other line stays.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from report_gpu import gpu
from report_tables import MODELS, WAYS, Lines, machines, newest, table, threads_of
from results import FOLDER, Document, oldest_first
from suite import noise

from mlic_fast.atomic_files import write_atomically
from mlic_fast.charts import PALETTE, new_figure, save
from mlic_fast.evaluation.measuring import Curve, Measurement, Point
from mlic_fast.evaluation.published import KODAK
from mlic_fast.evaluation.rate_distortion_chart import draw as draw_rate
from mlic_fast.profiling import bench_charts

ROOT = FOLDER.parent.parent
TEMPLATE = ROOT / "docs" / "benchmarks.in.md"
TARGET = ROOT / "docs" / "benchmarks.md"
FIGURES = ROOT / "docs" / "figures"

#: The size that the history is about.
SIZE = (768, 512)


def results() -> list[Document]:
    """All results, the oldest first."""
    files = oldest_first(FOLDER.glob("*/*.json"))
    return [json.loads(file.read_text()) for file in files]


# ------------------------------------------------------------------------------ sections


def machine_table(stored: list[Document]) -> Lines:
    for name, found in machines(stored).items():
        m = found[0]["machine"]
        gpu = m.get("gpu")
        what = f"{gpu['name']}, driver {gpu.get('driver_version')}; " if gpu else ""
        isa = m["instruction_sets"][0]
        clock = f" at {m['cpu_mhz'] / 1e3:.1f} GHz" if m.get("cpu_mhz") else ""
        cpu = f"{m['cpu']}, {m['cores']} cores{clock}, {isa}"
        yield f"- **{name}**: {what}{cpu}, PyTorch {m['torch']}."
        loads = [
            document["load"]
            for result in found
            for section in ("bench", "profile", "eval")
            for document in result.get(section, [])
            if document.get("load") is not None
        ]
        days = sorted({result["date"] for result in found})
        commits = ", ".join(r["machine"]["commit"].removesuffix("-dirty") for r in found)
        yield f"  Measured on {', '.join(days)} at commit {commits}."
        if loads:
            yield (
                f"  Other work ran beside it: load {min(loads):.1f} to {max(loads):.1f} on "
                f"{m['cores']} cores."
            )


def codec(stored: list[Document]) -> Lines:
    for name, found in machines(stored).items():
        documents = newest(found, "bench")
        if not documents:
            continue
        yield f"### {name}"
        yield ""
        header = (
            "model, size | | engine, ms | p10 to p90 | baseline, ms | times as fast (p10 to p90) "
            "| floor, ms | times floor | images/s | MP/s | memory, MB | bits a pixel"
        )
        yield from table(
            header,
            (
                _codec_row(document, result, way)
                for document, _ in documents
                for result in document["results"]
                for way in WAYS
            ),
        )
        for document, result in documents:
            if result["machine"].get("gpu"):  # whose stages are of runs without graphs
                continue
            figure = f"{name}-{document['model']}-{document['threads']}-threads.png"
            save(bench_charts.draw({**document, "machine": result["machine"]}), FIGURES / figure)
            yield f"![{MODELS[document['model']]}: stages, latency over pixels](figures/{figure})"
            yield ""


def _codec_row(document: Document, result: Document, way: str) -> list[str]:
    threads = document["threads"]
    (name, ours), *others = result["engines"].items()
    times, size = ours[way], f"{result['width']}x{result['height']}"
    batch = f", batch {result['batch']}" if result["batch"] > 1 else ""
    on_gpu = ours["device"] != "cpu"
    used = "" if on_gpu else f", {threads_of(threads)}"
    baseline = ratio = ""
    if others:
        other, theirs = others[0]
        baseline = f"{theirs[way]['median_ms']:.4g} `{other}`"
        ratio = _spread(result["ratio"][way])
    memory = times.get("peak_memory_bytes")
    return [
        f"{MODELS[document['model']]}, {size}{batch}{used}",
        way,
        f"{times['median_ms']:.4g} `{name}`",
        f"{times['p10_ms']:.4g} to {times['p90_ms']:.4g}",
        baseline,
        ratio,
        f"{times['floor_ms']:.3g}" if "floor_ms" in times else "",
        f"{times['times_floor']:.1f}" if "floor_ms" in times else "",
        f"{times['images_per_second']:.3g}",
        f"{times['megapixels_per_second']:.3g}",
        f"{memory / 1e6:.0f}" if memory else "",
        f"{ours['bits_per_pixel']:.3f}",
    ]


def _spread(ratio: Document) -> str:
    text = f"{ratio['median']:.2f}"
    return text + (f" ({ratio['p10']:.2f} to {ratio['p90']:.2f})" if "p10" in ratio else "")


def profiles(stored: list[Document]) -> Lines:
    for name, found in machines(stored).items():
        documents = newest(found, "profile")
        if documents:
            yield f"### {name}"
            yield ""
            yield from table(
                "model | | furthest above its floor | ms | calls | share | floor, ms | of the peak",
                (row for document, _ in documents for row in _profile_rows(document)),
            )


def _profile_rows(document: Document) -> Iterator[list[str]]:
    what = f"{MODELS[document['model']]}, {document['width']}x{document['height']}, "
    what += threads_of(document["threads"])
    for i, row in enumerate(document["kernels"][:3]):
        yield [
            *([what, document["way"]] if i == 0 else ["", ""]),
            f"{row['network']}: {row['operation']}" if row["operation"] else row["network"],
            f"{row['ms']:.3g}",
            str(row["calls"]),
            f"{row['share']:.0%}",
            f"{row['floor_ms']:.3g}",
            f"{row['arithmetic_share']:.0%}",
        ]


def coder(stored: list[Document]) -> Lines:
    for name, found in machines(stored).items():
        entries: dict[str, Document] = {}
        for result in found:
            for key, entry in result.get("suite", {}).items():
                if key.startswith("bench_coder.py"):
                    entries.setdefault(key, entry)
        sources = dict.fromkeys(re.findall(r"\[(.+?)-", " ".join(entries)))
        if not sources:
            continue
        yield f"### {name}"
        yield ""
        header = "symbols | coder | bytes | above ideal | encode, ms | times as fast"
        yield from table(
            header + " | decode, ms | times as fast",
            (row for source in sources for row in _coder_rows(source, entries)),
        )


def _coder_rows(source: str, entries: dict[str, Document]) -> Iterator[list[str]]:
    coders = [
        key.partition(f"[{source}-")[2].rstrip("]")
        for key in entries
        if key.startswith(f"bench_coder.py::test_encode[{source}-")
    ]

    def milliseconds(way: str, each: str) -> float:
        return 1e3 * _median(entries[f"bench_coder.py::test_{way}[{source}-{each}]"]["seconds"])

    for i, each in enumerate(coders):
        extra = entries[f"bench_coder.py::test_encode[{source}-{each}]"]["extra"]
        what = f"{source}: {extra['symbols']:,}, {extra['lowest_table_percent']:.0f} % lowest table"
        cells = [what if i == 0 else "", each, f"{extra['bytes']:,}"]
        cells.append(f"{extra['over_ideal_percent']:+.2f} %")
        for way in WAYS:
            ours = milliseconds(way, each)
            cells += [f"{ours:.2f}", f"{milliseconds(way, 'compressai.ans') / ours:.1f}"]
        yield cells


def kernels(stored: list[Document]) -> Lines:
    for name, found in machines(stored).items():
        suite = next((r["suite"] for r in found if _has_kernels(r)), None)
        if suite is None:
            continue
        yield f"### {name}"
        yield ""
        yield from table("kernel | ms | products a second | noise", _kernel_rows(suite))


def _kernel_rows(suite: Document) -> Iterator[list[str]]:
    for key, entry in suite.items():
        if key.startswith("bench_exact.py"):
            seconds = _median(entry["seconds"])
            products = entry["extra"].get("products")
            yield [
                key.partition("test_")[2].replace("conv[", "").rstrip("]").replace("[", ", "),
                f"{1e3 * seconds:.3f}",
                f"{products / seconds / 1e9:.0f} G" if products else "",
                f"{noise(entry):.0%}",
            ]


def _has_kernels(result: Document) -> bool:
    return any(key.startswith("bench_exact.py") for key in result.get("suite", {}))


def rate(stored: list[Document]) -> Lines:
    """The newest comparison of each model on each set of images (their number tells them apart), on
    whatever machine: pixels do not care.
    """
    shown: set[tuple[str, int]] = set()
    for result in reversed(stored):
        for document in result.get("eval", []):
            key = document["model"], document["images"]
            if key not in shown:
                shown.add(key)
                yield from _rate_tables(document, result)


def _rate_tables(document: Document, result: Document) -> Lines:
    commit = result["machine"]["commit"].removesuffix("-dirty")
    yield f"`{document['model']}`, {document['images']} images, {result['date']}, commit {commit}:"
    yield ""
    yield from table(
        "setting | bits a pixel | PSNR | MS-SSIM | in dB | SSIMULACRA 2",
        (_rate_row(m) for m in document["measurements"] if m["codec"] == "mlic_fast"),
    )
    rates = {name: value for name, value in document["bd_rate_percent"].items() if value}
    columns = ("PSNR", "MS-SSIM", "SSIMULACRA 2")
    yield from table(
        "BD-rate against | by PSNR | by MS-SSIM | by SSIMULACRA 2",
        (
            [name, *(f"{value[m]:+.1f} %" if m in value else "" for m in columns)]
            for name, value in rates.items()
        ),
    )
    name = f"rate-{document['model']}-{document['images']}-images.png"
    save(_draw_rate(document), FIGURES / name)
    yield f"![rate, distortion and time of {document['model']}](figures/{name})"
    yield ""


def _draw_rate(document: Document) -> Figure:
    curves: dict[str, list[Point]] = {}
    for row in document["measurements"]:
        numbers = {key: value for key, value in row.items() if key not in ("codec", "setting")}
        point = Point(row["setting"], [Measurement(**numbers)])
        curves.setdefault(row["codec"], []).append(point)
    drawn = [Curve(name, points) for name, points in curves.items()]
    rates = document["bd_rate_percent"]
    fixed = {name: points for name, points in KODAK.items() if f"{name} as published" in rates}
    return draw_rate(drawn, rates, fixed, document["images"], times=False)


def _rate_row(m: Document) -> list[str]:
    return [
        m["setting"],
        f"{m['bits_per_pixel']:.3f}",
        f"{m['psnr']:.2f} dB",
        "" if m["ms_ssim"] is None else f"{m['ms_ssim']:.4f}",
        "" if m["ms_ssim_db"] is None else f"{m['ms_ssim_db']:.2f}",
        "" if m.get("ssimulacra2") is None else f"{m['ssimulacra2']:.1f}",
    ]


def history(stored: list[Document]) -> Lines:
    for name, found in machines(stored).items():
        points = list(_history(found))
        if not points:
            continue
        yield f"### {name}"
        yield ""
        yield from table(
            "date, commit | model | engine"
            + "".join(f" | {way}, ms | times as fast | times floor" for way in WAYS),
            map(_history_row, points),
        )
        if len({point.commit for point in points}) > 1:
            figure = f"history-{name}.png"
            _draw_history(points, FIGURES / figure)
            yield f"![times the floor over time on {name}](figures/{figure})"
            yield ""


def _history_row(point: Moment) -> list[str]:
    cells = [f"{point.date}, {point.commit}", MODELS[point.model]]
    cells.append(f"`{point.engine}`, {threads_of(point.threads)}")
    for way in WAYS:
        times = point.result["engines"][point.engine][way]
        ratio = point.result.get("ratio", {}).get(way)
        cells += [
            f"{times['median_ms']:.4g}",
            f"{ratio['median']:.2f}" if ratio else "",
            f"{times['times_floor']:.1f}" if "times_floor" in times else "",
        ]
    return cells


@dataclass(frozen=True)
class Moment:
    """One model at the size of Kodak's images, at one time."""

    date: str
    commit: str
    model: str
    engine: str
    threads: int
    result: Document


def _history(found: list[Document]) -> Iterator[Moment]:
    for result in reversed(found):
        commit = result["machine"]["commit"].removesuffix("-dirty")
        for document in result.get("bench", []):
            for each in document["results"]:
                if (each["width"], each["height"], each["batch"]) == (*SIZE, 1):
                    engine = next(iter(each["engines"]))
                    what = document["model"], engine, document["threads"]
                    yield Moment(result["date"], commit, *what, each)


def _draw_history(points: list[Moment], path: Path) -> None:
    figure = new_figure(9, 3.6)
    axes = figure.subplots()
    series = dict.fromkeys((p.model, p.engine, p.threads) for p in points)
    labels = list(dict.fromkeys(f"{p.date}\n{p.commit}" for p in points))
    for colour, key in zip(PALETTE, series, strict=False):
        for way, style in zip(WAYS, ("o-", "s--"), strict=True):
            mine = [p for p in points if (p.model, p.engine, p.threads) == key]
            times = [p.result["engines"][p.engine][way].get("times_floor") for p in mine]
            at = [labels.index(f"{p.date}\n{p.commit}") for p in mine]
            name = f"{MODELS[key[0]]}, {key[1]}, {threads_of(key[2])}, {way}"
            axes.plot(at, times, style, color=colour, label=name)
    axes.set_xticks(range(len(labels)), labels)
    axes.set(ylabel="times the floor", title="Whole codec, 768x512", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save(figure, path)


SECTIONS: dict[str, Callable[[list[Document]], Iterable[str]]] = {
    "machines": machine_table,
    "codec": codec,
    "gpu": gpu,
    "profiles": profiles,
    "coder": coder,
    "kernels": kernels,
    "rate": rate,
    "history": history,
}

# ------------------------------------------------------------------------------ the document


def generate(template: str, stored: list[Document]) -> str:
    """The document. Figures are drawn on the way."""
    FIGURES.mkdir(exist_ok=True)
    lines: list[str] = []
    for line in template.splitlines():
        match = re.fullmatch(r"<!-- (\w+) -->", line)
        if match and match[1] not in SECTIONS:
            raise SystemExit(f"the template asks for {match[1]!r}; there are {', '.join(SECTIONS)}")
        lines += list(SECTIONS[match[1]](stored)) if match else [line]
    note = "<!-- Generated by benchmarks/report.py from docs/benchmarks.in.md and the results. -->"
    text = "\n".join([note, *lines])
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _median(values: list[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    write_atomically(TARGET, generate(TEMPLATE.read_text(), results()).encode())
    print(f"wrote {TARGET.relative_to(ROOT)} and its figures")
