"""Block transforms on a GPU, in the exact arithmetic: pixels and latents are those of a CPU.

Between layers the picture goes twice, as the float32 that is carried and as the activation that the
next layer takes: one kernel writes both.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mlic_fast.engine.exact_transforms import NO_RATE, ExactTransforms
from mlic_fast.engine.gpu import GpuOps
from mlic_fast.engine.operations import Act
from mlic_fast.engine.packed import PackedTransforms
from mlic_fast.kernels import blocks


class GpuTransforms(ExactTransforms):
    """Launches alone, no synchronisation.

    Args:
        packed: the transforms in integers.
        device: as in :class:`GpuOps`.
    """

    ops: GpuOps

    def __init__(self, packed: PackedTransforms, device: torch.device) -> None:
        super().__init__(packed, GpuOps(packed, device))
        factors = np.stack([packed.analysis_scale, packed.synthesis_scale])
        self._factors = torch.from_numpy(factors).to(device)
        self._hyper_scale = torch.tensor(packed.hyper_scale, device=device)
        self._logs: Tensor | None = None
        if packed.config.rates:
            logs = np.stack([packed.log_gain, packed.log_inverse_gain]).astype(np.float64)
            self._logs = torch.from_numpy(logs).to(device)

    def analyse(self, images: Tensor, rate: Tensor | None) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] -> float32 y [B, M, H/16, W/16] and z [B, N, H/64, W/64]."""
        ops, (fine, coarse) = self.ops, self.packed.config.analysis_blocks
        r, q = ops.carried("g_a.embed", ops.to_blocks(images), out="g_a.fine")
        _, q = self._blocks("g_a.fine", fine, r, q)
        r, q = ops.carried("g_a.down", ops.space_to_depth(q), out="g_a.coarse")
        r, _ = self._blocks("g_a.coarse", coarse, r, q)
        y, x = ops.scaled(r, self.scales(rate)[0], self._hyper_scale, out="h_a")
        for index in (0, 2, 4, 6):
            layer = f"h_a.reduction.{index}"
            x = ops.conv(layer, [x], activation=True, out=layer)
            if index == 4:
                x = ops.every_second(x)
        z: Tensor = ops.conv("h_a.reduction.8", [x])[:, ::2, ::2]
        return y.permute(0, 3, 1, 2), z.permute(0, 3, 1, 2)

    def synthesise(self, y_hat: Tensor, rate: Tensor | None) -> Tensor:
        """Decoded latents [B, M, H/16, W/16] -> uint8 [B, 3, H, W]."""
        ops, (fine, coarse) = self.ops, self.packed.config.synthesis_blocks
        y = y_hat.permute(0, 2, 3, 1).contiguous()
        r, q = ops.scaled(y, self.scales(rate)[1], out="g_s.coarse")
        _, q = self._blocks("g_s.coarse", coarse, r, q)
        r, q = ops.carried("g_s.up", q, spread=True, out="g_s.fine")
        _, q = self._blocks("g_s.fine", fine, r, q)
        return ops.pixels("g_s.project", q)

    def scales(self, rate: Tensor | None) -> tuple[Tensor, Tensor]:
        scales = self._factors
        if self._logs is not None:
            if rate is None:
                raise ValueError(NO_RATE)
            scales = torch.empty_like(self._factors)
            blocks.scales(self._logs, rate, self._factors, out=scales)
        return scales[0], scales[1]

    def _blocks(self, stage: str, count: int, r: Tensor, q: Act) -> tuple[Tensor, Act]:
        """All blocks of a stage; both are the picture. Overwrites ``r``."""
        ops = self.ops
        for index in range(count):
            names = ("mix_in", "depthwise", "mix_out", "expand", "contract")
            mix_in, depthwise, mix_out, expand, contract = (f"{stage}.{index}.{x}" for x in names)
            x = ops.conv(mix_in, [q], activation=True, out=mix_in)
            x = ops.depthwise(depthwise, x, out=depthwise)
            q = ops.carried(mix_out, x, residual=r, out=stage)[1]
            x = ops.conv(expand, [q], activation=True, out=expand)
            q = ops.carried(contract, x, residual=r, out=stage)[1]
        return r, q
