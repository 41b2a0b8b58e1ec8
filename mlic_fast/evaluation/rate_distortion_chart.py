"""One picture of a comparison: rate and distortion, and time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlic_fast.charts import GREY, PALETTE, new_figure
from mlic_fast.evaluation.measuring import Curve
from mlic_fast.evaluation.published import AGAINST_VTM, Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX"
_DASHES = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def draw(
    curves: Sequence[Curve],
    bd_rates: Mapping[str, Mapping[str, float]],
    published: dict[str, Points],
    images: int,
    *,
    times: bool = True,
) -> Figure:
    """PSNR over rate, MS-SSIM over rate, time an image.

    Args:
        curves: ours first.
        bd_rates: of ours against each of the others, in percent, by ``"PSNR"`` and ``"MS-SSIM"``.
        published: fixed curves of PSNR, by name.
        images: how many the means are over.
        times: without it the time is left out, where it was not what was measured.
    """
    figure = new_figure(13.5 if times else 9.5, 5.6)
    psnr, similarity, *rest = figure.subplots(
        1, 2 + times, width_ratios=(1.2, 1.2, 1) if times else (1, 1)
    )
    figure.suptitle(f"{images} image{'s' * (images > 1)}, means of real files")
    _rate_axes(psnr, "PSNR over RGB [dB]", curves, "psnr", bd_rates, "PSNR")
    for (name, points), dashes in zip(published.items(), _DASHES, strict=False):
        label = f"{name} as published"
        if name in AGAINST_VTM:
            label += f" ({AGAINST_VTM[name]:+.1f} % against VTM-17.0)"
        psnr.plot(
            *zip(*points, strict=True), linestyle=dashes, color=GREY, linewidth=1.6, label=label
        )
    _rate_axes(similarity, "MS-SSIM [dB]", curves, "ms_ssim_db", bd_rates, "MS-SSIM")
    for axes in (psnr, similarity):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=2, fontsize=7)
    for axes in rest:
        _time_axes(axes, curves)
    return figure


def _rate_axes(
    axes: Axes,
    label: str,
    curves: Sequence[Curve],
    metric: str,
    bd_rates: Mapping[str, Mapping[str, float]],
    column: str,
) -> None:
    end, seen = _end(curves), []
    for i, curve in enumerate(curves):
        points = [(p.mean.bits_per_pixel, getattr(p.mean, metric)) for p in curve.points]
        points = sorted(p for p in points if p[1] is not None and math.isfinite(p[1]))
        if not points:
            continue
        seen += [quality for bits, quality in points if bits <= end]
        rate = bd_rates.get(curve.name, {}).get(column)
        note = "" if rate is None else f" (ours: {rate:+.1f} % BD-rate)"
        axes.plot(
            *zip(*points, strict=True),
            color=PALETTE[i % len(PALETTE)],
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=4,
            linewidth=2.4 if i == 0 else 1.4,
            label=curve.name + note,
            zorder=3 if i == 0 else 2,
        )
    axes.set(xlabel="bits a pixel", ylabel=label, title=f"{column} over rate", xlim=(0, end))
    if seen:
        axes.set_ylim(min(seen) - 1, max(seen) + 1)
    axes.grid(alpha=0.3)


def _end(curves: Sequence[Curve]) -> float:
    """Twice as far as our own curve reaches: the others' best qualities would squeeze it."""
    return 2 * max(point.mean.bits_per_pixel for point in curves[0].points)


def _time_axes(axes: Any, curves: Sequence[Curve]) -> None:
    for offset, way, colour in ((-0.2, "encode", "#606060"), (0.2, "decode", "#B8B8B8")):
        for row, curve in enumerate(curves):
            means = [getattr(point.mean, f"{way}_seconds") for point in curve.points]
            milliseconds = 1e3 * sum(means) / len(means)
            axes.barh(
                row + offset, milliseconds, 0.36, color=colour, label=way if row == 0 else None
            )
            text = f" {milliseconds:,.0f}" if milliseconds >= 100 else f" {milliseconds:.3g}"
            axes.annotate(text, (milliseconds, row + offset), va="center", fontsize=8)
    axes.set_yticks(range(len(curves)), [curve.name for curve in curves])
    axes.set(xscale="log", xlabel="milliseconds an image (log)", title="Time, mean of all settings")
    axes.margins(x=0.3)
    axes.set_ylim(len(curves) + 0.1, -0.6)
    axes.legend(loc="lower center", ncols=2, fontsize=8)
    axes.grid(axis="x", alpha=0.3)
