"""Residual g_a and g_s in the exact arithmetic of the entropy path.

What :mod:`mlic_fast.models.layers` has in float: docs/arithmetic.md, section 10. Where an
activation is not yet normalised it is real, and large: so the layer before GDN, GDN and what is
added to it are computed in bands of rows.
"""

from __future__ import annotations

from typing import Any

from mlic_fast.engine.operations import Act, Operations, Real

ANALYSIS, SYNTHESIS = "g_a.analysis_transform", "g_s.synthesis_transform"
#: The blocks of both, in pairs: one that changes the size, and one that does not.
BLOCKS = 6


def analysis(ops: Operations, images: Any) -> Real:
    """g_a: uint8 [B, 3, H, W] -> y [B, H/16, W/16, M]."""
    x = ops.to_positions(images)
    for index in range(BLOCKS):
        block = residual_block if index % 2 else downsampling_block
        x = block(ops, f"{ANALYSIS}.{index}", x)
    return ops.strided_conv(f"{ANALYSIS}.{BLOCKS}", x)


def synthesis(ops: Operations, y: Real) -> Any:
    """g_s: latents [B, H/16, W/16, M], their channels scaled -> uint8 [B, 3, H, W]."""
    x = ops.quantise(y, "g_s")
    for index in range(BLOCKS + 1):
        block = upsampling_block if index % 2 else residual_block
        x = block(ops, f"{SYNTHESIS}.{index}", x)
    return ops.from_positions(ops.depth_to_space(ops.conv(f"{SYNTHESIS}.{BLOCKS + 1}.0", [x])))


def residual_block(ops: Operations, name: str, x: Act) -> Act:
    """:class:`mlic_fast.models.layers.ResidualBlock`."""
    hidden = ops.conv(f"{name}.conv1", [x], gelu_after=True, out=f"{name}.conv1")
    skip = f"{name}.skip"
    added = ops.conv(skip, [x]) if skip in ops.layers else x
    return ops.conv(f"{name}.conv2", [hidden], gelu_after=True, residual=added, out=name)


def downsampling_block(ops: Operations, name: str, x: Act) -> Act:
    """:class:`mlic_fast.models.layers.ResidualBlockWithStride`."""
    hidden = ops.strided_conv(f"{name}.conv1", x, gelu_after=True, out=f"{name}.conv1")

    def network(at: slice) -> tuple[Real, Real]:
        r = ops.conv(f"{name}.conv2", [hidden.rows(at)])
        return r, ops.strided_conv(f"{name}.skip", x.rows(slice(2 * at.start, 2 * at.stop)))

    return ops.gdn_of_rows(f"{name}.gdn", hidden, 2, network, out=name)


def upsampling_block(ops: Operations, name: str, x: Act) -> Act:
    """:class:`mlic_fast.models.layers.ResidualBlockUpsample`."""
    before = f"{name}.subpel_conv.0"
    hidden = ops.conv(before, [x], gelu_after=True, out=before)
    hidden = Act(ops.depth_to_space(hidden.q), hidden.exponent)

    def network(at: slice) -> tuple[Real, Real]:
        r = ops.conv(f"{name}.conv", [hidden.rows(at)])
        return r, ops.conv(f"{name}.upsample.0", [x.rows(slice(at.start // 2, at.stop // 2))])

    return ops.gdn_of_rows(f"{name}.igdn", hidden, 2, network, inverse=True, out=name)
