"""The least time that the machine needs for every stage: operations over its measured peak."""

from __future__ import annotations

from mlic_fast.codec import Codec
from mlic_fast.engine.exact_transforms import ExactTransforms
from mlic_fast.models.config import ALIGNMENT
from mlic_fast.profiling.counting import (
    count_entropy_path,
    count_exact_transforms,
    count_transforms,
)
from mlic_fast.profiling.engine_parts import parts_of
from mlic_fast.profiling.machine import integer_peak, matrix_peak
from mlic_fast.profiling.stages import ENTROPY_PATH, Seconds


def stage_floors(codec: Codec, width: int, height: int) -> Seconds:
    """Seconds of every stage at the machine's peak; none for engines other than the exact ones."""
    parts = parts_of(codec._engine)
    if parts is None:
        return {}
    padded = [-(-side // ALIGNMENT) * ALIGNMENT for side in (width, height)]
    integers = integer_peak(codec.device)
    if isinstance(parts.transforms, ExactTransforms):
        peak, transforms = integers, count_exact_transforms(parts.transforms.packed, *padded)
    else:
        peak = matrix_peak(parts.transforms._dtype, codec.device)
        transforms = count_transforms(codec.model, *padded)
    floors = {name: count / peak for name, count in transforms.items()}
    floors[ENTROPY_PATH] = count_entropy_path(codec.packed, *padded) / integers
    return floors
