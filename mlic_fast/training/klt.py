"""A start for fresh networks: the Karhunen-Loeve transform (KLT) of the training photographs.

Random networks first have to find out that neighbouring pixels are alike, which takes them tens of
thousands of steps. :func:`start_from_klt` sets g_a and g_s to a linear transform that knows it, and
tells the entropy model how large its latents are, so that training begins with a working codec.

Block transforms get the exact KLT of blocks of 8x8 pixels, and one of 2x2 of its results.

For residual transforms it is a tree. At each of the four halvings the channels of 2x2 positions are
decorrelated and the strongest combinations are kept. A block of g_a carries k of them exactly in 2k
channels, as ``gelu(x) - gelu(-x) = x``; the blocks of g_s carry them in their linear branch. All
other channels and branches keep their random weights and feed nothing yet.

h_a keeps its random directions, but every layer is scaled to the signal. As PyTorch initialises it,
z stays within half a step of its median, so it is rounded to a constant, nothing depends on it, and
it never comes to life: the prior of y then is the same for every photograph. Its prior is as wide
as z is, and the latent residual prediction begins at zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlic_fast.models import MlicConfig, MlicModel
from mlic_fast.models.layers import (
    NonNegativeParameter,
    ResidualBlock,
    ResidualBlockUpsample,
    ResidualBlockWithStride,
)
from mlic_fast.models.transforms import BLOCK

# Weight of a channel's own square in GDN: nearly linear, and yet it can grow.
_GAMMA = 1e-5
# Standard deviation of the hyper-latents.
_HYPER = 1.5
# Width of the densities of the hyper-latents.
_PRIOR = 4.0
# First scales, relative to the standard deviation: the contexts soon predict much of a latent.
_UNPREDICTED = 0.5


@torch.no_grad()
def start_from_klt(model: MlicModel, patches: Tensor, lambdas: Sequence[float]) -> None:
    """Sets g_a, g_s, h_a and the biases of the predicted scales of ``model`` in place.

    Args:
        model: fresh, on the CPU; the narrower, the more of the transform is left
            out. Latents that it has no use for are zero.
        patches: of photographs, float32 [B, 3, H, W] in 0..1, sides multiples of 16.
        lambdas: the run's Lagrange multipliers for ``255^2 * MSE``. Where rounding to integers is
            the only loss, the best step for a coefficient of an orthonormal transform of samples in
            0..255 is ``sqrt(18 / (lambda * log(2)))``: one step of y at their geometric mean.
    """
    mean = patches.mean(dim=(0, 2, 3))
    middle = math.exp(sum(map(math.log, lambdas)) / len(lambdas))
    unit = 255 / math.sqrt(18 / (middle * math.log(2)))
    set_transforms = _SET_TRANSFORMS[model.config.transforms]
    latents = set_transforms(model, patches - mean[:, None, None], mean, unit)
    y = F.pad(unit * latents, (0, 0, 0, 0, 0, model.config.M - latents.shape[1]))
    _set_hyper_analysis(model.h_a.reduction, y)
    _set_prior(model.entropy_bottleneck)
    _set_scales(model, y)
    _predict_no_residual(model)


def _set_residual(model: MlicModel, signal: Tensor, mean: Tensor, unit: float) -> Tensor:
    """Sets residual transforms to four KLTs of 2x2 positions; returns the latents of the signal."""
    matrices, latents = _tree(model.config, signal)
    _set_analysis(model.g_a.analysis_transform, matrices, mean, unit)
    _set_synthesis(model.g_s.synthesis_transform, matrices, mean, unit)
    return latents


def _tree(config: MlicConfig, signal: Tensor) -> tuple[list[Tensor], Tensor]:
    """The four KLTs [k, 4 C], of C channels at 2x2 positions in the order of a pixel unshuffle, and
    the result of the last one [B, k, H / 16, W / 16].
    """
    n1, n2, n3 = config.stage_channels
    latents = n3 if config.weight_family == "2023" else config.M  # that g_s can make use of
    matrices = []
    for width in (n1 // 2, n2 // 2, n3 // 2, latents):
        matrix, signal = _level(signal, 2, width)
        matrices.append(matrix)
    return matrices, signal


def _level(signal: Tensor, side: int, width: int) -> tuple[Tensor, Tensor]:
    """The KLT [k, side^2 C] of blocks of a signal of C channels, in the order of a pixel unshuffle,
    with at most ``width`` components, and its result.
    """
    blocks = F.pixel_unshuffle(signal, side)
    vectors = blocks.movedim(1, 0).flatten(1).double()
    _, basis = torch.linalg.eigh(vectors @ vectors.T)
    matrix = basis.flip(1)[:, :width].T.float()
    return matrix, F.conv2d(blocks, matrix[:, :, None, None])


def _set_blocks(model: MlicModel, signal: Tensor, mean: Tensor, unit: float) -> Tensor:
    """Sets block transforms to a KLT of 8x8 pixels, and one of 2x2 of its results; returns the
    latents of the signal. Fresh blocks are the identity.
    """
    analysis: Any = model.g_a
    synthesis: Any = model.g_s
    fine, signal = _level(signal, BLOCK, model.config.block_channels)
    coarse, signal = _level(signal, 2, model.config.M)
    k, width = len(fine), model.config.block_channels
    means = mean.repeat_interleave(BLOCK**2)
    # Rows that carry nothing yet see signals of the same size.
    analysis.embed.weight *= unit
    analysis.embed.weight[:k, :, 0, 0] = unit * fine
    analysis.embed.bias.copy_(-analysis.embed.weight[:, :, 0, 0] @ means)
    _clear(analysis.down)
    analysis.down.weight[: len(coarse), :k] = _filters(coarse)
    _clear(synthesis.up)
    up = torch.zeros(width, 4, model.config.M)
    up[:k, :, : len(coarse)] = coarse.T.unflatten(0, (k, 4))
    synthesis.up.weight[:, :, 0, 0] = up.flatten(0, 1)
    _clear(synthesis.project)
    synthesis.project.weight[:, :k, 0, 0] = fine.T / unit
    synthesis.project.bias.copy_(means)
    return signal


#: What sets g_a and g_s, by the kind of transforms.
_SET_TRANSFORMS = {"residual": _set_residual, "blocks": _set_blocks}


# Parts of networks are Any: the types of PyTorch's containers do not know what they hold.


def _set_analysis(layers: Any, matrices: list[Tensor], mean: Tensor, unit: float) -> None:
    filters = iter(_filters(matrix) for matrix in (unit * matrices[0], *matrices[1:]))
    for layer in layers:
        if isinstance(layer, ResidualBlock):
            _be_identity(layer)
        elif isinstance(layer, ResidualBlockWithStride):
            _carry(layer, next(filters))
        else:
            _clear(layer)
            _put(layer, next(filters))
    # The mean is that of the image, so the first layer takes it away.
    first = layers[0].conv1
    k = 2 * len(matrices[0])
    first.bias[:k] = -first.weight[:k].sum(dim=(2, 3)) @ mean


def _set_synthesis(layers: Any, matrices: list[Tensor], mean: Tensor, unit: float) -> None:
    inverses = iter(matrix.T[..., None, None] for matrix in (*matrices[:0:-1], matrices[0] / unit))
    for layer in layers:
        if isinstance(layer, ResidualBlock):
            _be_identity(layer)
            continue
        if isinstance(layer, ResidualBlockUpsample):
            _clear(layer.conv)
            layer = layer.upsample
        _put(layer[0], next(inverses))
    layers[-1][0].bias.copy_(mean.repeat_interleave(4))


def _set_hyper_analysis(layers: Any, y: Tensor) -> None:
    def deviations(x: Tensor) -> Tensor:
        return x.std(dim=(0, 2, 3), correction=0)

    # All channels count alike, but for those that are nearly always rounded to zero.
    layers[0].weight /= deviations(y).clamp(min=0.3)[:, None, None]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            layer.weight /= deviations(layer(y)).clamp(min=1e-6)[:, None, None, None]
            layer.get_parameter("bias").zero_()
        y = layer(y)
    layers[-1].weight *= _HYPER
    layers[-1].bias -= _HYPER * y.mean(dim=(0, 2, 3))


def _set_prior(prior: Any) -> None:
    """Makes the densities of the hyper-latents as wide as these are: too wide ones push them to
    a constant.
    """
    layers = list(zip(prior.matrices, prior.WIDTHS[1:], strict=True))
    factor = _PRIOR ** (1 / len(layers))
    for matrix, width in layers:
        matrix.fill_(math.log(math.expm1(1 / factor / width)))
    prior.quantiles.copy_(torch.tensor([-_PRIOR, 0.0, _PRIOR]))


def _predict_no_residual(model: MlicModel) -> None:
    networks: Any = [*model.lrp_anchor, *model.lrp_nonanchor]
    for network in networks:
        _clear(network.lrp_transform[-1])


def _set_scales(model: MlicModel, y: Tensor) -> None:
    scales = _UNPREDICTED * y.square().mean(dim=(0, 2, 3)).sqrt()
    passes: Any = (model.entropy_parameters_anchor, model.entropy_parameters_nonanchor)
    for networks in passes:
        for network, values in zip(networks, scales.chunk(model.config.slices), strict=True):
            network.fusion[-1].bias[: len(values)] = values


def _filters(matrix: Tensor) -> Tensor:
    """Rows over 2x2 positions, as :func:`pixel_unshuffle` orders them, as filters [k, C, 2, 2]."""
    return matrix.unflatten(1, (-1, 2, 2))


def _carry(block: Any, filters: Tensor) -> None:
    k = len(filters)
    _put(block.conv1, torch.cat([filters, -filters]))
    one = torch.eye(k)
    _put(block.conv2, torch.cat([one, -one], dim=1)[..., None, None])
    block.skip.weight[:k], block.skip.bias[:k] = 0, 0
    initial = NonNegativeParameter.initial
    block.gdn.gamma[:k] = initial(0.0)
    block.gdn.gamma[:k].fill_diagonal_(initial(_GAMMA))


def _put(convolution: Any, filters: Tensor) -> None:
    """Makes the first rows of a 3x3 convolution these filters [k, C, h, w], which see 2x2 positions
    from the centre on, or the centre alone.
    """
    rows, channels, *sides = filters.shape
    _clear(convolution, rows)
    convolution.weight[:rows, :channels, 1 : 1 + sides[0], 1 : 1 + sides[1]] = filters


def _clear(convolution: Any, rows: int | None = None) -> None:
    convolution.weight[:rows], convolution.bias[:rows] = 0, 0


def _be_identity(block: Any) -> None:
    _clear(block.conv2)
    if block.skip is not None:
        _clear(block.skip)
        block.skip.weight[:, :, 0, 0].fill_diagonal_(1)
