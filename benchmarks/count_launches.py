"""What the GPU's entropy path launches, moves and multiplies, by counting: it needs no GPU.

    python benchmarks/count_launches.py [--model mlic_plus_plus] [--size 768x512]

The path of a decoder runs with every kernel replaced by one that only looks at its arguments.
Bytes are those of all arrays that a launch is given, each once: the least it moves, most of it
from the L2 cache. Products are of integers of 13 and 15 bits: four of int8 each.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch

from mlic_fast import kernels
from mlic_fast.benchmark.models import trained_like_model
from mlic_fast.benchmark.operations import count_entropy_path
from mlic_fast.engine.gpu import GpuOps
from mlic_fast.engine.pack import pack
from mlic_fast.engine.path import code_latents

_NOTHING = torch.empty(0)
#: Of one H200, from its data sheet: int8 products a second of its tensor cores, bytes a second.
H200_INT8, H200_BYTES = 1979e12 / 2, 4.8e12
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
    parser.add_argument("--model", default="mlic_plus_plus")
    parser.add_argument("--size", default="768x512")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    packed = pack(trained_like_model(args.model))
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
        f"{1e3 * total_bytes / H200_BYTES:.3f} ms at the bandwidth of the memory"
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
    with ExitStack() as stack:
        for module in vars(kernels).values():
            for name, value in list(getattr(module, "__dict__", {}).items()):
                if name.endswith("_kernel"):
                    stack.enter_context(_replaced(module, name, value, Looker(value, look)))
        z, symbols = (torch.zeros(size, dtype=torch.int32) for size in (shape, half))
        code_latents(ops, z, lambda *_: symbols)
    return launches, moved


@contextmanager
def _replaced(module: Any, name: str, before: Any, value: Any) -> Iterator[None]:
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _tensors(arguments: dict[str, Any]) -> Iterator[torch.Tensor]:
    seen = set()
    for argument in arguments.values():
        for each in argument if isinstance(argument, tuple) else (argument,):
            if isinstance(each, torch.Tensor) and each.data_ptr() not in seen:
                seen.add(each.data_ptr())
                yield each


if __name__ == "__main__":
    main()
