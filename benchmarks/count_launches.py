"""What the GPU engine launches, moves and multiplies, by counting: it needs no GPU.

    python benchmarks/count_launches.py [--model photo] [--size 768x512]

The path of a decoder runs with every kernel replaced by one that only looks at its arguments.
Bytes are those of all arrays that a launch is given, each once: the least it moves, most of it
from the L2 cache. Products are of integers of 13 and 15 bits: four of int8 each.

Of the transforms, as the GPU engine runs them and as PyTorch's modules would, all operators of
PyTorch count as well; residual ones run on arrays without contents. On a GPU PyTorch adds a bias in
a launch of its own after the convolution, and converts the layout of its input in one before. Block
transforms are also given the time that a simple model says: it is no measurement.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mlic_fast import kernels
from mlic_fast.benchmark.operations import count_entropy_path, count_exact_transforms
from mlic_fast.engine.device import device_transforms
from mlic_fast.engine.gpu import GpuOps
from mlic_fast.engine.gpu_transforms import GpuTransforms
from mlic_fast.engine.pack import pack
from mlic_fast.engine.path import code_latents
from mlic_fast.engine.transforms import EngineTransforms
from mlic_fast.models import create_model

_NOTHING = torch.empty(0)
#: Of one H200, from its data sheet: int8 products a second of its tensor cores, bytes a second.
H200_INT8, H200_BYTES = 1979e12 / 2, 4.8e12
#: The model of a time: seconds a launch, bytes a second, and the most int8 products a second that
#: the product kernel reached on an H200 (448 outputs, 3x3 over 320 channels, 1536 positions).
LAUNCH, BYTES, INT8 = 3e-6, 4e12, 286e12
NETWORKS = (
    "hyper_synthesis",
    "sums",
    "channel_context",
    "inter_context",
    "intra_queries_and_keys",
    "entropy_parameters",
    "decoded",
    "predict_residual",
    "local_context",
    "intra_context",
)


class Looker:
    """In the place of a kernel: looks at a launch."""

    def __init__(self, kernel: Any, look: Callable[[dict[str, Any]], None]) -> None:
        self._names, self._look = kernel.arg_names, look

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self._look({**dict(zip(self._names, args, strict=False)), **kwargs})

        return launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="photo")
    parser.add_argument("--size", default="768x512")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    model = create_model(args.model).eval().requires_grad_(False)
    packed = pack(model)
    launches, moved = count(packed, width, height)
    passes = 2 * packed.config.slices
    print("| network | launches | bytes |")
    print("|---|---|---|")
    for network in launches:
        print(f"| {network} | {launches[network]} | {moved[network] / 1e6:.1f} MB |")
    total, total_bytes = sum(launches.values()), sum(moved.values())
    print(f"| all, {passes} passes | {total} | {total_bytes / 1e6:.1f} MB |")
    products = count_entropy_path(packed, width, height)
    print(
        f"\n{products / 1e9:.1f} G products: {4e3 * products / H200_INT8:.3f} ms at the int8 peak; "
        f"{1e3 * total_bytes / H200_BYTES:.3f} ms at the bandwidth of the memory\n"
    )
    if model.config.transforms == "blocks":
        print_block_transforms(model, width, height)
    else:
        print_residual_transforms(model, width, height)


def print_block_transforms(model: Any, width: int, height: int) -> None:
    transforms = device_transforms(model, torch.bfloat16, torch.device("cpu"))
    assert isinstance(transforms, GpuTransforms)
    products = count_exact_transforms(transforms.packed, width, height)
    counted = count_transforms(transforms, model.config, width, height, "cpu")
    print("| transforms, exact | launches | bytes | products | by the model |")
    print("|---|---|---|---|---|")
    for (way, seen), number in zip(counted.items(), products.values(), strict=True):
        time = seen.launches * LAUNCH + seen.bytes / BYTES + 4 * number / INT8
        print(
            f"| {way} | {seen.launches} | {seen.bytes / 1e6:.1f} MB | {number / 1e9:.1f} G "
            f"| {1e3 * time:.3f} ms |"
        )


def print_residual_transforms(model: Any, width: int, height: int) -> None:
    print("| transforms, bfloat16 | launches | bytes | of these convolutions |")
    print("|---|---|---|---|")
    device = torch.device("meta")
    model = model.to(device)
    for name, transforms in (
        ("modules", EngineTransforms(model, torch.bfloat16)),
        ("fused", device_transforms(model, torch.bfloat16, device)),
    ):
        counted = count_transforms(transforms, model.config, width, height, "meta")
        for way, seen in counted.items():
            print(
                f"| {way}, {name} | {seen.launches} | {seen.bytes / 1e6:.1f} MB "
                f"| {seen.launches_of_convolutions}, {seen.bytes_of_convolutions / 1e6:.1f} MB |"
            )


def count(packed: Any, width: int, height: int) -> tuple[Counter[str], dict[str, int]]:
    """Launches and bytes by network."""
    launches: Counter[str] = Counter()
    moved: defaultdict[str, int] = defaultdict(int)
    ops = GpuOps(packed, torch.device("cpu"))
    inside: list[str] = []

    def look(arguments: dict[str, Any]) -> None:
        name = inside[0] if inside else "other"
        launches[name] += 1
        moved[name] += sum(tensor.nbytes for tensor in _tensors(arguments))
        # A convolution is given the first of its inputs; the others lie beside it.
        moved[name] += (arguments.get("inputs", 1) - 1) * arguments.get("x", _NOTHING).nbytes

    def entered(name: str) -> Callable[..., Any]:
        method = getattr(ops, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            inside.append(name)
            try:
                return method(*args, **kwargs)
            finally:
                inside.pop()

        return call

    for name in NETWORKS:
        setattr(ops, name, entered(name))
    shape = (1, height // 64, width // 64, packed.config.N)
    half = (1, height // 16, width // 32, packed.config.slice_channels)
    with _looked_at(look):
        z, symbols = (torch.zeros(size, dtype=torch.int32) for size in (shape, half))
        code_latents(ops, z, lambda *_: symbols)
    return launches, moved


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


@dataclass
class Seen:
    launches: int = 0
    bytes: int = 0
    launches_of_convolutions: int = 0
    bytes_of_convolutions: int = 0


class _Operators(TorchDispatchMode):
    """Counts PyTorch's operators that read or write."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given = [each for each in args if isinstance(each, torch.Tensor)]
        results = result if isinstance(result, (list, tuple)) else [result]
        view = not func._schema.is_mutable and any(
            _same_memory(each, made) for each in given for made in results
        )
        if view or name.startswith(("empty", "new_empty")):
            return result
        seen = self._seen
        moved = sum(each.nbytes for each in (*given, result))
        seen.launches += 1
        if name in ("convolution", "conv2d"):
            # As on a GPU; arrays without contents would get another layout.
            result = torch.empty_like(result, memory_format=torch.channels_last)
            seen.launches_of_convolutions += 1
            seen.bytes_of_convolutions += moved
            also = [result] if args[2] is not None else []
            if not args[0].is_contiguous(memory_format=torch.channels_last):
                also.append(args[0])
            seen.launches += len(also)
            moved += sum(2 * each.nbytes for each in also)
        seen.bytes += moved
        return result


def count_transforms(
    transforms: Any, config: Any, width: int, height: int, device: str
) -> dict[str, Seen]:
    """Of one image, a multiple of 64: analysis and synthesis."""
    encode, decode = Seen(), Seen()
    image = torch.zeros((1, 3, height, width), dtype=torch.uint8, device=device)
    latents = torch.zeros((1, height // 16, width // 16, config.M), device=device)
    rate = torch.zeros(1, device=device) if config.rates else None
    works: dict[str, tuple[Seen, Callable[[], Any]]] = {
        "analysis": (encode, lambda: transforms.analyse(image, rate)),
        "synthesis": (decode, lambda: transforms.synthesise(latents.permute(0, 3, 1, 2), rate)),
    }
    for seen, work in works.values():

        def look(arguments: dict[str, Any], seen: Seen = seen) -> None:
            seen.launches += 1
            # Some arrays of a product stand for another that is not there.
            product = "RESIDUAL" in arguments
            seen.bytes += sum(each.nbytes for each in _tensors(arguments, once=product))
            if product and arguments["residual"] is arguments["real"]:  # read and written
                seen.bytes += arguments["real"].nbytes

        with torch.inference_mode():
            with _looked_at(lambda _: None):
                work()  # what is made once
            with _looked_at(look), _Operators(seen):
                work()
    return {way: seen for way, (seen, _) in works.items()}


@contextmanager
def _looked_at(look: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Every kernel replaced by one that looks."""
    with ExitStack() as stack:
        for module in list(vars(kernels).values()):
            for name, value in list(getattr(module, "__dict__", {}).items()):
                if name.endswith("_kernel"):
                    stack.enter_context(_replaced(module, name, value, Looker(value, look)))
        yield


@contextmanager
def _replaced(module: Any, name: str, before: Any, value: Any) -> Iterator[None]:
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _tensors(arguments: dict[str, Any], once: bool = True) -> Iterator[torch.Tensor]:
    """The arrays of a launch; ``once``: each once, though it is both read and written."""
    seen = set()
    for argument in arguments.values():
        for each in argument if isinstance(argument, tuple) else (argument,):
            if isinstance(each, torch.Tensor) and not (once and id(each) in seen):
                seen.add(id(each))
                yield each


if __name__ == "__main__":
    main()
