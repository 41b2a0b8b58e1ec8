"""Block g_a and g_s in the exact arithmetic of the entropy path.

What :mod:`mlic_fast.models.transforms` has in float: docs/arithmetic.md, section 9.
"""

from __future__ import annotations

from typing import Any

from mlic_fast.engine.operations import Operations, Real


def analysis(ops: Operations, images: Any) -> Real:
    """g_a: uint8 [B, 3, H, W] -> y [B, H/16, W/16, M], its channels scaled."""
    fine, coarse = ops.config.analysis_blocks
    x = ops.conv("g_a.embed", [ops.to_blocks(images)])
    x = ops.mixing_blocks("g_a.fine", fine, x)
    x = ops.conv("g_a.down", [ops.space_to_depth(ops.quantise(x, "g_a.fine"))])
    return ops.mixing_blocks("g_a.coarse", coarse, x)


def synthesis(ops: Operations, y: Real) -> Any:
    """g_s: latents [B, H/16, W/16, M], their channels scaled -> uint8 [B, 3, H, W]."""
    fine, coarse = ops.config.synthesis_blocks
    x = ops.mixing_blocks("g_s.coarse", coarse, y)
    x = ops.depth_to_space(ops.conv("g_s.up", [ops.quantise(x, "g_s.coarse")]))
    x = ops.mixing_blocks("g_s.fine", fine, x)
    return ops.to_pixels(ops.conv("g_s.project", [ops.quantise(x, "g_s.fine")]))
