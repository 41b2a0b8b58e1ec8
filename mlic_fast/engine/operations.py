"""What the coding loop asks of a backend: operations on activations, and the small networks of
them.

A backend has to offer the operations. The networks are written once, here; a backend may replace
any of them by something fused that gives the same bits. Arrays are the backend's own, [B, H, W,
C]; those squeezed to one colour are [B, H, W/2, C]. The arithmetic: docs/arithmetic.md; the order
of the layers: its section 6.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from mlic_fast.engine.packing.packed import PackedLayers
from mlic_fast.models.parity import Parity

#: Heads of the global context within a slice.
INTRA_HEADS = 2
#: A side branch: the 1x1 layer beside the hidden ones of the context across slices.
SKIP = "skip"
#: Layers of h_s that a pixel shuffle follows: :meth:`Operations.subpixel_conv`.
SUBPIXEL_LAYERS = ("h_s.increase.2.0", "h_s.increase.6.0")
#: float32 array of the backend.
Real = Any


@dataclass(frozen=True)
class Act:
    """A quantised tensor: integers within the limit of activations, real = q * 2^-exponent."""

    q: Any
    exponent: int

    def rows(self, at: slice) -> Act:
        """Some of the rows."""
        return Act(self.q[:, at], self.exponent)


class Latents:
    """The slices decoded so far: float32 ``y``, and ``q`` as the layers take them.

    A backend changes them in place, by :meth:`Operations.decoded` and
    :meth:`Operations.add_prediction`.
    """

    def __init__(self, slices: int) -> None:
        self.y: list[Real] = [None] * slices
        self.q: list[Act] = [None] * slices  # type: ignore[list-item]


class Operations(ABC):
    """A backend of the packed networks of one model.

    ``layer`` arguments name packed layers, ``out`` arguments name activations, whose exponents are
    packed too.
    """

    def __init__(self, packed: PackedLayers) -> None:
        self.config = packed.config
        self.layers = packed.layers
        self.exponents = packed.exponents

    # -- order --------------------------------------------------------------------------------

    #: Whether work that is done aside really runs beside what follows, so that its inputs must not
    #: change until it is joined.
    branches = False

    def aside(self, name: str) -> AbstractContextManager[Any]:
        """While entered, work may run beside what follows, until :meth:`join`."""
        return nullcontext()

    def join(self, name: str) -> None:
        """All that follows waits for the work that was done aside under this name."""
        return

    # -- operations ---------------------------------------------------------------------------

    @abstractmethod
    def hyper_latents(self, symbols: Any) -> Act:
        """Symbols of z int32 [B, h, w, N] plus the medians."""

    @abstractmethod
    def new_latents(self, batch: int, height: int, width: int) -> Latents:
        """Room for the slices of B images of H x W latents."""

    @abstractmethod
    def decoded(
        self, latents: Latents, index: int, symbols: Any, means: Real, parity: Parity
    ) -> None:
        """Slice ``index`` becomes symbols + means at one colour, both [B, H, W/2, C].

        The other colour stays; with the anchors, which come first, it becomes zero.
        """

    @abstractmethod
    def add_prediction(
        self, latents: Latents, index: int, layer: str, x: Act, parity: Parity
    ) -> None:
        """Adds half_tanh of the last layer of a residual prediction to slice ``index``."""

    @abstractmethod
    def channels(self, x: Act, start: int, stop: int) -> Act:
        """Channels ``start`` to ``stop``."""

    @abstractmethod
    def keep(self, x: Act, parity: Parity) -> Act:
        """The activation with zeros at the other colour, [B, H, W, C]."""

    @abstractmethod
    def squeeze(self, x: Act, parity: Parity) -> Act:
        """The positions of one colour: [B, H, W, C] -> [B, H, W/2, C]."""

    @abstractmethod
    def unsqueeze(self, x: Act, parity: Parity) -> Act:
        """The inverse of squeeze, with zeros at the other colour."""

    @abstractmethod
    def conv(
        self,
        layer: str,
        inputs: Sequence[Act],
        *,
        partial: Real | None = None,
        first: int | None = None,
        at: Parity | None = None,
        gelu_after: bool = False,
        residual: Real | Act | None = None,
        out: str | None = None,
    ) -> Any:
        """Convolution of a concatenation: one integer product for each input, added in order.

        The sum starts from the bias, or from ``partial``, the sum over the inputs before number
        ``first``; without ``first``, ``inputs`` are the last ones. GELU with ``gelu_after``; then
        ``residual`` is added.
        With ``at`` only the positions of one colour are computed, [B, H, W/2, O]; partial and
        residual are of that shape too. Gives an Act named ``out``, or a real without it.
        """

    @abstractmethod
    def subpixel_conv(self, layer: str, x: Act, out: str) -> Act:
        """conv, GELU, pixel shuffle: channel 4c + 2u + v -> row 2y + u, column 2x + v."""

    @abstractmethod
    def depthwise(self, layer: str, x: Act, *, gelu_after: bool = False, out: str) -> Act:
        """Depthwise 3x3 convolution with bias, then GELU with ``gelu_after``: [B, H, W, C]."""

    @abstractmethod
    def linear_attention(self, q: Act, k: Act, v: Act, heads: int, out: str) -> Act:
        """softmax over channels (q) times (softmax over positions (k) times v), all [B, H, W, C].

        MLIC++, equation 8; the C channels are ``heads`` heads of equal size, one after another.
        """

    @abstractmethod
    def softmax_attention(
        self, q: Act, k: Act, v: Act, heads: int, out: str, *, exclude: bool = False
    ) -> Act:
        """softmax(q k^T / sqrt(d)) v over all positions: [B, H, W, C] each (MLIC, equation 6).

        With ``exclude``, q is the squeezed non-anchors and k, v the squeezed anchors; keys within
        Chebyshev distance 2 are left out, and a query without keys gives 0.
        """

    # What only networks use: a backend that replaces those need not offer it.

    def quantise(self, r: Real, out: str) -> Act:
        """Real [B, H, W, C] -> the activation ``out``."""
        raise NotImplementedError

    def scale_indexes(self, scales: Real) -> Any:
        """Scales [B, H, W/2, C] -> uint8, the numbers of their tables."""
        raise NotImplementedError

    def symbols(self, y: Real, means: Real, parity: Parity) -> Any:
        """y [B, H, W, C] about means at one colour, rounded: int32 [B, H, W/2, C]."""
        raise NotImplementedError

    def layer_norm(self, layer: str, x: Act, out: str) -> Act:
        """LayerNorm over the channels."""
        raise NotImplementedError

    def window_attention(self, layer: str, qkv: Act, out: str) -> Act:
        """Local attention in the windows around non-anchors: [B, H, W, 3C] -> [B, H, W/2, 25 C].

        Channels of q, k and v are (d, head), the head fastest; of the output (token, head, d).
        """
        raise NotImplementedError

    # What only transforms use.

    def strided_conv(
        self, layer: str, x: Act, *, gelu_after: bool = False, out: str | None = None
    ) -> Any:
        """conv at even rows and columns: [B, H, W, C] -> [B, H/2, W/2, O]."""
        r = self.conv(layer, [x], gelu_after=gelu_after, out=out)
        return self.every_second(r) if isinstance(r, Act) else r[:, ::2, ::2]

    # What only residual transforms use.

    def gdn(self, layer: str, r: Real, skip: Real, *, inverse: bool = False, out: str) -> Act:
        """Generalised divisive normalisation (Ballé et al., 2016) of reals [B, H, W, C], plus skip.

        ``layer`` gives the norm: 1x1, of squares in two parts. The other arguments are those of
        :meth:`normalise`.
        """
        norm = self.conv(layer, self.squares(r, layer))
        return self.normalise(r, norm, skip, inverse=inverse, out=out)

    def gdn_of_rows(
        self,
        layer: str,
        x: Act,
        halo: int,
        network: Callable[[slice], tuple[Real, Real]],
        *,
        inverse: bool = False,
        out: str,
    ) -> Act:
        """:meth:`gdn` of what a network gives for rows of ``x``: the reals, and what is added.

        The network sees ``halo`` rows more on each side. A backend may cut all rows into bands.
        """
        r, skip = network(slice(0, x.q.shape[1]))
        return self.gdn(layer, r, skip, inverse=inverse, out=out)

    def to_positions(self, images: Any) -> Act:
        """uint8 [B, 3, H, W] -> 0 .. 255 [B, H, W, 3], exponent 0."""
        raise NotImplementedError

    def from_positions(self, r: Real) -> Any:
        """The inverse of to_positions, of reals: clamped to 0 .. 255 and rounded, ties to even."""
        raise NotImplementedError

    def squares(self, r: Real, out: str) -> list[Act]:
        """Squares of reals [B, H, W, C] in 22 bits: the upper 11 and the lower 11, as two inputs.

        A layer that takes both with the same weights takes their sum.

        The exponent of ``out`` is that with which the squares are activations.
        """
        raise NotImplementedError

    def normalise(self, r: Real, norm: Real, skip: Real, *, inverse: bool = False, out: str) -> Act:
        """r over the root of norm, or with ``inverse`` times it, plus skip: [B, H, W, C].

        Skip is of the same shape, or one that depth_to_space gives that shape.
        """
        raise NotImplementedError

    # What only block transforms use.

    def to_blocks(self, images: Any) -> Act:
        """uint8 [B, 3, H, W] -> 0 .. 255 [B, H/8, W/8, 192], exponent 0: channel 64c + 8v + u is
        colour c of row v and column u of a block.
        """
        raise NotImplementedError

    def to_pixels(self, r: Real) -> Any:
        """The inverse of to_blocks, of reals: clamped to 0 .. 255 and rounded, ties to even."""
        raise NotImplementedError

    def scale(self, r: Real, factors: Real) -> Real:
        """Reals [B, H, W, C] times a factor for each channel, float32 [C]."""
        raise NotImplementedError

    def every_second(self, x: Act) -> Act:
        """Even rows and columns: [B, H, W, C] -> [B, H/2, W/2, C]."""
        raise NotImplementedError

    def space_to_depth(self, x: Act) -> Act:
        """[B, H, W, C] -> [B, H/2, W/2, 4C]: channel (2u + v) C + c is row 2y + u, column
        2x + v.
        """
        raise NotImplementedError

    def depth_to_space(self, r: Real) -> Real:
        """The inverse of space_to_depth, for reals: [B, H, W, 4C] -> [B, 2H, 2W, C]."""
        raise NotImplementedError

    def mixing_blocks(self, prefix: str, count: int, r: Real) -> Real:
        """The blocks ``prefix``.0, .1 .. of :class:`mlic_fast.models.layers.MixingBlock`.

        May write into ``r`` [B, H, W, C]. Its activations have the exponent of ``prefix``.
        """
        for index in range(count):
            block = f"{prefix}.{index}"
            layers = (f"{block}.{name}" for name in ("mix_in", "depthwise", "mix_out"))
            mix_in, depthwise, mix_out = layers
            x = self.conv(mix_in, [self.quantise(r, prefix)], gelu_after=True, out=mix_in)
            r = self.conv(mix_out, [self.depthwise(depthwise, x, out=depthwise)], residual=r)
            expand, contract = f"{block}.expand", f"{block}.contract"
            x = self.conv(expand, [self.quantise(r, prefix)], gelu_after=True, out=expand)
            r = self.conv(contract, [x], residual=r)
        return r

    # -- networks -----------------------------------------------------------------------------

    def sums(
        self,
        layers: Sequence[str],
        inputs: Sequence[Act],
        *,
        partials: Sequence[Real] | None = None,
        first: int = 0,
        at: Parity | None = None,
    ) -> list[Real]:
        """Partial sums: conv of the same inputs by several layers, each for use as ``partial``.

        ``partials``: the sums of the same layers over the inputs before number ``first``, each
        [B, H, W, O], or [B, H, W/2, O] at a colour.
        """
        return [
            self.conv(layer, inputs, partial=partial, first=first, at=at)
            for layer, partial in zip(layers, partials or [None] * len(layers), strict=True)
        ]

    def hyper_synthesis(self, symbols: Any) -> Act:
        """h_s: the symbols of z [B, h, w, N] -> [B, 4h, 4w, 2M]."""
        x = self.hyper_latents(symbols)
        for index in (0, 2, 4, 6):
            name = f"h_s.increase.{index}"
            if f"{name}.0" in SUBPIXEL_LAYERS:
                x = self.subpixel_conv(f"{name}.0", x, f"{name}.0")
            else:
                x = self.conv(name, [x], gelu_after=True, out=name)
        return self.conv("h_s.increase.8", [x], out="hyper")

    def context_at(self, context: Act, parity: Parity) -> Any:
        """A context at one colour, as it goes into :meth:`entropy_parameters`."""
        return self.squeeze(context, parity)

    def context_ahead(self, i: int, parity: Parity, number: int, context: Any) -> Any:
        """Prepare a context for :meth:`entropy_parameters` before the other contexts are there.

        A backend may compute here what depends on this context alone. ``number`` is that of the
        context among the inputs of the first layer. The result takes its place.
        """
        return context

    def entropy_parameters(
        self, i: int, parity: Parity, start: Real, contexts: Sequence[Any], y: Real | None
    ) -> tuple[Any, Real, Any]:
        """Scale indexes and means at one colour, and the symbols of ``y`` when encoding.

        ``start``: the sum over the hyper part; ``contexts``: squeezed to the colour, or what
        :meth:`context_ahead` made of them. All results are [B, H, W/2, C].
        """
        first = entropy_parameters_layer(i, parity, 0)
        x = self.conv(first, contexts, partial=start, gelu_after=True, out=first)
        for index in (2, 4):
            layer = entropy_parameters_layer(i, parity, index)
            x = self.conv(layer, [x], gelu_after=True, out=layer)
        r = self.conv(entropy_parameters_layer(i, parity, 6), [x])
        channels = self.config.slice_channels
        means = r[..., channels:]
        symbols = None if y is None else self.symbols(y, means, parity)
        return self.scale_indexes(r[..., :channels]), means, symbols

    def predict_residual(self, latents: Latents, i: int, parity: Parity, start: Real) -> None:
        """Adds the latent residual prediction to slice i at one colour.

        ``start``: the sum over mu_h and the previous slices, [B, H, W, O].
        """
        x = self._residual_hidden(i, parity, latents.q[i], start)
        last = residual_layers(self.config.weight_family)[-1]
        self.add_prediction(latents, i, residual_layer(i, parity, last), x, parity)

    def _residual_hidden(self, i: int, parity: Parity, last: Act, start: Real) -> Act:
        """The layers of the residual prediction but for the last; ``last`` is slice i."""
        first, *middle, _ = residual_layers(self.config.weight_family)
        layer = residual_layer(i, parity, first)
        x = self.conv(layer, [last], partial=start, gelu_after=True, out=layer)
        for index in middle:
            layer = residual_layer(i, parity, index)
            x = self.conv(layer, [x], gelu_after=True, out=layer)
        return x

    def channel_context(self, i: int, last: Act, start: Real | None = None) -> Act:
        """[B, H, W, 4C], from the last of the slices before.

        ``start``: the sum of its first layer over the others, if there are any.
        """
        prefix = f"channel_context.{i}.fushion"
        layer = channel_context_layer(i)
        x = self.conv(layer, [last], partial=start, gelu_after=True, out=layer)
        x = self.conv(f"{prefix}.2", [x], gelu_after=True, out=f"{prefix}.2")
        return self.conv(f"{prefix}.4", [x], out=f"{prefix}.4")

    def local_context(self, i: int, anchors: Act) -> Act:
        """At non-anchors, [B, H, W/2, 2C]."""
        prefix = f"local_context.{i}"
        if self.config.variant == "mlic":
            x = self.conv(f"{prefix}.convs.0", [anchors], gelu_after=True, out=f"{prefix}.convs.0")
            x = self.conv(f"{prefix}.convs.1", [x], gelu_after=True, out=f"{prefix}.convs.1")
            return self.conv(
                f"{prefix}.convs.2", [x], at=Parity.NON_ANCHOR, out=f"{prefix}.convs.2"
            )
        x = self.layer_norm(f"{prefix}.norm1", anchors, f"{prefix}.norm1")
        x = self.conv(f"{prefix}.qkv_proj", [x], out=f"{prefix}.qkv_proj")
        x = self.window_attention(f"{prefix}.attention", x, f"{prefix}.attention")
        x = self.conv(f"{prefix}.fusion", [x], out=f"{prefix}.fusion")
        fused = self.conv(f"{prefix}.proj", [x])
        x = self.quantise(fused, f"{prefix}.proj")
        x = self.layer_norm(f"{prefix}.norm2", x, f"{prefix}.norm2")
        x = self.conv(f"{prefix}.mlp.fc1", [x], gelu_after=True, out=f"{prefix}.mlp.fc1")
        return self.conv(f"{prefix}.mlp.fc2", [x], residual=fused, out=f"{prefix}.mlp.fc2")

    def inter_context(self, i: int, last: Act, starts: Sequence[Real] | None = None) -> Act:
        """Global context across slices, [B, H, W, 2C], from the last of the slices before.

        ``starts``: the sums of its first layers over the others, if there are any.
        """
        return self._inter_projection(i, self.inter_attention(i, last, starts))

    def _inter_projection(self, i: int, x: Act) -> Act:
        """The layers after the attention of :meth:`inter_context`."""
        prefix = f"global_inter_context.{i}"
        x = self.conv(f"{prefix}.reprojection", [x], out=f"{prefix}.reprojection")
        with self.aside(SKIP):
            skip = self.conv(f"{prefix}.skip", [x])
        hidden = self._hidden(prefix, x)
        self.join(SKIP)
        return self._last(prefix, hidden, residual=skip)

    def inter_attention(self, i: int, last: Act, starts: Sequence[Real] | None) -> Act:
        """The attention of :meth:`inter_context`, [B, H, W, i C]."""
        heads = i * self.config.slice_channels // 32
        q, k, v = self.project(inter_context_prefixes(i), [last], starts, heads=heads)
        out = f"global_inter_context.{i}.attention"
        if self.config.variant == "mlic_plus_plus":
            return self.linear_attention(q, k, v, heads, out)
        return self.softmax_attention(q, k, v, heads, out)

    def intra_queries_and_keys(self, i: int, previous: Act) -> tuple[Act, Act]:
        """Queries and keys of the global context within slice i, squeezed to their colours.

        They come from slice i - 1.
        """
        prefix = f"global_intra_context.{i}"
        (q,) = self.project([f"{prefix}.queries"], [self.keep(previous, Parity.NON_ANCHOR)])
        anchors = self.keep(previous, Parity.ANCHOR)
        (k,) = self.project([f"{prefix}.keys"], [anchors], heads=INTRA_HEADS)
        return self.squeeze(q, Parity.NON_ANCHOR), self.squeeze(k, Parity.ANCHOR)

    def intra_context(self, i: int, q: Act, k: Act, anchors: Act) -> Act:
        """Global context within a slice, [B, H, W, 2C]."""
        prefix = f"global_intra_context.{i}"
        (v,) = self.project([f"{prefix}.values"], [anchors])
        v = self.squeeze(v, Parity.ANCHOR)
        out = f"{prefix}.attention"
        if self.config.variant == "mlic_plus_plus":
            x = self.linear_attention(q, k, v, INTRA_HEADS, out)
        else:
            x = self.softmax_attention(q, k, v, INTRA_HEADS, out, exclude=True)
        return self._intra_projection(i, self.unsqueeze(x, Parity.NON_ANCHOR))

    def _intra_projection(self, i: int, x: Act) -> Act:
        """The layers after the attention of :meth:`intra_context`."""
        prefix = f"global_intra_context.{i}"
        x = self.conv(f"{prefix}.reprojection", [x], out=f"{prefix}.reprojection")
        return self._last(prefix, self._hidden(prefix, x), residual=x)

    def project(
        self,
        prefixes: Sequence[str],
        inputs: Sequence[Act],
        partials: Sequence[Real] | None = None,
        *,
        heads: int = 0,
    ) -> list[Act]:
        """1x1, then depthwise 3x3, of the same inputs [B, H, W, C] by several networks.

        ``partials``: the sums of the 1x1 layers over the inputs before these, which are the last.
        ``heads``: of the attention, where one of the networks makes its keys. A backend may prepare
        it.
        """
        projected = []
        for prefix, partial in zip(prefixes, partials or [None] * len(prefixes), strict=True):
            x = self.conv(f"{prefix}.0", inputs, partial=partial, out=f"{prefix}.0")
            projected.append(self.depthwise(f"{prefix}.1", x, out=f"{prefix}.1"))
        return projected

    def _hidden(self, prefix: str, x: Act) -> Act:
        x = self.conv(f"{prefix}.mlp.0", [x], gelu_after=True, out=f"{prefix}.mlp.0")
        return self.depthwise(f"{prefix}.mlp.2", x, gelu_after=True, out=f"{prefix}.mlp.2")

    def _last(self, prefix: str, hidden: Act, residual: Real | Act) -> Act:
        return self.conv(f"{prefix}.mlp.4", [hidden], residual=residual, out=f"{prefix}.mlp.4")


def entropy_parameters_layer(i: int, parity: Parity, index: int) -> str:
    """A layer of the entropy parameters of slice ``i``, by its number in the float model."""
    colour = "anchor" if parity is Parity.ANCHOR else "nonanchor"
    return f"entropy_parameters_{colour}.{i}.fusion.{index}"


def channel_context_layer(i: int) -> str:
    """The first layer of the channel context of slice ``i``."""
    return f"channel_context.{i}.fushion.0"


def inter_context_prefixes(i: int) -> list[str]:
    """Prefixes of the queries, keys and values of the context across slices, for slice ``i``."""
    return [f"global_inter_context.{i}.{name}" for name in ("queries", "keys", "values")]


def residual_layer(i: int, parity: Parity, index: int) -> str:
    """A layer of the residual prediction of slice ``i``, by its number in the float model."""
    colour = "anchor" if parity is Parity.ANCHOR else "nonanchor"
    return f"lrp_{colour}.{i}.lrp_transform.{index}"


def residual_layers(weight_family: str) -> tuple[int, ...]:
    """Numbers of the convolutions of a residual prediction in the float model."""
    return (0, 2, 4) if weight_family == "current" else (0, 2, 4, 6)
