"""What a training step launches and moves, by counting: a model, and no measurement.

    python benchmarks/count_training_launches.py [--model photo] [--batch 20] [--patch 256]

The step runs on arrays without contents, in bfloat16 with Muon and an average, as on a GPU in one
CUDA graph. Every operator of PyTorch that is no view counts as a launch, but for these: a
convolution adds its bias in a launch of its own; its backward pass has one for each gradient; a
concatenation takes 128 arrays a launch; sorting takes four, and a batch of products that adds to
another array copies that first. Bytes are those of all arrays that an
operator is given and gives. Time is what launches cost one after the other plus what bytes cost at
the bandwidth of the memory; products are taken to hide behind the bytes.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mlic_fast.models import PRESETS, create_model
from mlic_fast.training import TrainConfig
from mlic_fast.training.graphics import make_graphics
from mlic_fast.training.patches import Patches, Pool
from mlic_fast.training.step import Step

SECONDS_A_LAUNCH, BYTES_A_SECOND = 3e-6, 4e12
FREE = ("empty", "new_empty", "detach", "alias", "lift_fresh")


class Count(TorchDispatchMode):
    """Counts launches and bytes of operators, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("convolution", "convolution_backward"):
            # As on a GPU; arrays without contents would get another layout.
            result = _channels_last(result)
        if not func.is_view and not name.startswith(FREE) and name != "_unsafe_view":
            self.launches[name] += _launches(name, args, kwargs or {})
            self.bytes += sum(map(_bytes, _tensors((args, kwargs or {}, result))))
        return result


def _launches(name: str, args: Any, kwargs: dict[str, Any]) -> int:
    if name == "baddbmm":
        return 1 if kwargs.get("out") is args[0] else 2
    if name == "convolution":
        return 1 + (args[2] is not None)
    if name == "convolution_backward":
        return sum(args[10])
    if name == "cat":
        return -(-len(args[0]) // 128)
    return {"sort": 4, "native_layer_norm_backward": 2}.get(name, 1)


def _channels_last(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_channels_last, value))
    if value is None or value.dim() < 4:
        return value
    return torch.empty_like(value, memory_format=torch.channels_last)


def _bytes(tensor: torch.Tensor) -> int:
    """Of an array, without what only repeats it."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="photo")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--patch", type=int, default=256)
    args = parser.parse_args()
    preset = PRESETS[args.model]
    meta = torch.device("meta")
    model = create_model(preset).to(meta)
    config = TrainConfig(
        data="", output="", lmbda=preset.lambdas or (0.013,), optimizer="muon", ema=0.998,
        precision="bfloat16",
    )  # fmt: skip
    step = Step(model, config)
    pool = Pool(make_graphics(0, 2 * args.patch, 1), meta)
    patches = Patches(pool, pool, args.patch, args.batch, 0.3)
    step(patches)  # makes the constants
    with Count() as count:
        step(patches)
    launches = sum(count.launches.values())
    print("| operator | launches |\n|---|---|")
    for name, number in count.launches.most_common(25):
        print(f"| {name} | {number} |")
    seconds = launches * SECONDS_A_LAUNCH, count.bytes / BYTES_A_SECOND
    print(
        f"| all | {launches} |\n\n{count.bytes / 1e9:.1f} GB; by the model "
        f"{1e3 * seconds[0]:.1f} ms of launches and {1e3 * seconds[1]:.1f} ms of bytes, "
        f"{1e3 * sum(seconds):.1f} ms a step"
    )


if __name__ == "__main__":
    main()
