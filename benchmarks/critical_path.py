"""What an encode and a decode launch on a GPU, which launches wait for which, and how long that
takes by a model: it needs no GPU.

    python benchmarks/critical_path.py [--models mlic_plus_plus,photo] [--size 768x512] [--batch 1]
                                       [--json]

The path and the transforms of the GPU engine run with every kernel replaced by one that only looks
at its arguments; the branches of the graph are recorded with them. Then every launch gets the time
that ``benchmarks/gpu_model.py`` says, begins when all that it waits for has ended, and the chain
that ends last is what is printed. The host is left out.

Bytes are those of all arrays that a launch is given, each once: the least it moves, most of it from
the L2 cache. Products are of integers of 13 and 15 bits, four of int8 each, or of bfloat16.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import astuple, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from gpu_model import OPERATOR, Launch, gap, load, microseconds
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mlic_fast import kernels
from mlic_fast.engine.gpu.gpu_engine import CHECK, SORT, device_transforms
from mlic_fast.engine.gpu.gpu_operations import GpuOps
from mlic_fast.engine.packing.packer import pack
from mlic_fast.engine.path import code_latents
from mlic_fast.kernels import configs
from mlic_fast.kernels.latents import digest
from mlic_fast.models import create_model, networks
from mlic_fast.profiling.coder_model import SMALLEST_SHARED, predict

MODELS = ("mlic_plus_plus", "photo")
#: The graphs of the commit that was measured, with the times that were measured.
FIRST_RUN = Path(__file__).with_name("first_run.json")
METHODS = (*networks.METHODS, "sums", "decoded")
#: Bits a pixel of a photograph, for the lanes of the range coder.
BITS_PER_PIXEL = 0.31


@dataclass(frozen=True)
class Node:
    """A launch, those it waits for by their numbers, and what it is part of."""

    launch: Launch
    after: tuple[int, ...]
    part: str = ""


@dataclass
class Graph:
    """Launches as they come, in branches: the next of a branch waits for the branch's tail."""

    nodes: list[Node] = field(default_factory=list)
    _parts: list[str] = field(default_factory=list)
    _branch: str = ""
    _tails: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    def add(self, launch: Launch) -> None:
        after = tuple(sorted(self._tails[self._branch]))
        self._tails[self._branch] = {len(self.nodes)}
        self.nodes.append(Node(launch, after, self._parts[0] if self._parts else ""))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Also as a decorator. The outermost one counts."""
        self._parts.append(name)
        try:
            yield
        finally:
            self._parts.pop()

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        before, self._branch = self._branch, name
        self._tails[name] |= self._tails[before]
        try:
            yield
        finally:
            self._branch = before

    def join(self, name: str) -> None:
        self._tails[self._branch] |= self._tails[name]


@dataclass(frozen=True)
class Chain:
    """The launches that end last, one after the other: numbers and microseconds of each."""

    numbers: tuple[int, ...]
    times: tuple[float, ...]

    @property
    def ms(self) -> float:
        return sum(self.times) / 1e3


def critical_path(nodes: Sequence[Node]) -> Chain:
    """Every launch begins when those it waits for have ended. Launches beside each other that
    would keep more than the whole GPU busy slow each other down.
    """
    followers: list[list[int]] = [[] for _ in nodes]
    for number, node in enumerate(nodes):
        for before in node.after:
            followers[before].append(number)
    waits = [len(node.after) for node in nodes]
    ends = [0.0] * len(nodes)

    def alone(node: Node) -> float:
        # Where branches meet all wait to the end.
        before = nodes[node.after[0]].launch if len(node.after) == 1 else None
        return gap(before, node.launch) + microseconds(node.launch)

    left = {number: alone(node) for number, node in enumerate(nodes) if not node.after}
    now = 0.0
    while left:
        rate = 1 / max(1.0, sum(load(nodes[number].launch) for number in left))
        step = min(left.values()) / rate
        now += step
        left = {number: rest - step * rate for number, rest in left.items()}
        for number in [number for number, rest in left.items() if rest < 1e-6]:
            del left[number]
            ends[number] = now
            for after in followers[number]:
                waits[after] -= 1
                if not waits[after]:
                    left[after] = alone(nodes[after])
    chain = [max(range(len(nodes)), key=ends.__getitem__)]
    while after := nodes[chain[-1]].after:
        chain.append(max(after, key=ends.__getitem__))
    chain.reverse()
    begins = [0.0, *(ends[number] for number in chain[:-1])]
    times = (ends[number] - begin for number, begin in zip(chain, begins, strict=True))
    return Chain(tuple(chain), tuple(times))


# -- recording --------------------------------------------------------------------------------


class _Looker:
    """In the place of a kernel: looks at a launch."""

    def __init__(self, kernel: Any, look: Callable[[str, tuple[int, ...], dict[str, Any]], None]):
        self._names, self._look = kernel.arg_names, look
        self._name = kernel.__name__.removeprefix("_").removesuffix("_kernel")

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self._look(self._name, grid, {**dict(zip(self._names, args, strict=False)), **kwargs})

        return launch


class _Operators(TorchDispatchMode):
    """Records PyTorch's operators that read or write."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given = [each for each in args if isinstance(each, Tensor)]
        results = result if isinstance(result, (list, tuple)) else [result]
        view = not func._schema.is_mutable and any(
            _same_memory(each, made) for each in given for made in results
        )
        if view or name.startswith(("empty", "new_empty")):
            return result
        moved = sum(each.nbytes for each in (*given, result))
        if name not in ("convolution", "conv2d"):
            self._graph.add(Launch(OPERATOR + name, 1, moved))
            return result
        # As on a GPU; arrays without contents would get another layout. What is not channels-last
        # is converted.
        result = torch.empty_like(result, memory_format=torch.channels_last)
        x, weight = args[:2]
        if x.dtype == torch.float32 or not x.is_contiguous(memory_format=torch.channels_last):
            self._graph.add(Launch(OPERATOR + "layout", 1, 2 * x.nbytes))
        products = result.numel() * weight[0].numel()
        shape = (weight.shape[0], 8 * x.element_size())
        self._graph.add(Launch("convolution", 1, moved, products, shape))
        return result


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


def _launch(kernel: str, grid: tuple[int, ...], arguments: dict[str, Any]) -> Launch:
    """What the model needs to know of the launch of a kernel."""
    a, shape, products = arguments, (), 0
    moved = sum(tensor.nbytes for tensor in _tensors(arguments))
    if kernel in ("conv", "parts"):
        x, layer = a["x"], a["weights"]
        steps = a["side"] ** 2 * -(-layer.channels // a["BLOCK_K"])
        inputs, parts = a.get("inputs", 1), a.get("parts", 1)
        shape = (a["BLOCK_M"], a["BLOCK_N"], a["BLOCK_K"], inputs, -(-steps // parts))
        products = a["positions"] * layer.outputs * inputs * layer.channels * a["side"] ** 2
        moved += (inputs - 1) * x.ptr.nbytes  # the others lie beside the first
    elif kernel == "totals":
        shape = (a["parts"],)
    elif kernel == "pass":
        size = a["SIZES"]
        layer0, layer2, layer4 = (n // 64 for n in (size.padded_a, size.padded_b, size.padded_c))
        # What a context adds already counts as a step.
        steps = layer0 * sum(-(-width // a["BLOCK_K"]) or 1 for width in a["WIDTHS"])
        blocks = layer0 * layer2 + layer2 * layer4 + layer4 * max(1, size.padded_channels // 32)
        shape = (steps, blocks)
        hidden = (size.padded_a + size.padded_c) * size.padded_b
        hidden += 2 * size.padded_c * size.channels + size.a * sum(a["WIDTHS"])
        products = a["positions"] * hidden
    elif kernel == "depthwise":
        # Programs that give maxima of keys.
        shape = (a["ROWS"], a["keys"] * math.prod(grid) // a["channels"])
    elif kernel == "normalise" and a["WHICH"].stride == 2:
        moved -= a["branch"].ptr.nbytes * 3 // 4  # of whose rows and columns every second is read
    elif kernel == "activate" and a["x"].ptr is a["out"]:
        moved += a["out"].nbytes  # read and written
    elif kernel == "mlp":
        shape = (10 * a["CHANNELS"] // a["BLOCK_K"],)  # proj, fc1, fc2
        products = a["windows"] * (4 + 8 + 8) * a["CHANNELS"] ** 2
    programmatic = bool(a.get("launch_pdl"))
    return Launch(kernel, math.prod(grid), moved, products, shape, programmatic)


def _tensors(arguments: dict[str, Any]) -> Iterator[Tensor]:
    """The arrays of a launch, each once."""
    seen = set()
    left = list(arguments.values())
    while left:
        each = left.pop(0)
        if isinstance(each, tuple):
            left[:0] = each
        elif isinstance(each, Tensor) and id(each) not in seen:
            seen.add(id(each))
            yield each


@contextmanager
def recorded(graph: Graph) -> Iterator[None]:
    """All launches go to a graph, with the configurations of an H200."""

    def look(kernel: str, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        graph.add(_launch(kernel, grid, arguments))

    with ExitStack() as stack:
        for module in list(vars(kernels).values()):
            for name, value in list(getattr(module, "__dict__", {}).items()):
                if name.endswith("_kernel"):
                    stack.enter_context(_replaced(module, name, _Looker(value, look)))
        stack.enter_context(_replaced(configs, "architecture", cache(lambda device: "sm90")))
        stack.enter_context(torch.inference_mode())
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class Recorder:
    """Records encodes and decodes of a model."""

    def __init__(self, name: str) -> None:
        model = create_model(name).eval().requires_grad_(False)
        self.config = model.config
        self.ops = GpuOps(pack(model), torch.device("cpu"))
        self._device = torch.device("cpu" if self.config.transforms == "blocks" else "meta")
        self._transforms = device_transforms(model.to(self._device), torch.bfloat16, self._device)

    def record(self, width: int, height: int, batch: int, encoding: bool) -> list[Node]:
        """Of images of a size that is a multiple of 64."""
        graph, config = Graph(), self.config
        count = height * width // 256 * config.M + height * width // 4096 * config.N
        coder = _Coder(width, height, 1 + 2 * config.slices, count, batch, encoding)
        y = None
        latents = (batch, height // 16, width // 16, config.M)
        half = (*latents[:2], latents[2] // 2, config.slice_channels)
        z = torch.zeros((batch, height // 64, width // 64, config.N), dtype=torch.int32)
        symbols = torch.zeros(half, dtype=torch.int32)
        if encoding:
            y = torch.zeros(latents).chunk(config.slices, dim=-1)

        def add(launches: Sequence[Launch]) -> None:
            with graph.part("range coder"):
                for launch in launches:
                    graph.add(launch)

        def add_symbols() -> None:
            with graph.aside(SORT) if encoding else nullcontext():
                add([coder.symbols()])

        def code(*_: Any) -> Tensor:
            add_symbols()
            return symbols

        def transform() -> None:
            given = self._given(batch, height, width, encoding)
            with graph.part("transforms"), _Operators(graph):
                self._transform(encoding, *given)

        with recorded(Graph()):
            code_latents(self.ops, z, lambda *_: symbols, y)  # what is made once
            self._transform(encoding, *self._given(batch, height, width, encoding))
        with ExitStack() as stack:
            stack.enter_context(recorded(graph))
            for name in METHODS:
                method = graph.part(name)(getattr(self.ops, name))
                stack.enter_context(_replaced(self.ops, name, method))
            stack.enter_context(_replaced(self.ops, "aside", graph.aside))
            stack.enter_context(_replaced(self.ops, "join", graph.join))
            if encoding:
                transform()
            add_symbols()
            whole = code_latents(self.ops, z, code, y).whole  # type: ignore[attr-defined]
            checking = nullcontext() if encoding else graph.aside(CHECK)
            with graph.part("digest"), checking:
                digest(whole, out=torch.zeros(batch, dtype=torch.int32))
            if encoding:
                graph.join(SORT)
            add(coder.last())
            if not encoding:
                transform()
                graph.join(CHECK)
        return graph.nodes

    def _given(
        self, batch: int, height: int, width: int, encoding: bool
    ) -> tuple[Tensor, Tensor | None]:
        """What the transforms are given."""
        device, config = self._device, self.config
        rate = torch.zeros(1, device=device) if config.rates else None
        if encoding:
            shape = (batch, 3, height, width)
            return torch.zeros(shape, dtype=torch.uint8, device=device), rate
        latents = torch.zeros((batch, height // 16, width // 16, config.M), device=device)
        return latents.permute(0, 3, 1, 2), rate

    def _transform(self, encoding: bool, x: Tensor, rate: Tensor | None) -> None:
        if encoding:
            self._transforms.analyse(x, rate)
        else:
            self._transforms.synthesise(x, rate)


class _Coder:
    """Launches of the range coder, with the times of `mlic_fast.profiling.coder_model`: a decoder
    has one a pass; an encoder one a pass beside the network and two after the last. The images of a
    batch do not wait for one another.
    """

    def __init__(
        self, width: int, height: int, passes: int, symbols: int, batch: int, encoding: bool
    ) -> None:
        self._time = predict(BITS_PER_PIXEL * width * height / 8, passes, symbols)
        self._passes, self._encoding = passes, encoding
        # A block fills a multiprocessor, as eight programs of other kernels do.
        self._programs = (
            8 * batch * (8 if not encoding and symbols / passes > SMALLEST_SHARED else 1)
        )

    def symbols(self) -> Launch:
        us = self._time.sort_us if self._encoding else self._time.decode_us / self._passes
        return self._launch(us)

    def last(self) -> list[Launch]:
        return [self._launch(self._time.encode_us / 2)] * 2 if self._encoding else []

    def _launch(self, us: float) -> Launch:
        return Launch("coder", self._programs, shape=(round(1000 * us),))


# -- graphs that are kept ----------------------------------------------------------------------


def to_json(nodes: Sequence[Node]) -> dict[str, Any]:
    """Different launches once each, and the nodes as their numbers."""
    kinds = list(dict.fromkeys(node.launch for node in nodes))
    number = {kind: i for i, kind in enumerate(kinds)}
    return {
        "launches": [list(astuple(kind)) for kind in kinds],
        "nodes": [[number[node.launch], *node.after] for node in nodes],
    }


def from_json(document: dict[str, Any]) -> list[Node]:
    kinds = [Launch(*first, tuple(shape), last) for *first, shape, last in document["launches"]]
    return [Node(kinds[kind], tuple(after)) for kind, *after in document["nodes"]]


# -- printing ---------------------------------------------------------------------------------


def print_table(nodes: Sequence[Node], name: str, group: Callable[[Node], str]) -> None:
    """Launches in groups: all of them, those of the chain, and the time of these."""
    chain = critical_path(nodes)
    times = dict(zip(chain.numbers, chain.times, strict=True))
    groups: dict[str, list[int]] = {}
    for number, node in enumerate(nodes):
        groups.setdefault(group(node), []).append(number)
    groups["all"] = list(range(len(nodes)))
    print(
        f"| {name} | launches | bytes | products | in the chain | us |\n|---|---|---|---|---|---|"
    )
    for name, numbers in groups.items():
        moved, products = (
            sum(getattr(nodes[number].launch, what) for number in numbers)
            for what in ("bytes", "products")
        )
        waited = [times[number] for number in numbers if number in times]
        print(
            f"| {name} | {len(numbers)} | {moved / 1e6:.1f} MB | {products / 1e9:.2f} G "
            f"| {len(waited)} | {sum(waited):.0f} |"
        )
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS))
    parser.add_argument("--size", default="768x512", help="rounded up to a multiple of 64")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print milliseconds alone")
    args = parser.parse_args()
    width, height = (-(-int(side) // 64) * 64 for side in args.size.split("x"))
    result: dict[str, dict[str, float]] = {}
    for name in args.models:
        recorder = Recorder(name)
        result[name] = {}
        for way in ("encode", "decode"):
            nodes = recorder.record(width, height, args.batch, way == "encode")
            result[name][f"{way}_ms"] = round(critical_path(nodes).ms, 3)
            if not args.json:
                print(f"## {name}, {way}: {result[name][f'{way}_ms']} ms by the model\n")
                print_table(nodes, "part", lambda node: node.part)
                print_table(nodes, "kernel", lambda node: node.launch.kernel)
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
