"""The contexts of the entropy model: local, channel, and the two global ones.

C is the number of channels of a slice, H x W the size of the latents. MLIC and MLIC+: arXiv
2211.07273; MLIC++: arXiv 2307.15421.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlic_fast.models.checkerboard import Parity, keep, squeeze, unsqueeze
from mlic_fast.models.config import MlicConfig

WINDOW = 5
#: Keys at most this far away (Chebyshev distance) belong to the local context, not to the global.
EXCLUDED_RADIUS = WINDOW // 2
#: Queries per block of softmax attention: bounds the attention map to block x positions.
QUERY_BLOCK = 512


class Mlp(nn.Module):
    """Linear, GELU, Linear over the last dimension."""

    def __init__(self, in_features: int, hidden: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden)
        self.fc2 = nn.Linear(hidden, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def relative_position_index() -> Tensor:
    """Swin indexing of the bias table: [25, 25] entries of 0..80 for (query token, key token)."""
    places = [divmod(token, WINDOW) for token in range(WINDOW**2)]
    reach, side = WINDOW - 1, 2 * WINDOW - 1
    return torch.tensor(
        [[(y - v + reach) * side + x - u + reach for v, u in places] for y, x in places]
    )


@lru_cache(maxsize=2)
def window_mask(height: int, width: int, device: torch.device) -> Tensor:
    """Additive mask of every window, [H * W, 25, 25]: 0 between anchors of the image, else -100."""
    anchors = keep(torch.ones(1, 1, height, width, device=device), Parity.ANCHOR)
    tokens = F.unfold(anchors, WINDOW, padding=WINDOW // 2)[0].T
    both = tokens[:, :, None] * tokens[:, None, :]
    return (both - 1.0) * 100.0


class LocalContext(nn.Module):
    """Overlapped checkerboard window attention of MLIC+ and MLIC++ (MLIC++, section 3.3).

    Anchors [B, C, H, W], zero elsewhere -> [B, 2C, H, W], of which non-anchors are used.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int = 2) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv_proj = nn.Linear(dim, dim * 3)
        self.relative_position_table = nn.Parameter(torch.empty((2 * WINDOW - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_table, std=0.02)
        self.proj = nn.Linear(dim * 2, dim * 2)
        self.mlp = Mlp(dim * 2, dim * 4, dim * 2)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim * 2)
        self.register_buffer("relative_position_index", relative_position_index())
        self.fusion = nn.Conv2d(dim, dim * 2, kernel_size=WINDOW)

    def forward(self, anchors: Tensor) -> Tensor:
        batch, dim, height, width = anchors.shape
        area, positions = WINDOW**2, height * width
        tokens = self.norm1(anchors.flatten(2).transpose(1, 2))
        qkv = self.qkv_proj(tokens).transpose(1, 2).reshape(batch, 3 * dim, height, width)
        # Channels are (head_dim, heads) with the heads fastest: [3, B, L, heads, 25, head_dim].
        windows = F.unfold(qkv, WINDOW, padding=WINDOW // 2)
        windows = windows.reshape(batch, 3, self.head_dim, self.num_heads, area, positions)
        q, k, v = windows.permute(1, 0, 5, 3, 4, 2)

        logits = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_table[self.relative_position_index]  # [25, 25, heads]
        logits = logits + bias.permute(2, 0, 1)
        logits = logits + window_mask(height, width, anchors.device)[:, None]
        out = torch.softmax(logits, dim=-1) @ v  # [B, L, heads, 25, head_dim]

        # Now channels are (heads, head_dim), as the fusion's weights expect them.
        out = out.permute(0, 1, 2, 4, 3).reshape(batch * positions, dim, WINDOW, WINDOW)
        out = self.proj(self.fusion(out).reshape(batch, positions, 2 * dim))
        out = out + self.mlp(self.norm2(out))
        return out.transpose(1, 2).reshape(batch, 2 * dim, height, width)


class StackedCheckerboardContext(nn.Module):
    """Stacked checkerboard convolutions of MLIC (section 3.3).

    Three 5x5 convolutions that read only the other colour: anchors -> non-anchors -> anchors ->
    non-anchors. Anchors [B, C, H, W], zero elsewhere -> [B, 2C, H, W]; non-anchors are used.
    """

    mask: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(dim, out, WINDOW, padding=WINDOW // 2) for out in (dim, dim, 2 * dim)
        )
        mask = keep(torch.ones(1, 1, WINDOW, WINDOW), Parity.ANCHOR)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, anchors: Tensor) -> Tensor:
        x = anchors
        for i, conv in enumerate(self.convs):
            if i:
                x = F.gelu(x)
            assert isinstance(conv, nn.Conv2d)
            x = F.conv2d(x, conv.weight * self.mask, conv.bias, padding=WINDOW // 2)
        return x


class ChannelContext(nn.Module):
    """Channel-wise context: previous slices [B, iC, H, W] -> [B, 4C, H, W]."""

    def __init__(self, in_dim: int, out_dim: int, hidden: tuple[int, int]) -> None:
        super().__init__()
        # The name is spelled as in the published weights.
        self.fushion = nn.Sequential(
            nn.Conv2d(in_dim, hidden[0], 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden[0], hidden[1], 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden[1], out_dim * 4, 3, padding=1),
        )

    def forward(self, previous: Tensor) -> Tensor:
        return self.fushion(previous)


def depthwise_projection(dim: int) -> nn.Sequential:
    """1x1, then depthwise 3x3: how every global context makes queries, keys and values."""
    return nn.Sequential(nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 3, padding=1, groups=dim))


def feed_forward(in_dim: int, hidden: int, out_dim: int) -> nn.Sequential:
    """[B, in_dim, H, W] -> [B, out_dim, H, W]: 1x1, GELU, depthwise 3x3, GELU, 1x1."""
    return nn.Sequential(
        nn.Conv2d(in_dim, hidden, 1),
        nn.GELU(),
        nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
        nn.GELU(),
        nn.Conv2d(hidden, out_dim, 1),
    )


def linear_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax over channels (q) times (softmax over positions (k) times v^T): MLIC++, equation 8.

    [B, heads * d, queries], [B, heads * d, keys], [B, heads * d, keys] -> [B, heads * d, queries].
    """
    batch = q.shape[0]
    out = []
    # One head at a time, as the public code has it: this model is the baseline of the benchmarks.
    for query, key, value in zip(
        q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True
    ):
        context = torch.softmax(key, dim=2) @ value.transpose(1, 2)
        out.append(context.transpose(1, 2) @ torch.softmax(query, dim=1))
    return torch.cat(out, dim=1).reshape(batch, q.shape[1], q.shape[2])


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, query_at: Tensor, key_at: Tensor, exclude: bool
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, in blocks of queries, so never the whole map (MLIC, equation 6).

    Shapes as :func:`linear_attention`; ``query_at``, ``key_at``: [positions, 2] rows and columns.
    With ``exclude``, keys within Chebyshev distance 2 are left out; a query without keys gives 0.
    """
    batch, channels, queries = q.shape
    q, k, v = (t.reshape(batch, heads, channels // heads, -1).transpose(2, 3) for t in (q, k, v))
    out = []
    for start in range(0, queries, QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        logits = (q[:, :, block] * (channels // heads) ** -0.5) @ k.transpose(2, 3)
        if exclude:
            distance = (query_at[block, None] - key_at[None]).abs().amax(-1)
            near = distance <= EXCLUDED_RADIUS
            alone = near.all(1)[:, None]  # no key is left: zero, where softmax of nothing is NaN
            logits = logits.masked_fill(near & ~alone, float("-inf"))
            weights = torch.softmax(logits, dim=-1).masked_fill(alone, 0.0)
        else:
            weights = torch.softmax(logits, dim=-1)
        out.append(weights @ v)
    return torch.cat(out, dim=2).transpose(2, 3).reshape(batch, channels, queries)


def positions(height: int, width: int, device: torch.device) -> Tensor:
    """Row and column of every position, [2, H, W]."""
    rows = torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


class _GlobalContext(nn.Module):
    """Projections [B, dim, H, W] of what a global context attends to, each depthwise.

    ``linear``: attention linear in the number of positions (MLIC++) instead of softmax (MLIC+).
    """

    def __init__(self, dim: int, linear: bool, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.linear = linear
        self.keys = depthwise_projection(dim)
        self.queries = depthwise_projection(dim)
        self.values = depthwise_projection(dim)


class GlobalIntraContext(_GlobalContext):
    """Global context within a slice: what correlated in the previous slice is used in this one.

    yhat^(i-1) and the anchors of yhat^i, both [B, C, H, W] -> [B, 2C, H, W].
    """

    def __init__(self, dim: int, linear: bool, num_heads: int = 2) -> None:
        super().__init__(dim, linear, num_heads)
        self.reprojection = nn.Conv2d(dim, dim * 2, 5, padding=2)
        self.mlp = feed_forward(dim * 2, dim * 4, dim * 2)

    def forward(self, previous: Tensor, anchors: Tensor) -> Tensor:
        batch, dim, height, width = anchors.shape
        q = squeeze(self.queries(keep(previous, Parity.NON_ANCHOR)), Parity.NON_ANCHOR).flatten(2)
        k = squeeze(self.keys(keep(previous, Parity.ANCHOR)), Parity.ANCHOR).flatten(2)
        v = squeeze(self.values(anchors), Parity.ANCHOR).flatten(2)
        if self.linear:
            out = linear_attention(q, k, v, self.num_heads)
        else:
            at = positions(height, width, anchors.device)
            query_at, key_at = (
                squeeze(at, parity).flatten(1).T for parity in (Parity.NON_ANCHOR, Parity.ANCHOR)
            )
            out = softmax_attention(q, k, v, self.num_heads, query_at, key_at, exclude=True)
        out = unsqueeze(out.reshape(batch, dim, height, width // 2), Parity.NON_ANCHOR)
        out = self.reprojection(out)
        return out + self.mlp(out)


class GlobalInterContext(_GlobalContext):
    """Global context across slices (MLIC+, MLIC++): previous [B, iC, H, W] -> [B, 2C, H, W]."""

    def __init__(self, dim: int, out_dim: int, num_heads: int, linear: bool) -> None:
        super().__init__(dim, linear, num_heads)
        self.reprojection = nn.Conv2d(dim, out_dim * 3 // 2, 5, padding=2)
        self.mlp = feed_forward(out_dim * 3 // 2, out_dim * 2, out_dim)
        self.skip = nn.Conv2d(out_dim * 3 // 2, out_dim, 1)

    def forward(self, previous: Tensor) -> Tensor:
        _, _, height, width = previous.shape
        q, k, v = (m(previous).flatten(2) for m in (self.queries, self.keys, self.values))
        if self.linear:
            out = linear_attention(q, k, v, self.num_heads)
        else:
            at = positions(height, width, previous.device).flatten(1).T
            out = softmax_attention(q, k, v, self.num_heads, at, at, exclude=False)
        out = self.reprojection(out.reshape(previous.shape))
        return self.skip(out) + self.mlp(out)


def make_contexts(config: MlicConfig) -> dict[str, nn.ModuleList]:
    """The per-slice contexts of one model, by attribute name; slice 0 has the local one alone."""
    c = config.slice_channels
    linear = config.variant == "mlic_plus_plus"
    local = StackedCheckerboardContext if config.variant == "mlic" else LocalContext
    later = range(1, config.slices)
    contexts: dict[str, list[nn.Module | None]] = {
        "local_context": [local(c) for _ in range(config.slices)],
        "channel_context": [
            None,
            *(ChannelContext(c * i, c, config.channel_context_channels) for i in later),
        ],
        "global_intra_context": [None, *(GlobalIntraContext(c, linear) for _ in later)],
    }
    if config.variant != "mlic":
        contexts["global_inter_context"] = [
            None,
            *(GlobalInterContext(c * i, c * 2, c * i // 32, linear) for i in later),
        ]
    return {name: nn.ModuleList(modules) for name, modules in contexts.items()}  # type: ignore[arg-type]
