"""The coding loop: written once, run by encoder and decoder, on any backend.

Encoder and decoder differ in where the symbols of a pass come from. The encoder rounds given
latents about the means; the decoder asks the pass coder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mlic_fast.engine.operations import (
    Act,
    Latents,
    Operations,
    Real,
    channel_context_layer,
    entropy_parameters_layer,
    inter_context_prefixes,
    residual_layer,
)
from mlic_fast.models.parity import Parity

PARITIES = (Parity.ANCHOR, Parity.NON_ANCHOR)
#: Side branches: PARTS is needed by later passes of a slice, AHEAD by the contexts of the next
#: slice, RESIDUAL by its residual predictions, INTER and LOCAL are contexts beside others.
PARTS, AHEAD, RESIDUAL, INTER, LOCAL = "parts", "ahead", "residual", "inter", "local"


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
    ops: Operations,
    z_symbols: Any,
    code: PassCoder,
    y: Sequence[Real] | None = None,
    take: Callable[[int, Real], None] | None = None,
) -> Latents:
    """Symbols of z [B, h, w, N] and 2S coding passes -> the decoded latents.

    ``y``: when encoding, the S slices of the latents, float32 [B, 4h, 4w, C].
    ``take``: called with each slice when it is decoded, float32 [B, 4h, 4w, C]. Slices are then not
    kept in the result.
    """
    batch, height, width, _ = z_symbols.shape
    hyper = ops.hyper_synthesis(z_symbols)
    passes = _Passes(ops, hyper, ops.new_latents(batch, 4 * height, 4 * width))
    for i in range(ops.config.slices):
        passes.code_slice(i, code, None if y is None else y[i])
        if take is not None:
            take(i, passes.latents.y[i])
            passes.latents.y[i] = None
    return passes.latents


@dataclass(frozen=True)
class _Sums:
    """Partial sums of the contexts' first layers over all slices before but the last.

    They are kept until the slice is done, since side branches read them.
    """

    channel: Real | None = None
    inter: list[Real] | None = None


class _Passes:
    def __init__(self, ops: Operations, hyper: Act, latents: Latents) -> None:
        self.ops = ops
        self.hyper = hyper
        self.latents = latents
        config = ops.config
        self.hyper_means = ops.channels(hyper, config.M, 2 * config.M)
        # The hyper part of the entropy parameters' first layers depends on no pass. The first
        # slice needs its own at once.
        self.hyper_parts = {Parity.ANCHOR: self._hyper_parts(Parity.ANCHOR, range(1))}
        with ops.aside(PARTS):
            self.residual_sums = self._residual_sums(0)
            self.hyper_parts[Parity.NON_ANCHOR] = self._hyper_parts(Parity.NON_ANCHOR, range(1))
        self.sums = _Sums()
        if config.slices > 1:
            with ops.aside(AHEAD):
                ops.join(PARTS)  # which are needed first, and would be slower beside these
                for parity in PARITIES:
                    self.hyper_parts[parity] += self._hyper_parts(parity, range(1, config.slices))

    def _hyper_parts(self, parity: Parity, slices: range) -> list[Real]:
        layers = [entropy_parameters_layer(i, parity, 0) for i in slices]
        return self.ops.sums(layers, [self.hyper], at=parity)

    def _known(self, i: int) -> list[Act]:
        """What slice i knows long before it is coded: all slices before but the last."""
        return self.latents.q[: max(0, i - 1)]

    def _sums(self, i: int) -> _Sums:
        ops, known = self.ops, self._known(i)
        if not known:
            return _Sums()
        (channel,) = ops.sums([channel_context_layer(i)], known)
        if ops.config.variant == "mlic":
            return _Sums(channel)
        layers = [f"{prefix}.0" for prefix in inter_context_prefixes(i)]
        return _Sums(channel, ops.sums(layers, known))

    def _residual_sums(self, i: int) -> list[Real]:
        """Of the residual predictions' first layers over mu_h too; kept as the others are."""
        return self.ops.sums(_residual_layers(i), [self.hyper_means, *self._known(i)])

    def _begin_next(self, i: int, parity: Parity) -> None:
        """The sums of slice i, if there is one, beside a pass of the slice before.

        A pass leaves most of the GPU idle, and a decoder's range coder after it nearly all.
        """
        if i == self.ops.config.slices:
            return
        if parity is Parity.ANCHOR:
            with self.ops.aside(AHEAD):
                self.sums = self._sums(i)
        else:
            with self.ops.aside(RESIDUAL):
                self.residual_sums = self._residual_sums(i)

    def code_slice(self, i: int, code: PassCoder, y: Real | None) -> None:
        """Both passes of slice i. (MLIC, section 3; the float twin is MlicModel.code_latents.)"""
        ops, latents = self.ops, self.latents
        last = latents.q[i - 1] if i else None
        if last:
            ops.join(AHEAD)
        sums, residual_sums = self.sums, self.residual_sums
        residual_parts = residual_sums
        starts = {parity: parts[i] for parity, parts in self.hyper_parts.items()}
        shared: list[Act] = []
        contexts: list[Any] = []
        if last:
            with ops.aside(INTER):
                shared = self._inter_context(i, last, sums)
            shared.append(ops.channel_context(i, last, sums.channel))
            contexts = [ops.context_at(shared[-1], Parity.ANCHOR)]
            if ops.config.variant != "mlic":
                contexts = [ops.context_ahead(i, Parity.ANCHOR, len(shared), *contexts)]
            with ops.aside(PARTS):
                ops.join(RESIDUAL)
                residual_parts = ops.sums(
                    _residual_layers(i), [last], partials=residual_sums, first=i
                )
                q, k = ops.intra_queries_and_keys(i, last)
            ops.join(INTER)
            contexts[:0] = [ops.context_at(x, Parity.ANCHOR) for x in shared[:-1]]
        own = 1 + len(shared)  # number of the local context among the inputs
        for parity, residual_part in zip(PARITIES, residual_parts, strict=True):
            if parity is Parity.NON_ANCHOR:
                anchors = latents.q[i]
                with ops.aside(LOCAL):
                    contexts = [ops.local_context(i, anchors)]
                    if last:
                        contexts = [ops.context_ahead(i, parity, own, *contexts)]
                if last:
                    contexts.append(ops.squeeze(ops.intra_context(i, q, k, anchors), parity))
                ops.join(LOCAL)
            self._begin_next(i + 1, parity)
            indexes, means, symbols = ops.entropy_parameters(i, parity, starts[parity], contexts, y)
            if parity is Parity.ANCHOR:
                contexts = []  # large
                if shared:
                    with ops.aside(PARTS):
                        starts[Parity.NON_ANCHOR] = self._shared_part(i, shared)
            symbols = code(i, parity, indexes, means, symbols)
            if not ops.branches:
                shared = []
            ops.decoded(latents, i, symbols, means, parity)
            if not ops.branches:
                indexes = means = symbols = None
            if parity is Parity.ANCHOR:
                ops.join(PARTS)
            shared, contexts = [], []  # their memory is free for what follows
            ops.predict_residual(latents, i, parity, residual_part)

    def _inter_context(self, i: int, last: Act, sums: _Sums) -> list[Act]:
        """The context across slices, alone in a list; none in MLIC."""
        if self.ops.config.variant == "mlic":
            return []
        return [self.ops.inter_context(i, last, sums.inter)]

    def _shared_part(self, i: int, shared: Sequence[Act]) -> Real:
        """The non-anchors' first layer over hyper part and the contexts of both passes."""
        return self.ops.conv(
            entropy_parameters_layer(i, Parity.NON_ANCHOR, 0),
            shared,
            partial=self.hyper_parts[Parity.NON_ANCHOR][i],
            first=1,
            at=Parity.NON_ANCHOR,
        )


def _residual_layers(i: int) -> list[str]:
    return [residual_layer(i, parity, 0) for parity in PARITIES]
