"""The coding loop: written once, run by encoder and decoder, on any backend.

A backend offers the operations of :class:`mlic_fast.engine.arithmetic.SpecOps`. The encoder and the
decoder differ in the :class:`PassCoder` alone, which gives a pass its symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mlic_fast.engine.arithmetic import Act, SpecOps
from mlic_fast.models.checkerboard import Parity
from mlic_fast.models.config import MlicConfig

#: float32 array of the backend.
Real = Any


class PassCoder(Protocol):
    """Where the symbols of a pass come from: rounding y - mean, or the range decoder."""

    def __call__(self, index: int, parity: Parity, scale_indexes: Any, means: Real) -> Any:
        """Symbols int32 of one half of slice ``index``; all arrays are [B, H, W/2, C]."""
        ...


def code_latents(ops: SpecOps, config: MlicConfig, z_symbols: Any, code: PassCoder) -> list[Real]:
    """Symbols of z [B, H/4, W/4, N] and 2S coding passes -> the S decoded slices [B, H, W, C]."""
    hyper = _hyper_synthesis(ops, z_symbols)
    passes = _Passes(ops, config, hyper)
    for i in range(config.slices):
        passes.code_slice(i, code)
    return passes.y_hat


def _hyper_synthesis(ops: SpecOps, z_symbols: Any) -> Act:
    """h_s: the symbols of z -> [B, H, W, 2M]."""
    x = ops.hyper_latents(z_symbols)
    for index in (0, 2, 4, 6):
        subpixel = index in (2, 6)
        name = f"h_s.increase.{index}.0" if subpixel else f"h_s.increase.{index}"
        x = ops.conv(name, [x], activation=True, out=name)
        if subpixel:
            x = ops.pixel_shuffle(x)
    return ops.conv("h_s.increase.8", [x], out="hyper")


class _Passes:
    def __init__(self, ops: SpecOps, config: MlicConfig, hyper: Act) -> None:
        self.ops = ops
        self.config = config
        self.hyper_means = ops.channels(hyper, config.M, 2 * config.M)
        self.y_hat: list[Real] = []
        self.decoded: list[Act] = []
        self.residual_layers = (0, 2, 4) if config.weight_family == "current" else (0, 2, 4, 6)
        # The hyper part of the entropy parameters' first layers depends on no pass.
        self.hyper_parts = {
            (parity, i): ops.conv(_entropy_parameters(parity, i, 0), [hyper], at=parity)
            for i in range(config.slices)
            for parity in (Parity.ANCHOR, Parity.NON_ANCHOR)
        }

    def code_slice(self, i: int, code: PassCoder) -> None:
        """Both passes of slice i. (MLIC, section 3; the float twin is MlicModel.code_latents.)"""
        ops, name = self.ops, f"y_hat.{i}"
        shared = self._previous_slices(i)
        residual_parts = {
            parity: ops.conv(_residual(parity, i, 0), [self.hyper_means, *self.decoded])
            for parity in (Parity.ANCHOR, Parity.NON_ANCHOR)
        }

        def predict(y: Real, parity: Parity) -> Real:
            """y plus its latent residual prediction at one colour."""
            x = ops.conv(
                _residual(parity, i, 0),
                [ops.quantise(y, name)],
                partial=residual_parts[parity],
                activation=True,
                out=_residual(parity, i, 0),
            )
            for index in self.residual_layers[1:-1]:
                layer = _residual(parity, i, index)
                x = ops.conv(layer, [x], activation=True, out=layer)
            r = ops.conv(_residual(parity, i, self.residual_layers[-1]), [x], at=parity)
            return ops.add_residual(y, r, parity)

        half = [ops.squeeze(x, Parity.ANCHOR) for x in shared]
        indexes, means = self._entropy_parameters(i, Parity.ANCHOR, half)
        symbols = code(i, Parity.ANCHOR, indexes, means)
        anchors = predict(ops.decoded(symbols, means, Parity.ANCHOR, None), Parity.ANCHOR)

        anchors_q = ops.quantise(anchors, name)
        half = [ops.squeeze(x, Parity.NON_ANCHOR) for x in shared]
        half.append(self._local_context(i, anchors_q))
        if i:
            half.append(ops.squeeze(self._intra_context(i, anchors_q), Parity.NON_ANCHOR))
        indexes, means = self._entropy_parameters(i, Parity.NON_ANCHOR, half)
        symbols = code(i, Parity.NON_ANCHOR, indexes, means)
        both = ops.decoded(symbols, means, Parity.NON_ANCHOR, anchors)
        self.y_hat.append(predict(both, Parity.NON_ANCHOR))
        self.decoded.append(ops.quantise(self.y_hat[-1], name))

    def _previous_slices(self, i: int) -> list[Act]:
        """Contexts that both passes of slice i share: inter (not in MLIC), then channel."""
        if not i:
            return []
        contexts = [self._channel_context(i)]
        return contexts if self.config.variant == "mlic" else [self._inter_context(i), *contexts]

    def _entropy_parameters(
        self, i: int, parity: Parity, contexts: Sequence[Act]
    ) -> tuple[Any, Real]:
        """Scale indexes and means at one colour, from contexts squeezed to it."""
        ops = self.ops
        first = _entropy_parameters(parity, i, 0)
        x = ops.conv(
            first, contexts, partial=self.hyper_parts.pop((parity, i)), activation=True, out=first
        )
        for index in (2, 4):
            layer = _entropy_parameters(parity, i, index)
            x = ops.conv(layer, [x], activation=True, out=layer)
        r = ops.conv(_entropy_parameters(parity, i, 6), [x])
        channels = self.config.slice_channels
        return ops.scale_indexes(r[..., :channels]), r[..., channels:]

    def _channel_context(self, i: int) -> Act:
        ops, prefix = self.ops, f"channel_context.{i}.fushion"
        x = ops.conv(f"{prefix}.0", self.decoded, activation=True, out=f"{prefix}.0")
        x = ops.conv(f"{prefix}.2", [x], activation=True, out=f"{prefix}.2")
        return ops.conv(f"{prefix}.4", [x], out=f"{prefix}.4")

    def _local_context(self, i: int, anchors: Act) -> Act:
        """At non-anchors, [B, H, W/2, 2C]."""
        ops, prefix = self.ops, f"local_context.{i}"
        if self.config.variant == "mlic":
            x = ops.conv(f"{prefix}.convs.0", [anchors], activation=True, out=f"{prefix}.convs.0")
            x = ops.conv(f"{prefix}.convs.1", [x], activation=True, out=f"{prefix}.convs.1")
            return ops.conv(f"{prefix}.convs.2", [x], at=Parity.NON_ANCHOR, out=f"{prefix}.convs.2")
        x = ops.layer_norm(f"{prefix}.norm1", anchors, f"{prefix}.norm1")
        x = ops.conv(f"{prefix}.qkv_proj", [x], out=f"{prefix}.qkv_proj")
        x = ops.window_attention(f"{prefix}.attention", x, f"{prefix}.attention")
        x = ops.conv(f"{prefix}.fusion", [x], out=f"{prefix}.fusion")
        fused = ops.conv(f"{prefix}.proj", [x])
        x = ops.layer_norm(
            f"{prefix}.norm2", ops.quantise(fused, f"{prefix}.proj"), f"{prefix}.norm2"
        )
        x = ops.conv(f"{prefix}.mlp.fc1", [x], activation=True, out=f"{prefix}.mlp.fc1")
        return ops.conv(f"{prefix}.mlp.fc2", [x], residual=fused, out=f"{prefix}.mlp.fc2")

    def _intra_context(self, i: int, anchors: Act) -> Act:
        ops, prefix = self.ops, f"global_intra_context.{i}"
        previous = self.decoded[-1]
        q = self._project(f"{prefix}.queries", [ops.keep(previous, Parity.NON_ANCHOR)])
        k = self._project(f"{prefix}.keys", [ops.keep(previous, Parity.ANCHOR)])
        v = self._project(f"{prefix}.values", [anchors])
        q = ops.squeeze(q, Parity.NON_ANCHOR)
        k, v = ops.squeeze(k, Parity.ANCHOR), ops.squeeze(v, Parity.ANCHOR)
        out = f"{prefix}.attention"
        if self.config.variant == "mlic_plus_plus":
            x = ops.linear_attention(q, k, v, 2, out)
        else:
            x = ops.softmax_attention(q, k, v, 2, out, exclude=True)
        x = ops.unsqueeze(x, Parity.NON_ANCHOR)
        x = ops.conv(f"{prefix}.reprojection", [x], out=f"{prefix}.reprojection")
        return self._feed_forward(prefix, x, residual=x)

    def _inter_context(self, i: int) -> Act:
        ops, prefix = self.ops, f"global_inter_context.{i}"
        q, k, v = (
            self._project(f"{prefix}.{name}", self.decoded)
            for name in ("queries", "keys", "values")
        )
        heads = i * self.config.slice_channels // 32
        attend = (
            ops.linear_attention
            if self.config.variant == "mlic_plus_plus"
            else ops.softmax_attention
        )
        x = attend(q, k, v, heads, f"{prefix}.attention")
        x = ops.conv(f"{prefix}.reprojection", [x], out=f"{prefix}.reprojection")
        return self._feed_forward(prefix, x, residual=ops.conv(f"{prefix}.skip", [x]))

    def _project(self, prefix: str, inputs: Sequence[Act]) -> Act:
        """1x1, then depthwise 3x3."""
        x = self.ops.conv(f"{prefix}.0", inputs, out=f"{prefix}.0")
        return self.ops.depthwise(f"{prefix}.1", x, out=f"{prefix}.1")

    def _feed_forward(self, prefix: str, x: Act, residual: Real | Act) -> Act:
        ops = self.ops
        x = ops.conv(f"{prefix}.mlp.0", [x], activation=True, out=f"{prefix}.mlp.0")
        x = ops.depthwise(f"{prefix}.mlp.2", x, activation=True, out=f"{prefix}.mlp.2")
        return ops.conv(f"{prefix}.mlp.4", [x], residual=residual, out=f"{prefix}.mlp.4")


def _entropy_parameters(parity: Parity, i: int, index: int) -> str:
    colour = "anchor" if parity is Parity.ANCHOR else "nonanchor"
    return f"entropy_parameters_{colour}.{i}.fusion.{index}"


def _residual(parity: Parity, i: int, index: int) -> str:
    colour = "anchor" if parity is Parity.ANCHOR else "nonanchor"
    return f"lrp_{colour}.{i}.lrp_transform.{index}"
