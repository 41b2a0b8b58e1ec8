"""Probability models of the latents, with the parameter names of CompressAI.

The integer tables made here are CompressAI's (16 bits, an escape entry), for the reference engine.
The codec's own tables are made in :mod:`mlic_fast.coder`.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlic_fast.errors import CheckpointError
from mlic_fast.models.compressai_import import pmf_to_quantized_cdf
from mlic_fast.models.layers import LowerBound

TAIL_MASS = 1e-9
LIKELIHOOD_BOUND = 1e-9
SCALE_MIN, SCALE_MAX, SCALE_LEVELS = 0.11, 256.0, 64


def scale_table() -> Tensor:
    """The 64 log-spaced scales of the papers, 0.11 .. 256."""
    return torch.linspace(
        math.log(SCALE_MIN), math.log(SCALE_MAX), SCALE_LEVELS, dtype=torch.float32
    ).exp()


def round_ste(x: Tensor) -> Tensor:
    """Rounding, element by element, whose gradient is the identity (straight-through)."""
    return x + (torch.round(x) - x).detach() if x.requires_grad else torch.round(x)


class EntropyModel(nn.Module):
    """Tables for CompressAI's coder: ``_quantized_cdf`` [T, L], ``_cdf_length``, ``_offset``."""

    _offset: Tensor
    _quantized_cdf: Tensor
    _cdf_length: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.likelihood_lower_bound = LowerBound(LIKELIHOOD_BOUND)
        for name in ("_offset", "_quantized_cdf", "_cdf_length"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int32))

    def _set_tables(self, pmf: Tensor, lengths: Tensor, tails: Tensor, offsets: Tensor) -> None:
        cdf = torch.zeros(len(pmf), int(lengths.max()) + 2, dtype=torch.int32)
        for row, p, length, tail in zip(cdf, pmf.cpu(), lengths.tolist(), tails.cpu(), strict=True):
            values = pmf_to_quantized_cdf([*p[:length].tolist(), float(tail)], 16)
            row[: len(values)] = torch.tensor(values, dtype=torch.int32)
        self._quantized_cdf = cdf.to(pmf.device)
        self._cdf_length = (lengths + 2).to(pmf.device, torch.int32)
        self._offset = offsets.to(pmf.device, torch.int32)

    def check_tables(self, count: int) -> None:
        """Raise ValueError unless there are ``count`` tables as CompressAI's coder needs, or none.

        That coder checks nothing itself: it would read beyond a table that is not one.
        """
        cdf, lengths = self._quantized_cdf, self._cdf_length
        if not (cdf.numel() or lengths.numel() or self._offset.numel()):
            return
        if cdf.shape[:1] + lengths.shape + self._offset.shape != (count,) * 3 or cdf.dim() != 2:
            raise ValueError(f"there must be {count} of them, of a length and an offset each")
        last = lengths.long() - 1
        if last.min() < 2 or last.max() >= cdf.shape[1]:
            raise ValueError("a length is not 3 to that of the longest table")
        steps = cdf[:, 1:] - cdf[:, :-1]
        inside = torch.arange(cdf.shape[1] - 1) < last[:, None]
        ends = cdf.gather(1, last[:, None])
        if bool((cdf[:, 0] != 0).any() or (ends != 1 << 16).any() or (steps[inside] <= 0).any()):
            raise ValueError("a table does not rise from 0 to 65536")

    def tables(self) -> tuple[list[list[int]], list[int], list[int]]:
        """CDFs, their lengths and offsets as the lists that CompressAI's coder takes."""
        if not self._quantized_cdf.numel():
            raise RuntimeError("the tables are not made yet: call model.update() first")
        return self._quantized_cdf.tolist(), self._cdf_length.tolist(), self._offset.tolist()


class EntropyBottleneck(EntropyModel):
    """Factorised prior of the hyper-latents (Balle et al., ICLR 2018, appendix 6.1).

    Each of the N channels has its own cumulative density: layers of widths 1, 3, 3, 3, 3, 1.
    """

    target: Tensor
    WIDTHS = (1, 3, 3, 3, 3, 1)
    INITIAL_SCALE = 10.0

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = len(self.WIDTHS) - 1
        scale = self.INITIAL_SCALE ** (1 / layers)
        self.matrices, self.biases, self.factors = (nn.ParameterList() for _ in range(3))
        for i, (fan_in, fan_out) in enumerate(zip(self.WIDTHS, self.WIDTHS[1:], strict=False)):
            value = math.log(math.expm1(1 / scale / fan_out))
            self.matrices.append(nn.Parameter(torch.full((channels, fan_out, fan_in), value)))
            self.biases.append(nn.Parameter(torch.empty(channels, fan_out, 1).uniform_(-0.5, 0.5)))
            if i < layers - 1:
                self.factors.append(nn.Parameter(torch.zeros(channels, fan_out, 1)))
        start = torch.tensor([-self.INITIAL_SCALE, 0.0, self.INITIAL_SCALE], dtype=torch.float32)
        self.quantiles = nn.Parameter(torch.empty(channels, 1, 3).copy_(start))
        logit = math.log(2 / TAIL_MASS - 1)
        self.register_buffer("target", torch.tensor([-logit, 0.0, logit], dtype=torch.float32))

    def medians(self) -> Tensor:
        """[1, N, 1, 1]."""
        return self.quantiles[:, 0, 1].detach().reshape(1, -1, 1, 1)

    def logits(self, x: Tensor, detach: bool = False) -> Tensor:
        """Logit of the cumulative density at x [N, 1, K]."""
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            factor = self.factors[i] if i < len(self.factors) else None
            if detach:
                matrix, bias = matrix.detach(), bias.detach()
                factor = None if factor is None else factor.detach()
            x = F.softplus(matrix) @ x + bias
            if factor is not None:
                x = x + torch.tanh(factor) * torch.tanh(x)
        return x

    def likelihood(self, z: Tensor) -> Tensor:
        """Probability of the unit interval around z, [B, N, H, W] -> the same shape."""
        with torch.autocast(z.device.type, enabled=False):
            values = z.float().transpose(0, 1)
            shape = values.shape
            values = values.reshape(shape[0], 1, -1)
            likelihood = torch.sigmoid(self.logits(values + 0.5))
            likelihood = likelihood - torch.sigmoid(self.logits(values - 0.5))
            return self.likelihood_lower_bound(likelihood).reshape(shape).transpose(0, 1)

    def forward(self, z: Tensor) -> Tensor:
        """Likelihood of z [B, N, H, W]; noise in training, rounding about the medians otherwise."""
        if self.training:
            return self.likelihood(z + torch.rand_like(z) - 0.5)
        return self.likelihood(torch.round(z - self.medians()) + self.medians())

    def auxiliary_loss(self) -> Tensor:
        """Drives the quantiles to the tails and the median of the density."""
        return (self.logits(self.quantiles, detach=True) - self.target).abs().sum()

    @torch.no_grad()
    def update(self) -> None:
        """Make the integer tables from the density."""
        low, median, high = self.quantiles[:, 0].T
        minima = torch.ceil(median - low).clamp(min=0).int()
        maxima = torch.ceil(high - median).clamp(min=0).int()
        lengths = minima + maxima + 1
        if not bool(((median - low).abs() + (high - median).abs() < 1 << 15).all()):
            raise CheckpointError("the factorised prior is wider than its tables can be")
        samples = torch.arange(int(lengths.max()), device=low.device)
        samples = (samples + (median - minima)[:, None])[:, None]
        lower, upper = self.logits(samples - 0.5), self.logits(samples + 0.5)
        pmf = torch.sigmoid(upper) - torch.sigmoid(lower)
        tails = torch.sigmoid(lower[:, 0, 0]) + torch.sigmoid(-upper[:, 0, -1])
        self._set_tables(pmf[:, 0], lengths, tails, -minima)


class GaussianConditional(EntropyModel):
    """Gaussian of given scale and mean, integrated over the unit interval (Balle et al., 2018)."""

    scale_table: Tensor
    scale_bound: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lower_bound_scale = LowerBound(SCALE_MIN)
        self.register_buffer("scale_table", torch.empty(0, dtype=torch.float32))
        self.register_buffer("scale_bound", torch.tensor([SCALE_MIN], dtype=torch.float32))

    @staticmethod
    def _cumulative(x: Tensor) -> Tensor:
        return 0.5 * torch.erfc(-(2**-0.5) * x)

    def likelihood(self, distance: Tensor, scales: Tensor) -> Tensor:
        """Probability of the unit interval about a value.

        Args:
            distance: the value minus the mean, float [B, C, H, W].
            scales: standard deviations of the same shape; those below the smallest count as that.
        """
        scales = self.lower_bound_scale(scales)
        distance = distance.abs()
        upper = self._cumulative((0.5 - distance) / scales)
        lower = self._cumulative((-0.5 - distance) / scales)
        return self.likelihood_lower_bound(upper - lower)

    def forward(self, y: Tensor, scales: Tensor, means: Tensor) -> Tensor:
        """Likelihood of y [B, C, H, W]; noise in training, rounding about the means otherwise."""
        if self.training:
            return self.likelihood(y + (torch.rand_like(y) - 0.5) - means, scales)
        return self.likelihood(torch.round(y - means), scales)

    def indexes(self, scales: Tensor) -> Tensor:
        """Index of the first table whose scale is not below the given one. int32, same shape."""
        scales = self.lower_bound_scale(scales)
        indexes = torch.full_like(scales, len(self.scale_table) - 1, dtype=torch.int32)
        for bound in self.scale_table[:-1]:
            indexes -= (scales <= bound).int()
        return indexes

    @torch.no_grad()
    def update(self) -> None:
        """Make the integer tables of the 64 scales."""
        device = self.scale_bound.device
        self.scale_table = scale_table().to(device)
        centers = torch.ceil(self.scale_table * -NormalDist().inv_cdf(TAIL_MASS / 2)).int()
        lengths = 2 * centers + 1
        samples = torch.arange(int(lengths.max()), device=device).int() - centers[:, None]
        samples, scales = samples.abs().float(), self.scale_table[:, None]
        upper = self._cumulative((0.5 - samples) / scales)
        lower = self._cumulative((-0.5 - samples) / scales)
        self._set_tables(upper - lower, lengths, 2 * lower[:, 0], -centers)
