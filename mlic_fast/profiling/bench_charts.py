"""The pictures of ``mlic-fast bench``, drawn from its JSON document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mlic_fast.charts import GREY, PALETTE, new_figure
from mlic_fast.profiling.side_by_side import WAYS, Result
from mlic_fast.profiling.stages import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = dict(zip(STAGES, (*PALETTE[:4], GREY), strict=True))


def draw(document: Result) -> Figure:
    """Stages of the largest image as stacked bars; of several, milliseconds over pixels too, with
    the floor.
    """
    results = sorted(document["results"], key=_pixels)
    several = len(results) > 1
    figure = new_figure(12 if several else 7.5, 4.8)
    machine = document["machine"]
    figure.suptitle(f"{document['model']} on {machine['name']}, commit {machine['commit']}")
    if several:
        bars, lines = figure.subplots(1, 2, width_ratios=(1.5, 1))
        _draw_latency(lines, results)
    else:
        bars = figure.subplots()
    _draw_stages(bars, results[-1])
    return figure


def _draw_stages(axes: Axes, result: Result) -> None:
    """Horizontal bars, one an engine and way, of what each stage takes."""
    rows = [(way, name) for way in WAYS for name in result["engines"]]
    longest = max(result["engines"][name][way]["median_ms"] for way, name in rows)
    for row, (way, name) in enumerate(rows):
        times = result["engines"][name][way]
        left = 0.0
        for stage, colour in _COLOURS.items():
            if stage in times["stages"]:
                width = times["stages"][stage]["median_ms"]
                axes.barh(row, width, 0.7, left=left, color=colour, edgecolor="white")
                left += width
        axes.annotate(_total(result, way, name), (left, row), (4, 0), **_OFFSET, fontsize=8)
        if "floor_ms" in times:
            axes.plot([times["floor_ms"]] * 2, [row - 0.4, row + 0.4], "k--", linewidth=1.5)
    axes.set_yticks(range(len(rows)), [f"{name}\n{way}" for way, name in rows])
    axes.set_xlim(0, 1.3 * longest)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    size = f"{result['width']}x{result['height']}"
    batch = f", batch of {result['batch']}" if result["batch"] > 1 else ""
    clock = " on the processor" if result.get("clock") == "processor" else ""
    axes.set(
        xlabel=f"milliseconds{clock} (median)", title=f"Stages at {size}{batch}; dashes: the floor"
    )
    handles = [_patch(colour, stage) for stage, colour in _COLOURS.items()]
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=5, fontsize=8
    )
    axes.grid(axis="x", alpha=0.3)


_OFFSET: dict[str, Any] = {"textcoords": "offset points", "va": "center"}


def _total(result: Result, way: str, name: str) -> str:
    text = f"{result['engines'][name][way]['median_ms']:.4g} ms"
    if "ratio" in result and name != next(iter(result["engines"])):
        ratio = result["ratio"][way]
        text += f"\n{ratio['median']:.2f} times as long"
        if "p10" in ratio:
            text += f"\n({ratio['p10']:.2f} to {ratio['p90']:.2f})"
    return text


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _draw_latency(axes: Axes, results: Sequence[Result]) -> None:
    from matplotlib.ticker import LogLocator

    megapixels = [_pixels(result) / 1e6 for result in results]
    for colour, (name, way, times) in zip(PALETTE, _series(results), strict=False):
        style = "-o" if way == "encode" else "-s"
        milliseconds = [each["median_ms"] for each in times]
        axes.plot(
            megapixels, milliseconds, style, color=colour, markersize=4, label=f"{name}, {way}"
        )
        if all("floor_ms" in each for each in times):
            floors = [each["floor_ms"] for each in times]
            axes.plot(megapixels, floors, "--", color=colour, label=f"floor, {way}")
    axes.set(xscale="log", yscale="log", xlabel="megapixels (log)", ylabel="milliseconds (log)")
    axes.set_title("Latency over pixels")
    axes.set_xticks(megapixels, [f"{each:.3g}" for each in megapixels])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize=8)


def _series(results: Sequence[Result]) -> Iterator[tuple[str, str, list[Result]]]:
    for name in results[0]["engines"]:
        for way in WAYS:
            yield name, way, [result["engines"][name][way] for result in results]


def _pixels(result: Result) -> int:
    pixels: int = result["width"] * result["height"] * result["batch"]
    return pixels
