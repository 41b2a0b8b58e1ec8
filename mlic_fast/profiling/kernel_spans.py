"""Every operation of a backend and of PyTorch as a span, with what it moves and multiplies."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mlic_fast._C import exact
from mlic_fast.codec import Codec
from mlic_fast.engine import path
from mlic_fast.engine.cpu.cpu_operations import CpuOps
from mlic_fast.engine.exact_transforms import ExactTransforms
from mlic_fast.engine.operations import Act, Operations
from mlic_fast.engine.packing.packed import PackedLayers, Segment
from mlic_fast.engine.reference_engine import ReferenceEngine
from mlic_fast.models.checkerboard import Parity
from mlic_fast.models.layers import GDN
from mlic_fast.models.networks import METHODS, NETWORKS, module_of, split_name
from mlic_fast.profiling.counting import Counter, read_planes, used_segments
from mlic_fast.profiling.engine_parts import is_gpu, parts_of
from mlic_fast.profiling.spans import Tracer
from mlic_fast.profiling.stages import replaced, watched

KERNEL = "kernel"
NETWORK = "network"
SLICE = "slice"
MODULE = "module"

#: Name for operations that belong to no network.
LAYOUT = "layouts and symbols"


def place(layer: str) -> tuple[str, int | None, Parity | None]:
    """Network, slice and colour of a layer; the layouts' for a name of none."""
    network, index, _ = split_name(layer)
    return (LAYOUT, None, None) if network is None else (network.title, index, network.parity)


@contextmanager
def watched_kernels(codec: Codec, *, processor: bool = False) -> Iterator[Tracer]:
    """Like :func:`watched`, with a span for each kernel of an exact engine too.

    Their details: ``operation``, ``layer``, ``bytes`` read and written, ``products``, and ``pool``:
    whether it runs on the threads of the C++ kernels, whose nanoseconds are counted then (calls,
    results, layouts; csrc/pool.h). Of the reference engine the networks have spans.
    """
    engine = codec._engine
    parts = parts_of(engine)
    on_pool = parts is not None and isinstance(parts.ops, CpuOps)
    counters = exact.measured if on_pool else tuple
    with watched(codec, processor=processor, counters=counters) as tracer, ExitStack() as stack:
        if on_pool:
            exact.measure(True)
            stack.callback(exact.measure, False)
        if parts is not None:
            backends: list[tuple[Operations, PackedLayers]] = [(parts.ops, codec.packed)]
            if isinstance(parts.transforms, ExactTransforms):
                backends.append((parts.transforms.ops, parts.transforms.packed))
            for ops, packed in backends:
                for name, timed in _timed_operations(tracer, ops, packed):
                    stack.enter_context(replaced(ops, name, timed))
            code_slice = tracer.wrap(SLICE, SLICE, path._Passes.code_slice)
            # A function, so that it becomes a method.
            stack.enter_context(
                replaced(path._Passes, "code_slice", lambda *args: code_slice(*args))
            )
            if is_gpu(engine):
                from mlic_fast.kernels import epilogues

                for name in ("first", "activate", "normalise", "to_pixels"):
                    describe = _epilogue_describer(name)
                    timed = tracer.wrap(KERNEL, name, getattr(epilogues, name), describe)
                    stack.enter_context(replaced(epilogues, name, timed))
            for name, module in _transform_modules(parts.transforms):
                timed = tracer.wrap(MODULE, name, module.forward)
                stack.enter_context(replaced(module, "forward", timed))
            stack.enter_context(_WatchedOperators(tracer))
        elif isinstance(engine, ReferenceEngine):
            for name, module in _networks(engine._model):
                timed = tracer.wrap(NETWORK, name, module.forward)
                stack.enter_context(replaced(module, "forward", timed))
        yield tracer


def _networks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_children():
        if name in NETWORKS and isinstance(module, nn.ModuleList):
            for i, each in module.named_children():
                yield f"{name}.{i}", each
        elif name in NETWORKS:
            yield name, module


def _transform_modules(transforms: Any) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(transforms, ExactTransforms):
        return
    networks = {
        "g_a": transforms._g_a,
        "h_a": transforms._h_a,
        "g_s": transforms._g_s,
        "g_s.last": transforms._last,
    }
    for prefix, part in networks.items():
        for name, module in part.named_modules(prefix=prefix):
            yield f"{name} (GDN)" if isinstance(module, GDN) else name, module


def _epilogue_describer(name: str) -> Any:
    def describe(result: None, *args: Any, **options: Any) -> dict[str, Any]:
        out = options["out"]
        depth = {"first": 27, "normalise": out.shape[-1]}.get(name, 0)
        products = out.numel() * depth
        moved = sum(array.nbytes for array in _arrays((*args, *options.values())))
        return {"operation": name, "layer": "", "bytes": moved, "products": products, "pool": False}

    return describe


class _WatchedOperators(TorchDispatchMode):
    """PyTorch's operators become spans, but for those that an operation of a backend calls.

    Their layer is the module that calls them.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer
        self._timed: dict[Any, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inside = self._tracer.open
        if inside is None or inside.within(KERNEL) is not None:  # a backend's own business
            return func(*args, **(kwargs or {}))
        if func not in self._timed:
            name = func.overloadpacket.__name__
            self._timed[func] = self._tracer.wrap(KERNEL, name, func, self._describer(func, name))
        return self._timed[func](*args, **(kwargs or {}))

    def _describer(self, func: Any, name: str) -> Any:
        def describe(result: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
            operation, products = name, 0
            if name in ("convolution", "conv2d", "_convolution_pointwise"):
                weight = args[1]
                operation = f"conv {_square(weight.shape[2:])}"
                products = result.numel() * weight[0].numel()
            inputs, results = list(_arrays(args)), list(_arrays(result))
            moved = sum(array.nbytes for array in (*inputs, *results))
            if not func._schema.is_mutable and _share_memory(inputs, results):
                moved = 0  # a view
            return {
                "operation": operation,
                "layer": "",
                "bytes": moved,
                "products": products,
                "pool": False,
            }

        return describe


def _timed_operations(
    tracer: Tracer, ops: Operations, packed: PackedLayers
) -> Iterator[tuple[str, Any]]:
    """The methods of a backend; networks that call its own operations get spans around those."""
    counter = Counter(packed, getattr(ops, "_parts", {}))
    for name in dir(type(ops)):
        method = getattr(ops, name)
        if (
            name not in ("aside", "join", "gdn_of_rows")
            and not name.startswith("_")
            and callable(method)
        ):
            # A backend may call its arguments something else.
            known = getattr(Operations, name, None)
            signature = inspect.signature(known.__get__(ops) if known else method)
            describe = _describer(packed, counter, name, signature, isinstance(ops, CpuOps))
            yield name, tracer.wrap(KERNEL, name, method, describe)


def _describer(
    packed: PackedLayers, counter: Counter, name: str, signature: inspect.Signature, pool: bool
) -> Any:
    def describe(result: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # A backend may have more of them: where a result goes, which is counted with the result.
        common = {key: value for key, value in kwargs.items() if key in signature.parameters}
        arguments = signature.bind(*args, **common).arguments
        names = _layers_of(name, arguments)
        operation = name
        segments: Sequence[Segment] = [
            s for each in names for s in _segments(packed, counter, each)
        ]
        if name in ("conv", "strided_conv", "subpixel_conv"):
            operation = f"{name} {_square(segments[0].weight.shape[1:3])}"
        if name == "conv":
            segments = used_segments(counter.layers[names[0]], arguments)
        weights = sum(segment.weight.nbytes for segment in segments)
        results = list(_arrays(result))
        inputs = list(_arrays(list(arguments.values())))
        moved = 0  # by a view
        if name in ("mixing_blocks", "carried") or not _share_memory(inputs, results):
            moved = sum(array.nbytes for array in (*inputs, *results)) + weights
        return {
            "operation": operation,
            "layer": names[0] if names else "",
            "bytes": moved,
            "products": counter.count(name, arguments, result),
            "pool": pool,
        }

    return describe


#: Methods that only call others, in a backend that does not fuse them.
NETWORK_METHODS = {*METHODS, "sums", "project", "mixing_blocks"}


def _layers_of(name: str, arguments: dict[str, Any]) -> list[str]:
    """The layers or modules that a method computes."""
    if name in METHODS:
        return [module_of(name, arguments.get("i"), arguments.get("parity"))]
    for key in ("layer", "prefix"):
        if key in arguments:
            return [arguments[key]]
    return list(arguments.get("layers") or arguments.get("prefixes") or [])


def _segments(packed: PackedLayers, counter: Counter, name: str) -> list[Segment]:
    """The weights of a layer, or of all layers of a module."""
    if name in counter.layers:
        return list(counter.layers[name].segments)
    inside = [layer for key, layer in packed.layers.items() if key.startswith(f"{name}.")]
    return [segment for layer in inside for segment in layer.segments]


def _arrays(value: Any) -> Iterator[Any]:
    if isinstance(value, Act):
        yield from _arrays(value.q)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _arrays(item)
    elif isinstance(value, (np.ndarray, torch.Tensor)):
        yield value
    elif hasattr(value, "planes"):
        yield read_planes(value)


def _share_memory(inputs: list[Any], results: list[Any]) -> bool:
    return any(_same_memory(a, b) for a in inputs for b in results)


def _same_memory(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return math.prod(a.shape) > 0 and np.may_share_memory(a, b)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    return False


def _square(kernel: Sequence[int]) -> str:
    return f"{kernel[0]}x{kernel[1]}"
