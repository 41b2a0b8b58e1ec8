"""The forward pass of training: :class:`MlicModel`'s in fewer and larger operators.

What the model computes everywhere and uses at one colour of the checkerboard is computed at that
colour alone; heads of attention go together; products run in the precision of the weights, with
latents and likelihoods in float32 and no conversions of weights (:mod:`.flat` keeps the copies).
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlic_fast.models import MlicModel
from mlic_fast.models.checkerboard import Parity, keep
from mlic_fast.models.contexts import (
    WINDOW,
    GlobalInterContext,
    GlobalIntraContext,
    LocalContext,
    StackedCheckerboardContext,
    relative_position_index,
    window_mask,
)
from mlic_fast.models.layers import GDN, MixingBlock
from mlic_fast.models.transforms import BLOCK, BlockAnalysisTransform, BlockSynthesisTransform
from mlic_fast.training.loss import interpolation

AREA = WINDOW**2
#: Between two places whose difference gives the slope of a density's logit.
ASIDE = 0.01
#: Windows about non-anchors that hold one position: every second of the 25, the centre's first.
HOLDERS = AREA // 2 + 1


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
            for ours in _CLASSES:
                if type(module) is ours.__mro__[1] and ours.fits(module):
                    module.__class__ = ours
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


# ---------------------------------------------------------------------- the checkerboard


@lru_cache(maxsize=8)
def colour_mask(height: int, width: int, colour: Parity, device: torch.device) -> Tensor:
    """1 at the positions of a colour, else 0: float32 [1, 1, H, W]."""
    return keep(torch.ones(1, 1, height, width), colour).to(device)


@lru_cache(maxsize=8)
def _odd_column(colour: Parity, device: torch.device) -> Tensor:
    """Whether a colour has the second of two columns, in even and in odd rows: [2, 1, 1]."""
    return torch.tensor([colour == 1, colour == 0], device=device)[:, None, None]


@lru_cache(maxsize=16)
def _columns(colour: Parity, device: torch.device, dtype: torch.dtype) -> Tensor:
    """1 at the column that a colour has, in even and in odd rows: [2, 1, 2, 1]."""
    odd = _odd_column(colour, device)
    return torch.stack([~odd, odd], 2).to(dtype)


def _pairs(x: Tensor) -> Tensor:
    """[B, C, H, W] as [B, H / 2, rows of a pair, W / 2, columns of a pair, C]."""
    return x.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))


def _take(x: Tensor, colour: Parity) -> Tensor:
    pairs = _pairs(x)
    half = torch.where(_odd_column(colour, x.device), pairs[..., 1, :], pairs[..., 0, :])
    return half.flatten(1, 2).permute(0, 3, 1, 2)


def _spread(half: Tensor, colour: Parity) -> Tensor:
    pairs = half.permute(0, 2, 3, 1).unflatten(1, (-1, 2))[..., None, :]
    pairs = pairs * _columns(colour, half.device, half.dtype)
    return pairs.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class _Squeeze(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, colour: Parity) -> Tensor:
        ctx.colour = colour
        return _take(x, colour)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _spread(gradient, ctx.colour), None


class _Unsqueeze(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, half: Tensor, colour: Parity) -> Tensor:
        ctx.colour = colour
        return _spread(half, colour)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _take(gradient, ctx.colour), None


def squeeze(x: Tensor, colour: Parity) -> Tensor:
    """:func:`mlic_fast.models.checkerboard.squeeze` in one launch, backwards too."""
    half: Tensor = _Squeeze.apply(x, colour)
    return half


def unsqueeze(half: Tensor, colour: Parity) -> Tensor:
    """:func:`mlic_fast.models.checkerboard.unsqueeze` in one launch, backwards too."""
    x: Tensor = _Unsqueeze.apply(half, colour)
    return x


class _Round(torch.autograd.Function):
    """Rounding of x about a mean, whose gradient is the identity: none of it is the mean's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor) -> Tensor:
        return torch.round(x - mean).add_(mean)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


# ---------------------------------------------------------------------- modules


class _Pointwise(nn.Conv2d):
    """A 1x1 convolution as a product of matrices, which adds the bias in the same launch."""

    @staticmethod
    def fits(module: Any) -> bool:
        return module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1

    def forward(self, x: Tensor) -> Tensor:
        return _pointwise(x, self.weight, self.bias)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    tokens = x.permute(0, 2, 3, 1)
    out = F.linear(tokens.flatten(0, 2), weight.flatten(1), bias)
    return out.unflatten(0, tokens.shape[:3]).permute(0, 3, 1, 2)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1, groups=len(weight))


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


class _MixingBlock(MixingBlock):
    @staticmethod
    def fits(module: Any) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        hidden = _depthwise(F.gelu(self.mix_in(x)), self.depthwise.weight, None)
        x = x + self.mix_out(hidden)
        return x + self.contract(F.gelu(self.expand(x)))


class _GDN(GDN):
    """GDN whose weights, float32 until they are squared, are converted then."""

    @staticmethod
    def fits(module: Any) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        beta = self.beta_reparam(self.beta).to(x.dtype)
        gamma = self.gamma_reparam(self.gamma).to(x.dtype)
        norm = _pointwise(x**2, gamma, beta)
        return x * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))


class _BlockAnalysis(BlockAnalysisTransform):
    @staticmethod
    def fits(module: Any) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        return self.coarse(self.down(self.fine(self.embed(_blocks(x)))))


class _BlockSynthesis(BlockSynthesisTransform):
    @staticmethod
    def fits(module: Any) -> bool:
        return True

    def forward(self, y_hat: Tensor) -> Tensor:
        x = self.fine(_shuffle(self.up(self.coarse(y_hat)), 2))
        return _shuffle(self.project(x), BLOCK)


def _blocks(x: Tensor) -> Tensor:
    """Pixel unshuffle by 8 that stays channels last."""
    rows = x.permute(0, 2, 3, 1).unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK))
    return rows.permute(0, 1, 3, 5, 2, 4).flatten(3).permute(0, 3, 1, 2)


def _shuffle(x: Tensor, factor: int) -> Tensor:
    """Pixel shuffle that stays channels last."""
    parts = x.permute(0, 2, 3, 1).unflatten(3, (-1, factor, factor))
    return parts.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class _PixelShuffle(nn.PixelShuffle):
    @staticmethod
    def fits(module: Any) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        return _shuffle(x, self.upscale_factor)


class WindowPlan(NamedTuple):
    """Of the windows about the P non-anchors of H x W latents.

    Attributes:
        tokens: position of each of the 25 tokens, H * W outside the image: [P * 25].
        holders: the tokens that hold each position, P * 25 for none: [H * W, 13].
        mask: 0 between anchors, -100 from an anchor to anything else: [P, 25, 25]. Rows of other
            tokens are 0, where the model has -100 throughout, which changes no softmax.
        places: one-hot rows of the bias table, [25 * 25, 81].
    """

    tokens: Tensor
    holders: Tensor
    mask: Tensor
    places: Tensor


@lru_cache(maxsize=4)
def window_plan(height: int, width: int, device: torch.device, dtype: torch.dtype) -> WindowPlan:
    cpu = torch.device("cpu")
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = (rows + columns).flatten() % 2 == Parity.NON_ANCHOR
    number = (centres.cumsum(0) - 1).reshape(height, width)
    reach = WINDOW // 2
    none = int(centres.sum()) * AREA
    index = torch.full((height * width, AREA), height * width)
    holders = torch.full((height * width, AREA), none)
    for k in range(AREA):
        down, right = k // WINDOW - reach, k % WINDOW - reach
        for table, sign in ((index, 1), (holders, -1)):
            y, x = rows + sign * down, columns + sign * right
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            if sign < 0:
                inside &= (y + x) % 2 == Parity.NON_ANCHOR
                values = number[y[inside], x[inside]] * AREA + k
            else:
                values = y[inside] * width + x[inside]
            table[inside.flatten(), k] = values
    mask = window_mask(height, width, cpu)[centres]
    mask = torch.where((mask == 0).any(2, keepdim=True), mask, 0.0)
    side = 2 * WINDOW - 1
    places = F.one_hot(relative_position_index().flatten(), side**2)
    return WindowPlan(
        index[centres].flatten().to(device),
        holders.sort(1).values[:, :HOLDERS].to(device),
        mask.to(device, dtype),
        places.to(device, dtype),
    )


class _Windows(torch.autograd.Function):
    """Queries, keys and values [3, .., H * W, D] by windows: three of [.., P * 25, D]; zero outside
    the image.

    Gathers in both directions, so gradients have one order of summation.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, tokens: Tensor, holders: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(holders)
        return F.pad(qkv, (0, 0, 0, 1)).index_select(-2, tokens).unbind()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (holders,) = ctx.saved_tensors
        *batch, length, depth = gradients[0].shape
        joined = gradients[0].new_empty(3, *batch, length + 1, depth)
        torch.stack(gradients, out=joined[..., :-1, :])
        joined[..., -1, :].zero_()
        held = joined.index_select(-2, holders.flatten())
        return held.unflatten(-2, holders.shape).sum(-2), None, None


class _LocalContext(LocalContext):
    """Anchors [B, C, H, W], zero elsewhere -> [B, 2C, H, W / 2] at the non-anchors."""

    @staticmethod
    def fits(module: Any) -> bool:
        return True

    def forward(self, anchors: Tensor) -> Tensor:
        batch, dim, height, width = anchors.shape
        heads, depth, positions = self.num_heads, self.head_dim, height * width // 2
        plan = window_plan(height, width, anchors.device, anchors.dtype)
        tokens = anchors.permute(0, 2, 3, 1).flatten(0, 2)
        qkv = self.qkv_proj(self.norm1(tokens))
        # Channels are (head_dim, heads) with the heads fastest: [3, heads, B, H * W, head_dim].
        qkv = qkv.reshape(batch, -1, 3, depth, heads).permute(2, 4, 0, 1, 3)
        windows = _Windows.apply(qkv.contiguous(), plan.tokens, plan.holders)
        q, k, v = (part.reshape(-1, AREA, depth) for part in windows)
        logits = (q @ k.transpose(1, 2)).reshape(heads, batch, positions, AREA, AREA)
        bias = (plan.places @ self.relative_position_table).T.reshape(heads, 1, 1, AREA, AREA)
        logits = torch.add(bias + plan.mask, logits, alpha=depth**-0.5)
        out = torch.softmax(logits, dim=-1).reshape(-1, AREA, AREA) @ v
        out = out.reshape(heads, batch * positions, AREA, depth).permute(1, 2, 0, 3)
        # As the weight lies in memory: window, then heads, then head_dim.
        weight = self.fusion.weight.permute(0, 2, 3, 1).flatten(1)
        out = self.proj(F.linear(out.reshape(batch * positions, -1), weight, self.fusion.bias))
        out = out + self.mlp(self.norm2(out))
        return out.reshape(batch, height, width // 2, 2 * dim).permute(0, 3, 1, 2)


def _side_by_side(projections: Any) -> Any:
    """Weights and biases of the layers of several projections, joined: [(weight, bias), ..]."""
    return [
        (torch.cat([m.weight for m in layers]), torch.cat([m.bias for m in layers]))
        for layers in zip(*projections, strict=True)
    ]


def _linear_attention(qkv: Tensor, heads: int, keys: Tensor | None = None) -> Tensor:
    """:func:`linear_attention` of all heads at once: [B, L, 3, C] -> [B, L, C].

    ``keys`` [L] is added to the keys: minus infinity leaves out.
    """
    batch, length = qkv.shape[:2]
    parts = qkv.unflatten(3, (heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
    q, k, v = parts.flatten(1, 2)  # each [B * heads, L, C / heads]
    if keys is not None:
        k = k + keys[:, None]
    context = torch.softmax(k, dim=1).transpose(1, 2) @ v
    out = torch.softmax(q, dim=2) @ context
    return out.unflatten(0, (batch, heads)).transpose(1, 2).reshape(batch, length, -1)


class _IntraPlan(NamedTuple):
    """For queries, keys and values: masks of their positions [3, 1, H, W, 1], and of the keys what
    is added to them, minus infinity elsewhere [H * W].
    """

    masks: Tensor
    keys: Tensor


@lru_cache(maxsize=4)
def intra_plan(height: int, width: int, device: torch.device, dtype: torch.dtype) -> _IntraPlan:
    colours = (Parity.NON_ANCHOR, Parity.ANCHOR, Parity.ANCHOR)
    masks = torch.stack([colour_mask(height, width, colour, device) for colour in colours])
    keys = torch.where(masks[1].flatten() > 0, 0.0, -torch.inf)
    return _IntraPlan(masks.permute(0, 1, 3, 4, 2).to(dtype), keys.to(dtype))


class _IntraContext(GlobalIntraContext):
    @staticmethod
    def fits(module: Any) -> bool:
        return bool(module.linear)

    def forward(self, previous: Tensor, anchors: Tensor) -> Tensor:
        batch, _, height, width = anchors.shape
        masks, keys = intra_plan(height, width, anchors.device, anchors.dtype)
        (mix, mix_bias), depthwise = _side_by_side([self.queries, self.keys, self.values])
        inputs = torch.stack([previous, previous, anchors]).permute(0, 1, 3, 4, 2) * masks
        inputs = inputs.flatten(1, 3)  # [3, B * H * W, C]
        mix = mix.flatten(1).unflatten(0, (3, -1)).mT
        mixed = torch.baddbmm(mix_bias.unflatten(0, (3, 1, -1)), inputs, mix)
        mixed = mixed.movedim(0, 1).flatten(1).unflatten(0, (batch, height, width))
        qkv = _depthwise(mixed.permute(0, 3, 1, 2), *depthwise)
        qkv = qkv.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (3, -1))
        out = _linear_attention(qkv, self.num_heads, keys).unflatten(1, (height, -1)) * masks[0]
        out = self.reprojection(out.permute(0, 3, 1, 2))
        return out + self.mlp(out)


class _InterContext(GlobalInterContext):
    @staticmethod
    def fits(module: Any) -> bool:
        return bool(module.linear)

    def forward(self, previous: Tensor) -> Tensor:
        height = previous.shape[2]
        mix, depthwise = _side_by_side([self.queries, self.keys, self.values])
        qkv = _depthwise(_pointwise(previous, *mix), *depthwise)
        qkv = qkv.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (3, -1))
        out = _linear_attention(qkv, self.num_heads).unflatten(1, (height, -1))
        out = self.reprojection(out.permute(0, 3, 1, 2))
        return self.skip(out) + self.mlp(out)


_CLASSES: tuple[Any, ...] = (
    _Pointwise,
    _PixelShuffle,
    _GDN,
    _MixingBlock,
    _BlockAnalysis,
    _BlockSynthesis,
    _LocalContext,
    _IntraContext,
    _InterContext,
)
