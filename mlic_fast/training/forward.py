"""The forward pass of training: :class:`MlicModel`'s in fewer and larger operators.

Values that the model computes everywhere but uses at one colour of the checkerboard are computed
at that colour alone; heads of attention go together; products run in the precision of the weights,
with latents and likelihoods in float32 and no conversions of weights (:mod:`.flat` keeps the
copies).
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlic_fast.models import MlicModel
from mlic_fast.models.checkerboard import Parity
from mlic_fast.models.contexts import StackedCheckerboardContext
from mlic_fast.models.layers import MixingBlock
from mlic_fast.training.forward_layers import make_fast
from mlic_fast.training.halves import colour_mask, squeeze, unsqueeze
from mlic_fast.training.loss import interpolation

#: Between two places whose difference gives the slope of a density's logit.
ASIDE = 0.01


class Output(NamedTuple):
    """What a forward pass gives.

    Attributes:
        x_hat: reconstruction [B, 3, H, W], float32.
        y_bits, z_bits: of each sample, [B].
        quantiles: logits at the quantiles of the prior of z, and at places :data:`ASIDE` below and
            above them: [3, N, 1, 3], without gradients.
    """

    x_hat: Tensor
    y_bits: Tensor
    z_bits: Tensor
    quantiles: Tensor


class TrainingForward:
    """Runs a copy of a model whose weights are set by :class:`mlic_fast.training.flat.FlatWeights`,
    after :func:`absorb_biases`.

    Everything is channels last. Two latents of a row side by side hold one of each colour, so a
    half is [B, C, H, W / 2] as in :mod:`mlic_fast.models.checkerboard`.
    """

    def __init__(self, model: MlicModel, dtype: torch.dtype) -> None:
        self.network = copy.deepcopy(model)
        self.dtype = dtype
        for module in self.network.modules():
            make_fast(module)
            if isinstance(module, StackedCheckerboardContext):
                module.mask = module.mask.to(dtype)

    def __call__(self, x: Tensor, rate: Tensor | None, z_weight: Tensor) -> Output:
        """Images [B, 3, H, W] in 0..1 at the rates [B].

        ``z_weight`` is how much the bits of z count for what makes z; its prior sees them whole.
        """
        network: Any = self.network
        y, undo = network.g_a(x.to(self.dtype)).float(), None
        if rate is not None:
            gains, mix = network.gain, interpolation(rate, network.config.rates)
            y = y * (mix @ gains.log_gain).exp()[:, :, None, None]
            undo = (mix @ gains.log_inverse_gain).exp()[:, :, None, None]
        z = network.h_a(y.to(self.dtype)).float()
        medians = network.entropy_bottleneck.medians()
        hyper = network.h_s(_Round.apply(z, medians).to(self.dtype))
        y_hat, y_bits = self._code_latents(hyper, y)
        x_hat = network.g_s((y_hat if undo is None else y_hat * undo).to(self.dtype))
        z_bits, quantiles = self._hyper_bits(torch.lerp(z.detach(), z, z_weight), medians)
        return Output(x_hat.float(), y_bits, z_bits, quantiles)

    def _code_latents(self, hyper: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`MlicModel.code_latents`: decoded latents and the bits of each sample."""
        network: Any = self.network
        inter_context = getattr(network, "global_inter_context", None)
        colours = (Parity.ANCHOR, Parity.NON_ANCHOR)
        half_mask = {colour: colour_mask(*y.shape[2:], colour, y.device) / 2 for colour in colours}
        hyper_at = {colour: squeeze(hyper, colour) for colour in colours}
        halves = {colour: squeeze(y, colour) for colour in colours}
        predicted: dict[Parity, list[Tensor]] = {colour: [] for colour in colours}
        parts = {colour: halves[colour].chunk(network.config.slices, 1) for colour in colours}

        def code(i: int, colour: Parity, inputs: list[Tensor], parameters: Any) -> Tensor:
            values = parameters(torch.cat([*inputs, hyper_at[colour]], 1))
            predicted[colour].append(values)
            return unsqueeze(_Round.apply(parts[colour][i], values.chunk(2, 1)[1]), colour)

        def add_residual(latents: Tensor, colour: Parity, prediction: Any) -> Tensor:
            known = torch.cat([before, latents.to(self.dtype)], 1)
            residual = torch.tanh(prediction.lrp_transform(known)).float()
            return torch.addcmul(latents, residual, half_mask[colour])

        before = hyper[:, network.config.M :]  # what the residual prediction knows: means, slices
        decoded: list[Tensor] = []
        exact: list[Tensor] = []
        for i in range(network.config.slices):
            shared: dict[Parity, list[Tensor]] = {colour: [] for colour in colours}
            if i:
                previous = torch.cat(decoded, 1)
                contexts = [network.channel_context[i](previous)]
                if inter_context is not None:
                    contexts.insert(0, inter_context[i](previous))
                joined = torch.cat(contexts, 1)
                shared = {colour: [squeeze(joined, colour)] for colour in colours}

            anchor, other = colours
            anchors = code(i, anchor, shared[anchor], network.entropy_parameters_anchor[i])
            anchors = add_residual(anchors, anchor, network.lrp_anchor[i])
            low = anchors.to(self.dtype)
            local = network.local_context[i](low)
            if local.shape[3] == low.shape[3]:
                local = squeeze(local, other)
            if i:
                intra = network.global_intra_context[i](decoded[-1], low)
                shared[other].insert(0, squeeze(intra, other))
            parameters = network.entropy_parameters_nonanchor[i]
            both = anchors + code(i, other, [local, *shared[other]], parameters)
            exact.append(add_residual(both, other, network.lrp_nonanchor[i]))
            decoded.append(exact[-1].to(self.dtype))
            before = torch.cat([before, decoded[-1]], 1)

        values = torch.stack([torch.cat(predicted[colour], 1) for colour in colours]).float()
        values = values.unflatten(2, (-1, 2, network.config.slice_channels))
        latents = torch.stack([halves[colour] for colour in colours])
        latents = latents.unflatten(2, (-1, network.config.slice_channels))
        likelihood = network.gaussian_conditional(latents, values[:, :, :, 0], values[:, :, :, 1])
        return torch.cat(exact, 1), likelihood.log2().sum((0, 2, 3, 4, 5)).neg()

    def _hyper_bits(self, z: Tensor, medians: Tensor) -> tuple[Tensor, Tensor]:
        """Bits of z of each sample, and the logits at the quantiles; all go through the prior at
        once.
        """
        prior: Any = self.network.entropy_bottleneck
        z = z + (torch.rand_like(z) - 0.5) if prior.training else torch.round(z - medians) + medians
        values = z.transpose(0, 1).reshape(z.shape[1], 1, -1)
        quantiles = prior.quantiles.detach()
        places = [values + 0.5, values - 0.5, quantiles, quantiles - ASIDE, quantiles + ASIDE]
        logits = prior.logits(torch.cat(places, 2))
        ends = logits[..., : 2 * values.shape[2]].sigmoid()
        upper, lower = ends.chunk(2, 2)
        likelihood = prior.likelihood_lower_bound(upper - lower)
        bits = likelihood.log2().unflatten(2, (len(z), -1)).sum((0, 1, 3)).neg()
        return bits, torch.stack(logits.detach()[..., ends.shape[2] :].chunk(3, 2))


class _Round(torch.autograd.Function):
    """Rounding of x about a mean, whose gradient is the identity: none of it is the mean's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor) -> Tensor:
        return torch.round(x - mean).add_(mean)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


@torch.no_grad()
def absorb_biases(model: nn.Module) -> None:
    """Moves biases of depthwise layers into those of the 1x1 layers that follow them directly.

    The model computes what it did, and :class:`TrainingForward` has fewer biases to train.
    """
    for block in model.modules():
        if isinstance(block, MixingBlock):
            assert block.depthwise.bias is not None and block.mix_out.bias is not None
            block.mix_out.bias += block.mix_out.weight.flatten(1) @ block.depthwise.bias
            block.depthwise.bias.zero_()
