"""MLIC, MLIC+ and MLIC++: the readable, trainable float models.

The 2S coding passes are written once, in :meth:`MlicModel.code_latents`. Training, encoding and
decoding run it; they differ only in the :class:`PassCoder` that turns the scales and means of a
pass into decoded values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mlic_fast.models.checkerboard import Parity, keep
from mlic_fast.models.config import ALIGNMENT, PRESETS, MlicConfig
from mlic_fast.models.contexts import make_contexts
from mlic_fast.models.entropy import EntropyBottleneck, GaussianConditional, round_ste
from mlic_fast.models.gain import GainUnits
from mlic_fast.models.parameters import make_parameters
from mlic_fast.models.transforms import (
    HyperAnalysis,
    HyperSynthesis,
    make_transforms,
)


class PassCoder(Protocol):
    """Where the symbols of a pass come from."""

    def __call__(self, index: int, parity: Parity, scales: Tensor, means: Tensor) -> Tensor:
        """Decoded values of one half of slice ``index``: symbols + means at ``parity``, else zero.

        scales, means: [B, C, H, W], of which the positions of ``parity`` count.
        """
        ...


class TrainingQuantiser:
    """Rounds y about its means (straight-through) and keeps the parameters for the likelihoods."""

    def __init__(self, y: Tensor, slices: int) -> None:
        self._y = y.chunk(slices, dim=1)
        self.scales = [torch.zeros(()) for _ in range(slices)]
        self.means = [torch.zeros(()) for _ in range(slices)]

    def __call__(self, index: int, parity: Parity, scales: Tensor, means: Tensor) -> Tensor:
        scales, means = keep(scales, parity), keep(means, parity)
        self.scales[index] = self.scales[index] + scales
        self.means[index] = self.means[index] + means
        return round_ste(keep(self._y[index], parity) - means) + means


class Transforms(nn.Module):
    """g_a, h_a and g_s: the part of a model whose arithmetic is free."""

    def __init__(self, config: MlicConfig) -> None:
        super().__init__()
        self.config = config
        self.g_a, self.g_s = make_transforms(config)
        self.h_a = HyperAnalysis(config)
        if config.rates:
            self.gain = GainUnits(config)

    def analyse(self, x: Tensor, rate: Tensor | None = None) -> Tensor:
        """Image [B, 3, H, W] -> latents y [B, M, H/16, W/16], at ``rate`` if of variable rate."""
        if x.dim() != 4 or x.shape[1] != 3 or x.shape[2] % ALIGNMENT or x.shape[3] % ALIGNMENT:
            raise ValueError(
                f"expected [B, 3, H, W] with H and W multiples of {ALIGNMENT}, got {list(x.shape)}"
            )
        y = self.g_a(x)
        return self.gain.apply(y, rate) if self.config.rates else y

    def synthesise(self, y_hat: Tensor, rate: Tensor | None = None) -> Tensor:
        """Decoded latents [B, M, H, W] -> image [B, 3, 16 H, 16 W]."""
        return self.g_s(self.gain.undo(y_hat, rate) if self.config.rates else y_hat)


class MlicModel(Transforms):
    """Common part of the three models; the configuration says which.

    ``model(x)`` for x [B, 3, H, W] in 0..1, H and W multiples of 64, gives ``x_hat`` of the same
    shape and ``likelihoods`` of ``y`` [B, M, H/16, W/16] and ``z`` [B, N, H/64, W/64].
    """

    local_context: nn.ModuleList
    channel_context: nn.ModuleList
    global_intra_context: nn.ModuleList
    entropy_parameters_anchor: nn.ModuleList
    entropy_parameters_nonanchor: nn.ModuleList
    lrp_anchor: nn.ModuleList
    lrp_nonanchor: nn.ModuleList

    def __init__(self, config: MlicConfig) -> None:
        super().__init__(config)
        self.entropy_bottleneck = EntropyBottleneck(config.N)
        self.gaussian_conditional = GaussianConditional()
        self.h_s = HyperSynthesis(config)
        for name, modules in (make_contexts(config) | make_parameters(config)).items():
            setattr(self, name, modules)

    def code_latents(self, hyper: Tensor, code: PassCoder) -> Tensor:
        """The 2S coding passes: output of h_s [B, 2M, H, W] -> decoded latents [B, M, H, W]."""
        inter_context = getattr(self, "global_inter_context", None)
        hyper_means = hyper[:, self.config.M :]
        decoded: list[Tensor] = []
        for i in range(self.config.slices):
            shared = [hyper]
            if i:
                previous = torch.cat(decoded, dim=1)
                shared = [self.channel_context[i](previous), hyper]
                if inter_context is not None:
                    shared = [inter_context[i](previous), *shared]

            parameters = self.entropy_parameters_anchor[i](torch.cat(shared, dim=1)).float()
            anchors = code(i, Parity.ANCHOR, *parameters.chunk(2, 1))
            residual = self.lrp_anchor[i](torch.cat([hyper_means, *decoded, anchors], dim=1))
            anchors = anchors + keep(residual.float(), Parity.ANCHOR)

            contexts = [self.local_context[i](anchors)]
            if i:
                contexts.append(self.global_intra_context[i](decoded[-1], anchors))
            joined = torch.cat([*contexts, *shared], dim=1)
            parameters = self.entropy_parameters_nonanchor[i](joined).float()
            both = anchors + code(i, Parity.NON_ANCHOR, *parameters.chunk(2, 1))
            residual = self.lrp_nonanchor[i](torch.cat([hyper_means, *decoded, both], dim=1))
            decoded.append(both + keep(residual.float(), Parity.NON_ANCHOR))
        return torch.cat(decoded, dim=1)

    def forward(self, x: Tensor, rate: Tensor | None = None) -> dict[str, Any]:
        """Image and likelihoods; ``rate`` [B] in 0 .. rates - 1 for a variable-rate model."""
        y = self.analyse(x, rate).float()
        z = self.h_a(y).float()
        medians = self.entropy_bottleneck.medians()
        z_hat = round_ste(z - medians) + medians
        quantiser = TrainingQuantiser(y, self.config.slices)
        y_hat = self.code_latents(self.h_s(z_hat), quantiser)
        scales, means = torch.cat(quantiser.scales, dim=1), torch.cat(quantiser.means, dim=1)
        return {
            "x_hat": self.synthesise(y_hat, rate),
            "likelihoods": {
                "y": self.gaussian_conditional(y, scales, means),
                "z": self.entropy_bottleneck(z),
            },
        }

    def aux_loss(self) -> Tensor:
        """Loss of the auxiliary optimiser, over the parameters named ``quantiles``."""
        return self.entropy_bottleneck.auxiliary_loss()

    def update(self) -> None:
        """Make the integer tables of the reference engine (needs compressai)."""
        self.entropy_bottleneck.update()
        self.gaussian_conditional.update()

    @torch.no_grad()
    def compress(self, x: Tensor, rate: Tensor | None = None) -> dict[str, Any]:
        """Encode images [B, 3, H, W] as :func:`mlic_fast.models.reference.compress` does."""
        from mlic_fast.models import reference

        return reference.compress(self, x, rate)

    @torch.no_grad()
    def decompress(
        self, strings: list[list[bytes]], shape: tuple[int, int], rate: Tensor | None = None
    ) -> dict[str, Any]:
        """The inverse of :meth:`compress`, as :func:`mlic_fast.models.reference.decompress`."""
        from mlic_fast.models import reference

        return reference.decompress(self, strings, shape, rate)


class _Variant(MlicModel):
    variant: str

    def __init__(self, config: MlicConfig | None = None, **changes: Any) -> None:
        config = PRESETS[self.variant] if config is None else config
        if config.variant != self.variant:
            raise ValueError(f"{type(self).__name__} cannot take a {config.variant} configuration")
        if config.stage_channels == (config.N,) * 3:
            changes.setdefault("stage_channels", (0, 0, 0))  # they follow N
        super().__init__(replace(config, **changes))


class MLIC(_Variant):
    """MLIC (arXiv 2211.07273, MEM): stacked checkerboard convolutions, global intra context."""

    variant = "mlic"


class MLICPlus(_Variant):
    """MLIC+ (arXiv 2211.07273, MEM+): window attention, softmax global contexts."""

    variant = "mlic_plus"


class MLICPlusPlus(_Variant):
    """MLIC++ (arXiv 2307.15421, MEM++): window attention, linear global contexts."""

    variant = "mlic_plus_plus"


def create_model(config: MlicConfig | str) -> MlicModel:
    """A model with fresh weights, from a configuration or the name of a preset."""
    if isinstance(config, str):
        if config not in PRESETS:
            raise ValueError(f"unknown preset {config!r}; there are {', '.join(PRESETS)}")
        config = PRESETS[config]
    models = {model.variant: model for model in (MLIC, MLICPlus, MLICPlusPlus)}
    return models[config.variant](config)
