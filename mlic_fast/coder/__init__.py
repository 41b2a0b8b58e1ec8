"""Probability tables and the range coder."""

from mlic_fast.coder.factorized import factorized_tables
from mlic_fast.coder.gaussian import SCALES, gaussian_tables, scale_indexes
from mlic_fast.coder.rans import Decoder, Encoder
from mlic_fast.coder.tables import Tables

__all__ = [
    "SCALES",
    "Decoder",
    "Encoder",
    "Tables",
    "factorized_tables",
    "gaussian_tables",
    "scale_indexes",
]
