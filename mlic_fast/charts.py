"""The look of all pictures, and how they are written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from mlic_fast.atomic_files import write_atomically
from mlic_fast.errors import MlicError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colours that colour-blind people tell apart (Okabe and Ito, 2008).
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
GREY = "#8C8C8C"
SUFFIXES = (".png", ".svg")


class ChartError(MlicError):
    """No matplotlib, or a file that cannot take a picture."""


def check_chart(path: str) -> None:
    """Before long work: raises ChartError if a picture could not be drawn or written."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ChartError(f"{path} cannot take a picture; use one of {' '.join(SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ChartError("pictures need matplotlib: pip install 'mlic_fast[bench]'") from error


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, its size in inches. No pyplot is used: no window, no state to clean up."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9}):
        return Figure(figsize=(width, height), layout="constrained", dpi=120)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure; the same figure gives the same bytes."""
    kind = Path(path).suffix[1:].lower()
    file = io.BytesIO()
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "mlic_fast"}):
        figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_atomically(path, file.getvalue())
