"""A chart of points as SVG, in the colours of the page that it is in."""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from mlic_fast.charts import PALETTE

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 60, 16, 18, 48


class Point(NamedTuple):
    """Points of one series are joined by a line."""

    series: str
    label: str
    x: float
    y: float


def chart(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """Texts are escaped here."""
    x_ticks = ticks(0.0, max(point.x for point in points))
    y_ticks = ticks(min(point.y for point in points), max(point.y for point in points))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(y_label)}">']
    for x in x_ticks:
        (left, bottom), (_, top) = at(x, y_ticks[0]), at(x, y_ticks[-1])
        parts += [f'<path class="grid" d="M{left},{bottom}V{top}"/>']
        parts += [f'<text x="{left}" y="{bottom + 16}" text-anchor="middle">{x:g}</text>']
    for y in y_ticks:
        (left, height), (right, _) = at(x_ticks[0], y), at(x_ticks[-1], y)
        parts += [f'<path class="grid" d="M{left},{height}H{right}"/>']
        parts += [f'<text x="{left - 6}" y="{height + 4}" text-anchor="end">{y:g}</text>']
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts += [f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{x_label}</text>']
    parts += [
        f'<text transform="translate(14,{(TOP + HEIGHT - BOTTOM) / 2})rotate(-90)" '
        f'text-anchor="middle">{y_label}</text>'
    ]
    series: defaultdict[str, list[Point]] = defaultdict(list)
    for point in points:
        series[point.series].append(point)
    for number, (name, members) in enumerate(series.items()):
        colour = PALETTE[number % len(PALETTE)]
        places = [at(point.x, point.y) for point in sorted(members, key=lambda point: point.x)]
        line = " ".join(f"{x},{y}" for x, y in places)
        parts += [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>']
        for point in members:
            x, y = at(point.x, point.y)
            title = escaped(f"{point.label}: {point.x:.4g}, {point.y:.4g}")
            parts += [
                f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"><title>{title}</title></circle>'
            ]
        x, y = places[-1]
        side = 'end" dx="-9' if x > WIDTH / 2 else 'start" dx="9'
        parts += [f'<text x="{x}" y="{y}" dy="-9" text-anchor="{side}">{escaped(name)}</text>']
    return "".join([*parts, "</svg>"])


def escaped(text: str) -> str:
    """For HTML, also within an attribute; what cannot be encoded becomes an escape."""
    return html.escape(text.encode("utf-8", "backslashreplace").decode())


def ticks(low: float, high: float) -> list[float]:
    """Round numbers in equal steps, about five, that hold the range."""
    span = high - low or max(abs(high), 1.0) / 10
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    last += first == last
    return [round(number * step, 12) for number in range(first, last + 1)]
