"""Models of any preset whose latents look like a trained model's, without training.

Speed depends on the statistics of the latents: how many scales fall into the lowest table, how many
bits the range coder moves. Seeded weights alone give nothing like a photograph's latents, so the
last layers are rescaled, one after the other, while a synthetic photograph passes through:

- 57 % (first slice) to 78 % (last slice) of the channels of y are silent, their scales below the
  lowest table, as measured on trained MLIC++ models. The scales of the others are spread over four
  octaves; the last layer of g_a gives y 0.8 of that spread about the mean.
- The entropy parameters predict these scales with a spread of 0.4 of them over positions, and
  means of a fifth; the latent residual prediction is small.
- The level of all scales is such that the synthetic photograph takes about 0.3 bit a pixel; real
  ones take 0.3 to 0.5.

The level is found in a few rounds. Factors are rounded to an eighth of an octave, so that two
machines make all but the same weights. Images decode to noise; nothing but time and size can be
measured with such a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from mlic_fast.codec import DEFAULT_QUALITY
from mlic_fast.models import MlicConfig, MlicModel, create_model
from mlic_fast.models.mlic import TrainingQuantiser
from mlic_fast.profiling.pictures import synthetic_photograph
from mlic_fast.profiling.seeded_weights import seed_weights

BITS_PER_PIXEL = 0.3
#: Share of silent channels of y, in the first and in the last slice.
SILENT = (0.57, 0.78)
#: Side of the image on which the layers are rescaled.
_SIDE = 256
_ROUNDS = 3
#: Spread of y relative to its scale, less than 1 since y has longer tails than a Gaussian.
_SPREAD = 0.8


def trained_like_model(config: MlicConfig | str, seed: int = 0) -> MlicModel:
    """A model in evaluation mode; see the module's text."""
    model = create_model(config).eval()
    seed_weights(model, seed)
    kind = model.config.transform_kind
    if kind.analysis_stage is not None:  # blocks that follow the layer that y is to come from
        for name, parameter in model.get_submodule(kind.analysis_stage).named_parameters():
            if name.split(".")[1] in ("mix_out", "contract"):
                nn.init.zeros_(parameter)
    x = synthetic_photograph(_SIDE, _SIDE, seed)[None].float() / 255
    with torch.no_grad():
        _shrink_hyper_prior(model)
        level = -2.0
        for _ in range(_ROUNDS):
            measured = _rescale(model, x, _scales(model.config, seed, level))
            # With most symbols zero, doubling the scales not quite doubles the rate.
            level += round(24 * math.log2(BITS_PER_PIXEL / measured)) / 16
    return model


def _scales(config: MlicConfig, seed: int, level: float) -> Tensor:
    """The scale of every channel of y, [M]; those of silent channels are 0.01."""
    random = np.random.Generator(np.random.PCG64(seed + 1))
    shape = (config.slices, config.slice_channels)
    octaves = level + random.uniform(-2, 2, shape)
    silent = np.rint(np.linspace(*SILENT, config.slices) * config.slice_channels)[:, None]
    order = np.argsort(random.random(shape), axis=1)
    return torch.from_numpy(np.where(order < silent, 0.01, 2**octaves).reshape(-1)).float()


def _rescale(model: MlicModel, x: Tensor, scales: Tensor) -> float:
    """Gives all last layers their spreads; bits a pixel of x with them."""
    config = model.config
    rate = None
    if config.rates:
        rate = torch.tensor([(DEFAULT_QUALITY - 1) / 99 * (config.rates - 1)])
    last = model.get_submodule(config.transform_kind.latents_layer)
    with _Rescaling(last, torch.zeros(config.M), _SPREAD * scales):
        y = model.analyse(x, rate)
    spread = torch.where(torch.arange(config.N) % 6 == 0, 0.7, 0.02)
    with _Rescaling(model.get_submodule("h_a.reduction.8"), torch.zeros(config.N), spread):
        z = torch.round(model.h_a(y))
    quantiser = TrainingQuantiser(y, config.slices)
    with ExitStack() as stack:
        for rescaling in _entropy_path(model, scales):
            stack.enter_context(rescaling)
        model.code_latents(model.h_s(z), quantiser)
    y_scales, means = torch.cat(quantiser.scales, dim=1), torch.cat(quantiser.means, dim=1)
    likelihoods = [
        model.gaussian_conditional.likelihood(torch.round(y - means), y_scales),
        model.entropy_bottleneck.likelihood(z),
    ]
    return -sum(float(p.log2().sum()) for p in likelihoods) / x[0, 0].numel()


def _shrink_hyper_prior(model: MlicModel) -> None:
    """The fresh factorised prior is ten times as wide as z."""
    prior = model.entropy_bottleneck
    for matrix in prior.matrices:
        fan_out = matrix.shape[1]
        matrix.fill_(math.log(math.expm1(1 / 0.5 ** (1 / 5) / fan_out)))
    for bias in prior.biases:
        bias.zero_()
    prior.quantiles.copy_(torch.tensor([-10.0, 0.0, 10.0]).expand_as(prior.quantiles))


def _entropy_path(model: MlicModel, scales: Tensor) -> Iterator[_Rescaling]:
    """Every slice is rescaled in its turn, so that the next ones see latents as they will be."""
    for colour in ("anchor", "nonanchor"):
        for i, t in enumerate(scales.chunk(model.config.slices)):
            alive = t > 0.011
            centre = torch.where(alive, t, -0.5)
            spread = torch.where(alive, 0.4 * t, 0.1)
            parameters = model.get_submodule(f"entropy_parameters_{colour}.{i}.fusion.6")
            yield _Rescaling(parameters, torch.cat([centre, 0 * t]), torch.cat([spread, 0.2 * t]))
            prediction = model.get_submodule(f"lrp_{colour}.{i}.lrp_transform")
            assert isinstance(prediction, nn.Sequential)
            yield _Rescaling(prediction[-1], 0 * t, 0.1 * t)


class _Rescaling:
    """While entered: the first call of a convolution gives its outputs means and spreads.

    ``means`` and ``spreads``: [O].
    """

    def __init__(self, layer: nn.Module, means: Tensor, spreads: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        self._layer, self._bias = layer, layer.bias
        self._means, self._spreads = means, spreads

    def __enter__(self) -> None:
        self._hook = self._layer.register_forward_hook(self._rescale)

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _rescale(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        centre = output.mean((0, 2, 3))
        gain = self._spreads / output.std((0, 2, 3)).clamp(min=1e-6)
        gain = torch.exp2(torch.round(torch.log2(gain) * 8) / 8)
        self._layer.weight *= gain.reshape(-1, 1, 1, 1)
        unit = self._spreads / 8
        centre = torch.round(centre * gain / unit) * unit
        self._bias.copy_(self._bias * gain - centre + self._means)
        return torch.nn.functional.conv2d(
            inputs[0],
            self._layer.weight,
            self._bias,
            self._layer.stride,
            self._layer.padding,
        )
