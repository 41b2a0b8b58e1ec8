"""Transforms in the exact arithmetic of the entropy path: pixels that are equal everywhere.

The arithmetic: docs/arithmetic.md, sections 9 and 10.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mlic_fast.engine import block_networks, residual_networks
from mlic_fast.engine.bands import bands, in_bands
from mlic_fast.engine.operations import Act, Operations, Real
from mlic_fast.engine.packing.packed import PackedTransforms

Float = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]

#: Halvings before the series of :func:`exact_exp`, and squarings after it.
HALVINGS = 10
#: The layers of h_a before the first that leaves positions out, each of 3x3.
_HYPER_HIDDEN = ("h_a.reduction.0", "h_a.reduction.2")
#: Modules with ``analysis`` and ``synthesis``, by the kind of transforms.
_NETWORKS = {"residual": residual_networks, "blocks": block_networks}
NO_RATE = "this model has a variable rate: give rate"


class ExactTransforms:
    """g_a, h_a and g_s on numpy arrays.

    Args:
        packed: the transforms in integers.
        ops: a backend for ``packed``.
    """

    def __init__(self, packed: PackedTransforms, ops: Operations) -> None:
        self.packed, self.ops, self._config = packed, ops, packed.config
        self.networks: Any = _NETWORKS[packed.config.transforms]

    def analyse(self, images: Any, rate: Any) -> tuple[Any, Any]:
        """uint8 [B, 3, H, W] -> float32 y [B, M, H/16, W/16] and z [B, N, H/64, W/64]."""
        y, z = self.at_rate(self.analysis(images), self.scales(rate)[0])
        return np.moveaxis(y, -1, 1), np.moveaxis(z, -1, 1)

    def analysis(self, images: Any) -> Real:
        """g_a, the same for all rates: uint8 [B, 3, H, W] -> the input of :meth:`at_rate`."""
        images = np.asarray(images)
        height, width = images.shape[2:]
        halo = self._config.transform_kind.analysis_halo(self._config)

        def network(at: slice) -> tuple[Real]:
            part = np.ascontiguousarray(images[:, :, 16 * at.start : 16 * at.stop])
            return (self.networks.analysis(self.ops, part),)

        (y,) = in_bands(bands(height // 16, width // 16, halo), network)
        return y

    def at_rate(self, latents: Real, factors: Float) -> tuple[Float, Float]:
        """y and z as of :meth:`analyse`, but channels last: from the result of :meth:`analysis`
        [B, H/16, W/16, M] and the first of :meth:`scales`.
        """
        ops = self.ops
        y = ops.scale(latents, factors)

        def network(at: slice) -> tuple[Any]:
            part = ops.scale(np.ascontiguousarray(y[:, at]), self.packed.hyper_scale)
            return (_hyper_hidden(ops, ops.quantise(part, "h_a")).q,)

        (q,) = in_bands(bands(y.shape[1], y.shape[2], len(_HYPER_HIDDEN)), network)
        return y, _hyper_end(ops, Act(q, ops.exponents[_HYPER_HIDDEN[-1]]))

    def synthesise(self, y_hat: Any, rate: Any) -> Any:
        """Decoded latents [B, M, H/16, W/16] -> uint8 [B, 3, H, W]."""
        y = np.moveaxis(np.asarray(y_hat), 1, -1)
        return self.synthesis(y, self.scales(rate)[1])

    def synthesis(self, y: Real, factors: Float) -> Any:
        """:meth:`synthesise` of latents [B, H/16, W/16, M] and the second of :meth:`scales`."""
        _, height, width, _ = y.shape

        def pixels(at: slice) -> Any:
            part = np.ascontiguousarray(y[:, at])
            return self.networks.synthesis(self.ops, self.ops.scale(part, factors))

        found = bands(height, width, self._config.transform_kind.synthesis_halo(self._config))
        if len(found) == 1:
            return pixels(found[0].seen)
        images = np.empty((len(y), 3, 16 * height, 16 * width), np.uint8)
        for band in found:
            inner = slice(16 * band.inner.start, 16 * band.inner.stop)
            rows = slice(16 * band.rows.start, 16 * band.rows.stop)
            images[:, :, rows] = pixels(band.seen)[:, :, inner]
        return images

    def scales(self, rate: Any) -> tuple[Any, Any]:
        """Factors [M] from the result of g_a to latents, and from latents to the input of g_s.

        They hold the gains at ``rate`` and the scales of the channels.
        """
        packed = self.packed
        if not packed.config.rates:
            return packed.analysis_scale, packed.synthesis_scale
        if rate is None:
            raise ValueError(NO_RATE)
        gain, inverse = (
            exact_gain(logs.astype(np.float64), float(rate))
            for logs in (packed.log_gain, packed.log_inverse_gain)
        )
        return gain * packed.analysis_scale, inverse * packed.synthesis_scale


def hyper_analysis(ops: Operations, y: Real) -> Real:
    """h_a: latents [B, H/16, W/16, M], their channels scaled -> z [B, H/64, W/64, N]."""
    return hyper_layers(ops, ops.quantise(y, "h_a"))


def hyper_layers(ops: Operations, x: Act) -> Real:
    """h_a of the quantised latents [B, H/16, W/16, M] -> z [B, H/64, W/64, N]."""
    return _hyper_end(ops, _hyper_hidden(ops, x))


def _hyper_hidden(ops: Operations, x: Act) -> Act:
    """[B, H/16, W/16, N]."""
    for layer in _HYPER_HIDDEN:
        x = ops.conv(layer, [x], gelu_after=True, out=layer)
    return x


def _hyper_end(ops: Operations, x: Act) -> Real:
    layer = "h_a.reduction.4"
    x = ops.strided_conv(layer, x, gelu_after=True, out=layer)
    layer = "h_a.reduction.6"
    x = ops.conv(layer, [x], gelu_after=True, out=layer)
    return ops.strided_conv("h_a.reduction.8", x)


def exact_gain(log_gain: Double, rate: float) -> Float:
    """:class:`mlic_fast.models.gain.GainUnits` at ``rate``, which is float32, exactly: [M]."""
    last = len(log_gain) - 1
    rate = min(max(float(np.float32(rate)), 0.0), float(last))
    low = min(int(rate), max(last - 1, 0))
    weight = rate - low
    mixed = log_gain[low] * (1 - weight) + log_gain[min(low + 1, last)] * weight
    return exact_exp(mixed).astype(np.float32)


def exact_exp(x: Double) -> Double:
    """exp of float64 values between -30 and 30, the same bits on every machine: only products and
    sums, whose order is written here. Within 1e-12 of its magnitude.
    """
    t = x * 2.0**-HALVINGS
    p = np.ones_like(t)
    for n in range(8, 0, -1):
        p = p * (t * (1.0 / n)) + 1.0
    for _ in range(HALVINGS):
        p = p * p
    return p
