"""The CPU backend of the entropy path: the operations of the specification on C++ kernels.

Bit-equal to :class:`mlic_fast.engine.arithmetic.SpecOps`, whose interface it has, on every machine,
for every instruction set and any number of threads. The operations themselves are in
:mod:`mlic_fast.engine.cpu.cpu_kernels`; here is how networks use them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlic_fast.engine.arithmetic import WINDOW, Act, Float
from mlic_fast.engine.bands import bands, in_bands
from mlic_fast.engine.cpu.cpu_kernels import KernelOps, Later
from mlic_fast.engine.operations import (
    Latents,
    inter_context_prefixes,
    residual_layer,
    residual_layers,
)
from mlic_fast.models.parity import Parity


class OneColour(NamedTuple):
    """An activation at one colour, which is squeezed when it is used."""

    x: Act
    parity: Parity


def _rows(x: Any, at: slice) -> Any:
    """Some rows of an activation, of an array [B, H, ..], of a sum that is made later, or None."""
    if isinstance(x, Act):
        return x.rows(at)
    if isinstance(x, Later):
        return Later([_rows(each, at) for each in x.inputs], x.at)
    return None if x is None else x[:, at]


class CpuOps(KernelOps):
    """The CPU backend: large pictures run in bands, and sums are made when they are used.

    Args:
        packed: the networks.
        isa: as in :func:`mlic_fast.engine.cpu.instruction_sets.instruction_set`.
        threads: default: see :func:`mlic_fast.engine.surroundings.thread_count`.

    Raises:
        EngineError: for an instruction set that is unknown or not supported.
        ValueError: here, weights beyond what the arithmetic allows; in the operations, arrays whose
            shapes or dtypes do not fit.
    """

    def sums(
        self,
        layers: Sequence[str],
        inputs: Sequence[Act],
        *,
        partials: Sequence[Later] | None = None,
        first: int = 0,
        at: Parity | None = None,
    ) -> list[Later]:
        before = partials or [Later([], at)] * len(layers)
        return [Later([*partial.inputs, *inputs], at) for partial in before]

    def inter_attention(self, i: int, last: Act, starts: Sequence[Any] | None) -> Act:
        batch, height, width, _ = last.q.shape
        channels = self.config.slice_channels
        linear = self.config.variant == "mlic_plus_plus" and channels % 32 == 0
        if len(bands(height, width, 0)) == 1 or not linear:
            return super().inter_attention(i, last, starts)
        out = f"global_inter_context.{i}.attention"
        r = np.empty((batch, height, width, i * channels), np.int16)
        for first in range(0, i * channels, channels):  # no head depends on another
            part = slice(first, first + channels)
            q, k, v = (
                self._project_part(prefix, part, last, start)
                for prefix, start in zip(
                    inter_context_prefixes(i), starts or 3 * [None], strict=True
                )
            )
            r[..., part] = self.linear_attention(q, k, v, channels // 32, out).q
        return Act(r, self.exponents[out])

    def _project_part(self, prefix: str, part: slice, x: Act, partial: Later | None) -> Act:
        """A part of the channels of :meth:`project`."""
        names = [f"{prefix}.{index}" for index in (0, 1)]
        pointwise, depthwise = (self._part(name, part) for name in names)
        x = self.conv(pointwise, [x], partial=partial, out=names[0])
        return self.depthwise(depthwise, x, out=names[1])

    # -- networks in bands, for large pictures ------------------------------------------------

    def local_context(self, i: int, anchors: Act) -> Act:
        network = super().local_context
        if self.config.variant == "mlic":  # it takes little memory
            return network(i, anchors)
        out = f"local_context.{i}.mlp.fc2"
        return self._in_bands(anchors, WINDOW // 2, lambda at: network(i, _rows(anchors, at)), out)

    def channel_context(self, i: int, last: Act, start: Any = None) -> Act:
        network = super().channel_context
        layers = [f"channel_context.{i}.fushion.{index}" for index in (0, 2, 4)]
        return self._in_bands(
            last,
            self._halo(layers),
            lambda at: network(i, _rows(last, at), _rows(start, at)),
            layers[-1],
        )

    def _inter_projection(self, i: int, x: Act) -> Act:
        return self._projection(super()._inter_projection, f"global_inter_context.{i}", i, x)

    def _intra_projection(self, i: int, x: Act) -> Act:
        return self._projection(super()._intra_projection, f"global_intra_context.{i}", i, x)

    def _projection(self, network: Callable[[int, Act], Act], prefix: str, i: int, x: Act) -> Act:
        layers = [f"{prefix}.{name}" for name in ("reprojection", "mlp.0", "mlp.2", "mlp.4")]
        return self._in_bands(
            x, self._halo(layers), lambda at: network(i, _rows(x, at)), layers[-1]
        )

    def predict_residual(self, latents: Latents, i: int, parity: Parity, start: Any) -> None:
        q = latents.q[i]
        layers = [
            residual_layer(i, parity, index) for index in residual_layers(self.config.weight_family)
        ]

        def network(at: slice) -> tuple[Float]:
            x = self._residual_hidden(i, parity, _rows(q, at), _rows(start, at))
            return (self.conv(layers[-1], [x], at=parity),)

        _, height, width, _ = q.q.shape
        (r,) = in_bands(bands(height, width, self._halo(layers)), network)
        self._set(latents, i, self.add_residual(latents.y[i], r, parity))

    def entropy_parameters(
        self, i: int, parity: Parity, start: Any, contexts: Sequence[Any], y: Float | None
    ) -> tuple[Any, Float, Any]:
        whole = super().entropy_parameters

        def network(at: slice) -> tuple[Any, ...]:
            inputs = [self._context_rows(x, at) for x in contexts]
            found = whole(i, parity, _rows(start, at), inputs, None if y is None else y[:, at])
            return found if y is not None else found[:2]

        first = start if isinstance(start, np.ndarray) else start.inputs[0].q
        _, height, width, _ = first.shape
        indexes, means, *symbols = in_bands(bands(height, width, 0), network)
        return indexes, means, symbols[0] if symbols else None

    def context_at(self, context: Act, parity: Parity) -> OneColour:
        return OneColour(context, parity)

    def _context_rows(self, context: Act | OneColour, at: slice) -> Act:
        if isinstance(context, OneColour):
            return self.squeeze(context.x.rows(at), context.parity)
        return context.rows(at)

    def gdn_of_rows(
        self,
        layer: str,
        x: Act,
        halo: int,
        network: Callable[[slice], tuple[Float, Float]],
        *,
        inverse: bool = False,
        out: str,
    ) -> Act:
        batch, height, width, _ = x.q.shape
        found = bands(height, width, halo)
        if len(found) == 1:
            return super().gdn_of_rows(layer, x, halo, network, inverse=inverse, out=out)
        channels = len(self.layers[layer].bias)
        result, _ = self._room((batch, height, width, channels), out)
        for band in found:
            r, skip = network(band.seen)
            rows = r.shape[1] // skip.shape[1]  # of r, a row of what is added
            added = slice(band.inner.start // rows, band.inner.stop // rows)
            for i in range(batch):
                image = slice(i, i + 1)
                into = result.q[image, band.rows]
                parts = r[image, band.inner], skip[image, added]
                self.gdn(layer, *parts, inverse=inverse, out=out, into=into)
        return result

    def _in_bands(self, x: Act, halo: int, network: Callable[[slice], Act], out: str) -> Act:
        _, height, width, _ = x.q.shape
        (q,) = in_bands(bands(height, width, halo), lambda at: (network(at).q,))
        return Act(q, self.exponents[out])

    def _halo(self, layers: Sequence[str]) -> int:
        """Rows that layers, one after the other, see on each side."""
        return sum(self.layers[layer].segments[0].weight.shape[1] // 2 for layer in layers)
