"""The two colours of the checkerboard."""

from __future__ import annotations

from enum import IntEnum


class Parity(IntEnum):
    """Colour of a position: (row + column) mod 2."""

    NON_ANCHOR = 0
    ANCHOR = 1
