"""Layers of the models in fewer and larger operators, channels last, for the forward pass of
training.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlic_fast.models.checkerboard import Parity
from mlic_fast.models.contexts import (
    WINDOW,
    GlobalInterContext,
    GlobalIntraContext,
    LocalContext,
    relative_position_index,
    window_mask,
)
from mlic_fast.models.layers import GDN, MixingBlock
from mlic_fast.models.transforms import BLOCK, BlockAnalysisTransform, BlockSynthesisTransform
from mlic_fast.training.halves import colour_mask

AREA = WINDOW**2
#: Windows about non-anchors that hold one position: every second of the 25, the centre's first.
HOLDERS = AREA // 2 + 1


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
    """Where the windows about the P non-anchors of H x W latents lie.

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
    """The plan of windows about the non-anchors of H x W latents."""
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
    """The masks of the global context within a slice, for H x W latents."""
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


#: A layer takes the place of its base class, where it fits.
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


def make_fast(module: nn.Module) -> None:
    """Turns a layer of a model, in place, into one of those here that computes the same."""
    for ours in _CLASSES:
        if type(module) is ours.__mro__[1] and ours.fits(module):
            module.__class__ = ours
