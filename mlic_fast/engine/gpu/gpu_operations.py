"""The GPU backend of the entropy path: the operations and networks on Triton kernels.

Bit-equal to :class:`mlic_fast.engine.arithmetic.SpecOps`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mlic_fast.engine.gpu.gpu_layers import GpuLayers
from mlic_fast.engine.operations import Act, entropy_parameters_layer
from mlic_fast.kernels import (
    configs,
    entropy_parameters,
    linear_attention,
    softmax_attention,
    window_attention,
)
from mlic_fast.kernels.layouts import FULL, ONE_COLOUR, SQUEEZED, Grid, Input
from mlic_fast.kernels.window_weights import WindowWeights
from mlic_fast.models.checkerboard import Parity


class GpuOps(GpuLayers):
    """The operations of the exact arithmetic on Triton kernels.

    Args:
        packed: the networks.
        device: a CUDA device; the CPU where TRITON_INTERPRET=1 was set before the import.
    """

    def context_ahead(self, i: int, parity: Parity, number: int, context: Act) -> Act | Tensor:
        """What the first layer adds for this context, float32 [B, H, W/2, a].

        On sm_120 the pass kernel would spill, on others it has not been compiled for all models.
        """
        if configs.architecture(self.device) not in ("sm90", "interpreter"):
            return context
        layer = entropy_parameters_layer(i, parity, 0)
        zero = self._once(
            ("zero", len(self.layers[layer].bias)),
            lambda: torch.zeros(len(self.layers[layer].bias), device=self.device),
        )
        real: Tensor = self.conv(layer, [context], partial=zero, first=number, at=parity)
        return real

    def entropy_parameters(
        self,
        i: int,
        parity: Parity,
        start: Tensor,
        contexts: Sequence[Act | Tensor],
        y: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """All four layers in one launch, and the rounding too."""
        layers = [entropy_parameters_layer(i, parity, index) for index in (0, 2, 4, 6)]
        exponents = [x.exponent if isinstance(x, Act) else None for x in contexts]
        weights = self._once(
            (layers[0], *exponents),
            lambda: entropy_parameters.PassWeights.pack(
                [self.layers[layer] for layer in layers],
                exponents,
                [self.exponents[layer] for layer in layers[:3]],
                self.device,
            ),
        )
        shape = (*start.shape[:3], self.config.slice_channels)
        indexes = torch.empty(shape, dtype=torch.uint8, device=self.device)
        means = torch.empty(shape, dtype=torch.float32, device=self.device)
        symbols = None
        if y is not None:
            symbols = torch.empty(shape, dtype=torch.int32, device=self.device)
        batch, height, half, _ = shape
        entropy_parameters.entropy_parameters(
            start,
            [x.q if isinstance(x, Act) else x for x in contexts],
            weights,
            int(parity),
            Grid(batch, height, 2 * half),
            indexes=indexes,
            means=means,
            y=y,
            symbols=symbols,
        )
        return indexes, means, symbols

    def local_context(self, i: int, anchors: Act) -> Act:
        if self.config.variant == "mlic":
            return super().local_context(i, anchors)
        prefix = f"local_context.{i}"
        weights = self._once(
            prefix,
            lambda: WindowWeights.pack(
                self.layers, self.exponents, prefix, f"y_hat.{i}", self.device
            ),
        )
        grid = self._grid(anchors)
        out = self._planes(grid, 2 * self.config.slice_channels, squeezed=True)
        window_attention.local_context(anchors.q.planes, weights, out=out)
        colour = int(Parity.NON_ANCHOR)
        return Act(Input(out, SQUEEZED, colour), self.exponents[f"{prefix}.mlp.fc2"])

    def linear_attention(self, q: Act, k: Act, v: Act, heads: int, out: str) -> Act:
        return self._attend(linear_attention.linear_attention, q, k, v, heads, out)

    def softmax_attention(
        self, q: Act, k: Act, v: Act, heads: int, out: str, *, exclude: bool = False
    ) -> Act:
        launch = softmax_attention.softmax_attention
        return self._attend(launch, q, k, v, heads, out, exclude=exclude)

    def _attend(
        self,
        launch: Callable[..., None],
        q: Act,
        k: Act,
        v: Act,
        heads: int,
        out: str,
        **options: Any,
    ) -> Act:
        """The output has the layout in which the queries are read: squeezed, if at one colour."""
        squeezed = q.q.kind == ONE_COLOUR
        r = self._planes(self._grid(q), q.q.planes.shape[-1], squeezed=squeezed)
        launch(
            q.q,
            k.q,
            v.q,
            heads,
            (q.exponent, k.exponent, v.exponent),
            out=r,
            out_scale=self._scale(out),
            **options,
        )
        kind, colour = (SQUEEZED, q.q.colour) if squeezed else (FULL, 0)
        return Act(Input(r, kind, colour), self.exponents[out])
