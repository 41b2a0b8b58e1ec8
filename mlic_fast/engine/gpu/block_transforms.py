"""Block transforms on a GPU, in the exact arithmetic: pixels and latents are those of a CPU.

Between layers the picture goes twice, as the float32 that is carried and as the activation that the
next layer takes: one kernel writes both.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mlic_fast.engine.exact_transforms import NO_RATE, ExactTransforms, hyper_layers
from mlic_fast.engine.gpu.gpu_operations import GpuOps
from mlic_fast.engine.operations import Act
from mlic_fast.engine.packing.packed import PackedTransforms


class GpuTransforms(ExactTransforms):
    """Launches alone, no synchronisation.

    Args:
        packed: the transforms in integers.
        device: as in :class:`GpuOps`.
    """

    ops: GpuOps

    def __init__(self, packed: PackedTransforms, device: torch.device) -> None:
        super().__init__(packed, GpuOps(packed, device))
        self._analysis = torch.tensor(packed.analysis_scale, device=device)
        self._synthesis = torch.tensor(packed.synthesis_scale, device=device)
        self._hyper_scale = torch.tensor(packed.hyper_scale, device=device)
        self._logs: Tensor | None = None
        if packed.config.rates:
            logs = np.stack([packed.log_gain, packed.log_inverse_gain]).astype(np.float64)
            self._logs = torch.from_numpy(logs).to(device)

    def analyse(self, images: Tensor, rate: Tensor | None) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] -> float32 y [B, M, H/16, W/16] and z [B, N, H/64, W/64]."""
        ops, (fine, coarse) = self.ops, self.packed.config.analysis_blocks
        r, q = ops.carried("g_a.embed", ops.to_blocks(images), out="g_a.fine")
        q = self._blocks("g_a.fine", fine, r, q, gather=True)
        r, q = ops.carried("g_a.down", q, out="g_a.coarse")
        self._blocks("g_a.coarse", coarse, r, q)
        y, x = ops.scaled(r, self._analysis, self._hyper_scale, *self._gains(0, rate), out="h_a")
        z: Tensor = hyper_layers(ops, x)
        return y.permute(0, 3, 1, 2), z.permute(0, 3, 1, 2)

    def synthesise(self, y_hat: Tensor, rate: Tensor | None) -> Tensor:
        """Decoded latents [B, M, H/16, W/16] -> uint8 [B, 3, H, W]."""
        ops, (fine, coarse) = self.ops, self.packed.config.synthesis_blocks
        y = y_hat.permute(0, 2, 3, 1).contiguous()
        r, q = ops.scaled(y, self._synthesis, None, *self._gains(1, rate), out="g_s.coarse")
        q = self._blocks("g_s.coarse", coarse, r, q)
        r, q = ops.carried("g_s.up", q, spread=True, out="g_s.fine")
        q = self._blocks("g_s.fine", fine, r, q)
        return ops.pixels("g_s.project", q)

    def _gains(self, side: int, rate: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The logarithms of g_a's or g_s's gains, and the rate to take them at."""
        if self._logs is None:
            return None, None
        if rate is None:
            raise ValueError(NO_RATE)
        return self._logs[side], rate

    def _blocks(self, stage: str, count: int, r: Tensor, q: Act, *, gather: bool = False) -> Act:
        """All blocks of a stage: ``r`` and ``q`` are the picture. Overwrites ``r``, and returns the
        activation; with ``gather`` what space_to_depth makes of it, and ``r`` lacks the last layer.
        """
        ops = self.ops
        for index in range(count):
            names = ("mix_in", "depthwise", "mix_out", "expand", "contract")
            mix_in, depthwise, mix_out, expand, contract = (f"{stage}.{index}.{x}" for x in names)
            x = ops.conv(mix_in, [q], gelu_after=True, out=mix_in)
            x = ops.depthwise(depthwise, x, out=depthwise)
            q = ops.carried(mix_out, x, residual=r, out=stage)[1]
            x = ops.conv(expand, [q], gelu_after=True, out=expand)
            if gather and index == count - 1:
                return ops.gathered(contract, x, residual=r, out=stage)
            q = ops.carried(contract, x, residual=r, out=stage)[1]
        return q
