"""The coding loop: written once, run by encoder and decoder, on any backend.

The encoder and the decoder differ in where a pass's symbols come from: they are those of given
latents, rounded about the means, or the pass coder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mlic_fast.engine.operations import (
    Act,
    Latents,
    Operations,
    Real,
    entropy_parameters_layer,
    residual_layer,
)
from mlic_fast.models.parity import Parity

PARITIES = (Parity.ANCHOR, Parity.NON_ANCHOR)
#: Work beside the rest: what later passes of a slice need, and its longest context.
PARTS, INTER = "parts", "inter"


class PassCoder(Protocol):
    """What is done with the symbols of a pass: they are encoded, or decoded."""

    def __call__(
        self, index: int, parity: Parity, scale_indexes: Any, means: Real, symbols: Any
    ) -> Any:
        """One half of slice ``index``; all arrays are [B, H, W/2, C].

        ``symbols`` int32 are those to encode; None when decoding. Returns the symbols.
        """
        ...


def code_latents(
    ops: Operations, z_symbols: Any, code: PassCoder, y: Sequence[Real] | None = None
) -> Latents:
    """Symbols of z [B, h, w, N] and 2S coding passes -> the decoded latents.

    ``y``: when encoding, the S slices of the latents, float32 [B, 4h, 4w, C].
    """
    batch, height, width, _ = z_symbols.shape
    hyper = ops.hyper_synthesis(z_symbols)
    passes = _Passes(ops, hyper, ops.new_latents(batch, 4 * height, 4 * width))
    for i in range(ops.config.slices):
        passes.code_slice(i, code, None if y is None else y[i])
    return passes.latents


class _Passes:
    def __init__(self, ops: Operations, hyper: Act, latents: Latents) -> None:
        self.ops = ops
        self.latents = latents
        config = ops.config
        self.hyper_means = ops.channels(hyper, config.M, 2 * config.M)
        # The hyper part of the entropy parameters' first layers depends on no pass.
        self.hyper_parts = {
            parity: ops.sums(
                [entropy_parameters_layer(i, parity, 0) for i in range(config.slices)],
                [hyper],
                at=parity,
            )
            for parity in PARITIES
        }

    def code_slice(self, i: int, code: PassCoder, y: Real | None) -> None:
        """Both passes of slice i. (MLIC, section 3; the float twin is MlicModel.code_latents.)"""
        ops, latents = self.ops, self.latents
        previous = latents.q[:i]
        with ops.aside(PARTS):
            residual_parts = ops.sums(
                [residual_layer(i, parity, 0) for parity in PARITIES],
                [self.hyper_means, *previous],
            )
            if i:
                q, k = ops.intra_queries_and_keys(i, previous[-1])
        shared = self._previous_slices(i)
        for parity, residual_part in zip(PARITIES, residual_parts, strict=True):
            contexts = [ops.squeeze(x, parity) for x in shared]
            if parity is Parity.NON_ANCHOR:
                anchors = latents.q[i]
                contexts.append(ops.local_context(i, anchors))
                if i:
                    contexts.append(ops.squeeze(ops.intra_context(i, q, k, anchors), parity))
            indexes, means, symbols = ops.entropy_parameters(
                i, parity, self.hyper_parts[parity][i], contexts, y
            )
            symbols = code(i, parity, indexes, means, symbols)
            ops.decoded(latents, i, symbols, means, parity)
            if parity is Parity.ANCHOR:
                ops.join(PARTS)
            ops.predict_residual(latents, i, parity, residual_part)

    def _previous_slices(self, i: int) -> list[Act]:
        """Contexts that both passes of slice i share: inter (not in MLIC), then channel."""
        if not i:
            return []
        ops, previous = self.ops, self.latents.q[:i]
        if ops.config.variant == "mlic":
            return [ops.channel_context(i, previous)]
        with ops.aside(INTER):
            inter = ops.inter_context(i, previous)
        channel = ops.channel_context(i, previous)
        ops.join(INTER)
        return [inter, channel]
