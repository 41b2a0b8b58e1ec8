"""The kinds of transforms g_a and g_s: what sets them apart, in one table.

A model names its kind in ``MlicConfig.transforms``. What a kind computes is written in
:mod:`mlic_fast.models.transforms` in float and in two modules of the engine in integers,
:mod:`mlic_fast.engine.residual_networks` and :mod:`mlic_fast.engine.block_networks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlic_fast.models.config import MlicConfig


@dataclass(frozen=True)
class TransformKind:
    """One kind.

    Attributes:
        fields: those of MlicConfig that only this kind reads; they are written with models of this
            kind alone.
        stages: names of the activations whose channels are scaled before they become integers, in
            the order of the networks. A stage with ``fine`` in its name is at 1/8 of the image and
            has ``block_channels`` channels; the others are at 1/16 and have M.
        analysis_stage: the stage whose scales the result of g_a carries, None if it is not scaled.
        synthesis_stage: the stage whose scales the input of g_s carries.
        latents_layer: the layer of g_a that makes M channels.
        exact_on_gpu: whether GPUs compute these transforms in exact arithmetic too, so that streams
            and pixels are the same there. CPUs always do.
        analysis_halo: rows of latents on each side that a row of latents depends on.
        synthesis_halo: rows of latents on each side that a row of blocks of 16 pixels depends on.
    """

    fields: tuple[str, ...]
    stages: tuple[str, ...]
    analysis_stage: str | None
    synthesis_stage: str
    latents_layer: str
    exact_on_gpu: bool
    analysis_halo: Callable[[MlicConfig], int]
    synthesis_halo: Callable[[MlicConfig], int]


def _mixing_halo(blocks: tuple[int, int]) -> int:
    """Rows of latents that a position sees on each side through so many mixing blocks at 1/8 and
    at 1/16.
    """
    fine, coarse = blocks
    return -(-fine // 2) + coarse


TRANSFORM_KINDS = {
    "residual": TransformKind(
        fields=("stage_channels",),
        stages=("h_a", "g_s"),
        analysis_stage=None,
        synthesis_stage="g_s",
        latents_layer="g_a.analysis_transform.6",
        exact_on_gpu=False,
        analysis_halo=lambda config: 4,
        synthesis_halo=lambda config: 7,
    ),
    "blocks": TransformKind(
        fields=("block_channels", "analysis_blocks", "synthesis_blocks"),
        stages=("g_a.fine", "g_a.coarse", "h_a", "g_s.coarse", "g_s.fine"),
        analysis_stage="g_a.coarse",
        synthesis_stage="g_s.coarse",
        latents_layer="g_a.down",
        exact_on_gpu=True,
        analysis_halo=lambda config: _mixing_halo(config.analysis_blocks),
        synthesis_halo=lambda config: _mixing_halo(config.synthesis_blocks),
    ),
}
