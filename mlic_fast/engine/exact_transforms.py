"""Block transforms in the exact arithmetic of the entropy path: pixels that are equal everywhere.

The arithmetic: docs/arithmetic.md, section 9.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlic_fast.engine.operations import Operations, Real
from mlic_fast.engine.packed import PackedTransforms
from mlic_fast.models.mlic import Transforms

#: Halvings before the series of :func:`exact_exp`, and squarings after it.
HALVINGS = 10
NO_RATE = "this model has a variable rate: give rate, a tensor [1]"


class ExactTransforms:
    """g_a, h_a and g_s of a model with block transforms, like
    :class:`mlic_fast.engine.transforms.EngineTransforms`.

    Args:
        model: the transforms; its gains are copied.
        packed: the same in integers.
        ops: a backend for ``packed``.
    """

    def __init__(self, model: Transforms, packed: PackedTransforms, ops: Operations) -> None:
        self.packed, self.ops = packed, ops
        self._gains: tuple[Tensor, Tensor] | None = None
        if model.config.rates:
            logs = model.gain.log_gain, model.gain.log_inverse_gain
            self._gains = logs[0].detach().double(), logs[1].detach().double()
        self._analysis_scale, self._hyper_scale, self._synthesis_scale = (
            torch.from_numpy(each)
            for each in (packed.analysis_scale, packed.hyper_scale, packed.synthesis_scale)
        )

    def analyse(self, images: Tensor, rate: Tensor | None) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] -> float32 y [B, M, H/16, W/16] and z [B, N, H/64, W/64]."""
        return self.at_rate(self.analysis(images), rate)

    def analysis(self, images: Tensor) -> Real:
        """What all rates have in common: the input of :meth:`at_rate`."""
        return analysis(self.ops, images)

    def at_rate(self, latents: Real, rate: Tensor | None) -> tuple[Tensor, Tensor]:
        """y and z as of :meth:`analyse`."""
        ops = self.ops
        y = ops.scale(latents, self.scales(rate)[0])
        z = hyper_analysis(ops, ops.scale(y, self._hyper_scale))
        return ops.to_tensor(y), ops.to_tensor(z)

    def synthesise(self, y_hat: Tensor, rate: Tensor | None) -> Tensor:
        """Decoded latents [B, M, H/16, W/16] -> uint8 [B, 3, H, W]."""
        ops = self.ops
        return synthesis(ops, ops.scale(ops.from_tensor(y_hat), self.scales(rate)[1]))

    def scales(self, rate: Tensor | None) -> tuple[Tensor, Tensor]:
        """What g_a gives times the first, [M], are latents; these times the second are for g_s.

        The gains at ``rate`` [1], and the scales of the channels.
        """
        if self._gains is None:
            return self._analysis_scale, self._synthesis_scale
        gain, inverse = (exact_gain(each, rate) for each in self._gains)
        return gain * self._analysis_scale, inverse * self._synthesis_scale


def analysis(ops: Operations, images: Tensor) -> Real:
    """g_a: uint8 [B, 3, H, W] -> y [B, H/16, W/16, M], its channels scaled."""
    fine, coarse = ops.config.analysis_blocks
    x = ops.conv("g_a.embed", [ops.to_blocks(images)])
    x = ops.mixing_blocks("g_a.fine", fine, x)
    x = ops.conv("g_a.down", [ops.space_to_depth(ops.quantise(x, "g_a.fine"))])
    return ops.mixing_blocks("g_a.coarse", coarse, x)


def hyper_analysis(ops: Operations, y: Real) -> Real:
    """h_a: latents [B, H/16, W/16, M], their channels scaled -> z [B, H/64, W/64, N]."""
    x = ops.quantise(y, "h_a")
    for index in (0, 2, 4, 6):
        layer = f"h_a.reduction.{index}"
        x = ops.conv(layer, [x], activation=True, out=layer)
        if index == 4:
            x = ops.every_second(x)
    return ops.conv("h_a.reduction.8", [x])[:, ::2, ::2]


def synthesis(ops: Operations, y: Real) -> Tensor:
    """g_s: latents [B, H/16, W/16, M], their channels scaled -> uint8 [B, 3, H, W]."""
    fine, coarse = ops.config.synthesis_blocks
    x = ops.mixing_blocks("g_s.coarse", coarse, y)
    x = ops.depth_to_space(ops.conv("g_s.up", [ops.quantise(x, "g_s.coarse")]))
    x = ops.mixing_blocks("g_s.fine", fine, x)
    return ops.to_pixels(ops.conv("g_s.project", [ops.quantise(x, "g_s.fine")]))


def exact_gain(log_gain: Tensor, rate: Tensor | None) -> Tensor:
    """:class:`mlic_fast.models.gain.GainUnits` at ``rate`` [1], exactly: float32 [M]."""
    if rate is None:
        raise ValueError(NO_RATE)
    last = len(log_gain) - 1
    rate = rate.double().clamp(0, last)
    low = rate.floor().long().clamp(max=max(last - 1, 0))
    weight = (rate - low)[:, None]
    mixed = log_gain[low] * (1 - weight) + log_gain[(low + 1).clamp(max=last)] * weight
    return exact_exp(mixed[0]).float()


def exact_exp(x: Tensor) -> Tensor:
    """exp of float64 values between -30 and 30, the same bits on every machine: only products and
    sums, whose order is written here. Within 1e-12 of its magnitude.
    """
    t = x * 2.0**-HALVINGS
    p = torch.ones_like(t)
    for n in range(8, 0, -1):
        p = p * (t * (1.0 / n)) + 1.0
    for _ in range(HALVINGS):
        p = p * p
    return p
