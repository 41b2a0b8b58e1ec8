"""Layers and layouts of the GPU backend on Triton kernels, a launch or two each.

Activations are planes of int8 (:mod:`mlic_fast.kernels.functions`), layouts are views: nothing is
copied to squeeze, keep or concatenate. Launches alone, no synchronisation: the whole path can be
captured in a CUDA graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor

from mlic_fast.engine.gpu.graphs import capture_stream
from mlic_fast.engine.operations import (
    Act,
    Latents,
    Operations,
)
from mlic_fast.engine.packing.packed import PackedLayers
from mlic_fast.kernels import (
    blocks,
    depthwise,
    latents,
    products,
)
from mlic_fast.kernels.depthwise import Keys, new_key_sums
from mlic_fast.kernels.layouts import FULL, KEPT, ONE_COLOUR, SQUEEZED, Grid, Input
from mlic_fast.kernels.planes import ALL
from mlic_fast.kernels.product_weights import ProductWeights
from mlic_fast.models.checkerboard import Parity

T = TypeVar("T")


class GpuLatents(Latents):
    """All slices side by side: ``whole`` float32 [B, H, W, M], of which ``y`` are views."""

    def __init__(self, whole: Tensor, planes: Tensor, exponents: Sequence[int]) -> None:
        slices = len(exponents)
        super().__init__(slices)
        self.whole = whole
        self.y = list(whole.chunk(slices, dim=-1))
        parts = zip(planes.chunk(slices, dim=-1), exponents, strict=True)
        self.q = [Act(Input(q), exponent) for q, exponent in parts]


class GpuLayers(Operations):
    """Layers and layouts; :class:`~mlic_fast.engine.gpu.gpu_operations.GpuOps` has the networks.

    Args:
        packed: the networks.
        device: a CUDA device; the CPU where TRITON_INTERPRET=1 was set before the import.
    """

    def __init__(self, packed: PackedLayers, device: torch.device) -> None:
        super().__init__(packed)
        self.device = device
        self._made: dict[Any, Any] = {}

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        """Weights in the form of a kernel, made when they are first used."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def _scale(self, name: str) -> float:
        return float(2.0 ** self.exponents[name])

    def _planes(self, grid: Grid, channels: int, *, squeezed: bool = False) -> Tensor:
        width = grid.width // 2 if squeezed else grid.width
        shape = (2, grid.batch, grid.height, width, channels)
        return torch.empty(shape, dtype=torch.int8, device=self.device)

    def _out_scale(self, names: Sequence[str], outputs: Sequence[int]) -> Tensor:
        """2^exponent of every output channel."""
        return self._once(
            ("out scale", *zip(names, outputs, strict=True)),
            lambda: torch.cat(
                [
                    torch.full((n,), self._scale(name), dtype=torch.float32)
                    for name, n in zip(names, outputs, strict=True)
                ]
            ).to(self.device),
        )

    # -- order --------------------------------------------------------------------------------

    branches = True

    def aside(self, name: str) -> AbstractContextManager[Any]:
        """In a graph another branch; launch by launch, where the host is slower, nothing.

        Memory is safe: a branch starts when all before it is done, and what it leaves is used
        after it is joined.
        """
        if not self._captures():
            return nullcontext()
        stream = capture_stream(self.device, name)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(stream)

    def join(self, name: str) -> None:
        if self._captures():
            stream = capture_stream(self.device, name)
            torch.cuda.current_stream(self.device).wait_stream(stream)

    def _captures(self) -> bool:
        return self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    # -- latents ------------------------------------------------------------------------------

    def hyper_latents(self, symbols: Tensor) -> Act:
        out = torch.empty((2, *symbols.shape), dtype=torch.int8, device=self.device)
        medians = self._once("medians", lambda: self._tensor(self.layers["medians"].bias))
        latents.hyper_latents(symbols, medians, out=out, out_scale=self._scale("z_hat"))
        return Act(Input(out), self.exponents["z_hat"])

    def new_latents(self, batch: int, height: int, width: int) -> GpuLatents:
        shape = (batch, height, width, self.config.M)
        whole = torch.empty(shape, dtype=torch.float32, device=self.device)
        planes = torch.empty((2, *shape), dtype=torch.int8, device=self.device)
        exponents = [self.exponents[f"y_hat.{i}"] for i in range(self.config.slices)]
        return GpuLatents(whole, planes, exponents)

    def decoded(
        self, state: Latents, index: int, symbols: Tensor, means: Tensor, parity: Parity
    ) -> None:
        y = state.y[index]
        latents.decoded(
            symbols,
            means,
            int(parity),
            Grid(*y.shape[:3]),
            latents=y,
            out=state.q[index].q.planes,
            out_scale=self._scale(f"y_hat.{index}"),
        )

    def add_prediction(
        self, state: Latents, index: int, layer: str, x: Act, parity: Parity
    ) -> None:
        name = f"y_hat.{index}"
        products.conv(
            x.q,
            self._weights([layer], 0, [x.exponent]),
            self._grid(x),
            colour=int(parity),
            latents=state.y[index],
            out=state.q[index].q.planes,
            out_scale=self._out_scale([name], [self.config.slice_channels]),
        )

    # -- layouts ------------------------------------------------------------------------------

    def channels(self, x: Act, start: int, stop: int) -> Act:
        return Act(replace(x.q, planes=x.q.planes[..., start:stop]), x.exponent)

    def keep(self, x: Act, parity: Parity) -> Act:
        return Act(Input(x.q.planes, KEPT, int(parity)), x.exponent)

    def squeeze(self, x: Act, parity: Parity) -> Act:
        return Act(replace(x.q, kind=ONE_COLOUR, colour=int(parity)), x.exponent)

    def unsqueeze(self, x: Act, parity: Parity) -> Act:
        assert x.q.kind == SQUEEZED and x.q.colour == parity
        return x  # a convolution reads it so

    @staticmethod
    def _grid(x: Act) -> Grid:
        _, batch, height, width, _ = x.q.planes.shape
        return Grid(batch, height, 2 * width if x.q.kind == SQUEEZED else width)

    # -- products -----------------------------------------------------------------------------

    def conv(
        self,
        layer: str,
        inputs: Sequence[Act],
        *,
        partial: Tensor | None = None,
        first: int | None = None,
        at: Parity | None = None,
        gelu_after: bool = False,
        residual: Tensor | Act | None = None,
        out: str | None = None,
    ) -> Any:
        start = self.layers[layer].used(inputs, partial, first).start
        *before, run = _runs(inputs)
        for earlier in before:
            partial = self._sum([layer], start, earlier, partial, at)
            start += len(earlier)
        weights = self._weights([layer], start, [x.exponent for x in run])
        grid = self._grid(run[0])
        options: dict[str, Any] = {"colour": _colour(at), "gelu_after": gelu_after}
        if isinstance(residual, Act):
            options.update(residual=residual.q.planes, residual_exponent=residual.exponent)
        elif residual is not None:
            options.update(residual=residual)
        if out is None:
            r = self._real(grid, weights.outputs, at)
        else:
            r = self._planes(grid, weights.outputs, squeezed=at is not None)
            options.update(out_scale=self._out_scale([out], [weights.outputs]))
        products.conv(run[0].q, weights, grid, **_spread(run), start=partial, out=r, **options)
        if out is None:
            return r
        kind, colour = (FULL, 0) if at is None else (SQUEEZED, int(at))
        return Act(Input(r, kind, colour), self.exponents[out])

    def sums(
        self,
        layers: Sequence[str],
        inputs: Sequence[Act],
        *,
        partials: Sequence[Tensor] | None = None,
        first: int = 0,
        at: Parity | None = None,
    ) -> list[Tensor]:
        """The layers side by side in one launch for each run of inputs."""
        partial, start = _side_by_side(partials), first
        for run in _runs(inputs):
            partial = self._sum(layers, start, run, partial, at)
            start += len(run)
        assert partial is not None
        outputs = [len(self.layers[layer].bias) for layer in layers]
        return list(partial.split(outputs, dim=-1))

    def subpixel_conv(self, layer: str, x: Act, out: str) -> Act:
        weights = self._weights([layer], 0, [x.exponent])
        grid = self._grid(x)
        doubled = Grid(grid.batch, 2 * grid.height, 2 * grid.width)
        r = self._planes(doubled, weights.outputs // 4)
        products.conv(
            x.q,
            weights,
            grid,
            gelu_after=True,
            out=r,
            out_scale=self._out_scale([out], [weights.outputs]),
            shuffle=True,
        )
        return Act(Input(r), self.exponents[out])

    def depthwise(self, layer: str, x: Act, *, gelu_after: bool = False, out: str) -> Act:
        return self._depthwise([layer], x.q.planes, [x.exponent], gelu_after, [out])[0]

    def project(
        self,
        prefixes: Sequence[str],
        inputs: Sequence[Act],
        partials: Sequence[Tensor] | None = None,
        *,
        heads: int = 0,
    ) -> list[Act]:
        """Two launches, whatever the number of networks. Keys of linear attention have their sums,
        at the colour that is kept.
        """
        (run,) = _runs(inputs)
        names = [f"{prefix}.0" for prefix in prefixes]
        start = self.layers[names[0]].used(inputs, partials, None).start
        weights = self._weights(names, start, [x.exponent for x in run])
        grid = self._grid(run[0])
        outputs = [len(self.layers[name].bias) for name in names]
        x = self._planes(grid, weights.outputs)
        products.conv(
            run[0].q,
            weights,
            grid,
            **_spread(run),
            start=_side_by_side(partials),
            out=x,
            out_scale=self._out_scale(names, outputs),
        )
        depthwise_names = [f"{prefix}.1" for prefix in prefixes]
        exponents = [self.exponents[name] for name in names]
        keys = None
        if heads and self.config.variant == "mlic_plus_plus":
            number = next(i for i, prefix in enumerate(prefixes) if prefix.endswith(".keys"))
            sums = new_key_sums(grid, heads, outputs[number] // heads, self.device)
            colour = run[0].q.colour if run[0].q.kind == KEPT else ALL
            keys = Keys(sum(outputs[:number]), colour, sums)
        acts = self._depthwise(depthwise_names, x, exponents, False, depthwise_names, keys)
        if keys:
            acts[number] = Act(replace(acts[number].q, sums=keys.sums), acts[number].exponent)
        return acts

    def _depthwise(
        self,
        layers: Sequence[str],
        x: Tensor,
        exponents: Sequence[int],
        gelu_after: bool,
        out: Sequence[str],
        keys: Keys | None = None,
    ) -> list[Act]:
        weights = self._once(
            ("depthwise", *layers),
            lambda: depthwise.DepthwiseWeights.pack(
                [self.layers[layer] for layer in layers], exponents, self.device
            ),
        )
        outputs = [len(self.layers[layer].bias) for layer in layers]
        r = torch.empty(x.shape, dtype=torch.int8, device=self.device)
        depthwise.depthwise(
            x,
            weights,
            Grid(*x.shape[1:4]),
            gelu_after=gelu_after,
            keys=keys,
            out=r,
            out_scale=self._out_scale(out, outputs),
        )
        parts = zip(r.split(outputs, dim=-1), out, strict=True)
        return [Act(Input(part), self.exponents[name]) for part, name in parts]

    def _sum(
        self,
        layers: Sequence[str],
        start: int,
        run: Sequence[Act],
        partial: Tensor | None,
        at: Parity | None,
    ) -> Tensor:
        weights = self._weights(layers, start, [x.exponent for x in run])
        grid = self._grid(run[0])
        r = self._real(grid, weights.outputs, at)
        products.conv(
            run[0].q,
            weights,
            grid,
            **_spread(run),
            start=partial,
            colour=_colour(at),
            out=r,
        )
        return r

    def _real(self, grid: Grid, outputs: int, at: Parity | None) -> Tensor:
        width = grid.width if at is None else grid.width // 2
        shape = (grid.batch, grid.height, width, outputs)
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def _weights(
        self, layers: Sequence[str], start: int, exponents: Sequence[int]
    ) -> ProductWeights:
        """Of the inputs number ``start`` and following of layers side by side."""
        used = slice(start, start + len(exponents))
        return self._once(
            ("product", start, len(exponents), *layers),
            lambda: ProductWeights.pack(
                [self.layers[layer].segments[used] for layer in layers],
                exponents,
                [self.layers[layer].bias for layer in layers],
                self.device,
            ),
        )

    # -- block transforms ---------------------------------------------------------------------

    def to_blocks(self, images: Tensor) -> Act:
        """uint8 [B, 3, H, W], contiguous."""
        batch, _, height, width = images.shape
        grid = Grid(batch, height // blocks.SIDE, width // blocks.SIDE)
        out = self._planes(grid, blocks.VALUES)
        blocks.to_blocks(images, out=out)
        return Act(Input(out), 0)

    def scaled(
        self,
        r: Tensor,
        factors: Tensor,
        second: Tensor | None = None,
        logs: Tensor | None = None,
        rate: Tensor | None = None,
        *,
        out: str,
    ) -> tuple[Tensor, Act]:
        """r [B, H, W, C] times factors [C] and the gains of ``logs`` at ``rate``; and that times
        ``second`` as activation.
        """
        q = self._planes(Grid(*r.shape[:3]), r.shape[3])
        real = torch.empty_like(r)
        scale = self._scale(out)
        blocks.scaled(r, factors, second, logs, rate, real=real, out=q, out_scale=scale)
        return real, Act(Input(q), self.exponents[out])

    def carried(
        self,
        layer: str,
        x: Act,
        *,
        residual: Tensor | None = None,
        spread: bool = False,
        out: str,
    ) -> tuple[Tensor, Act]:
        """conv, as real and as activation. The real is ``residual``, which is added, if given.

        With ``spread`` what depth_to_space makes of both.
        """
        weights = self._weights([layer], 0, [x.exponent])
        grid, channels = self._grid(x), weights.outputs
        wide = grid
        if spread:
            wide, channels = Grid(grid.batch, 2 * grid.height, 2 * grid.width), channels // 4
        real = self._real(wide, channels, None) if residual is None else residual
        q = self._planes(wide, channels)
        products.conv(
            x.q,
            weights,
            grid,
            residual=residual,
            carried=real,
            out=q,
            out_scale=self._out_scale([out], [weights.outputs]),
            shuffle=spread,
        )
        return real, Act(Input(q), self.exponents[out])

    def every_second(self, x: Act) -> Act:
        return Act(Input(x.q.planes[:, :, ::2, ::2].contiguous()), x.exponent)

    def gathered(self, layer: str, x: Act, *, residual: Tensor, out: str) -> Act:
        """conv with a residual, then space_to_depth."""
        weights = self._weights([layer], 0, [x.exponent])
        grid, outputs = self._grid(x), weights.outputs
        q = self._planes(Grid(grid.batch, grid.height // 2, grid.width // 2), 4 * outputs)
        products.conv(
            x.q,
            weights,
            grid,
            residual=residual,
            out=q,
            out_scale=self._out_scale([out], [outputs]),
            gather=True,
        )
        return Act(Input(q), self.exponents[out])

    def pixels(self, layer: str, x: Act) -> Tensor:
        """conv, whose outputs are the values of blocks: uint8 [B, 3, 8H, 8W]."""
        grid, side = self._grid(x), blocks.SIDE
        shape = (grid.batch, 3, side * grid.height, side * grid.width)
        images = torch.empty(shape, dtype=torch.uint8, device=self.device)
        products.conv(x.q, self._weights([layer], 0, [x.exponent]), grid, out=images)
        return images


def _colour(parity: Parity | None) -> int:
    return ALL if parity is None else int(parity)


def _side_by_side(partials: Sequence[Tensor] | None) -> Tensor | None:
    """The first of what :meth:`GpuLayers.sums` gave: the others follow it in the channels."""
    if partials is None:
        return None
    for before, after in itertools.pairwise(partials):
        assert after.data_ptr() - before.data_ptr() == 4 * before.shape[-1]
    return partials[0]


def _runs(inputs: Sequence[Act]) -> list[list[Act]]:
    """The inputs in groups of one launch each: equally wide, and equally far apart in memory."""
    runs: list[list[Act]] = []
    for x in inputs:
        if runs and _continues(runs[-1], x):
            runs[-1].append(x)
        else:
            runs.append([x])
    return runs


def _continues(run: Sequence[Act], x: Act) -> bool:
    first, last, planes = run[0].q.planes, run[-1].q.planes, x.q.planes
    return (
        (x.q.kind, x.q.colour) == (run[0].q.kind, run[0].q.colour)
        and planes.shape == first.shape
        and planes.stride() == first.stride()
        and planes.data_ptr() - last.data_ptr() == planes.shape[-1]
    )


def _spread(run: Sequence[Act]) -> dict[str, Any]:
    """How many inputs there are, and how far apart."""
    return {"inputs": len(run), "input_stride": run[0].q.planes.shape[-1]}
