"""The products kernel at each shape of a decode, over tiles and stages.

    python benchmarks/gpu/tune.py FOLDER [--seconds 60] [--rehearse]

MLIC++ with seeded weights, 768x512. Every launch that differs is timed with every configuration,
one configuration for all shapes before the next, so that a cut leaves whole columns.
"""

from __future__ import annotations

import os
from typing import Any

from card import Card

card = Card(__doc__, 60)

import torch

from mlic_fast.engine.gpu.gpu_operations import GpuOps
from mlic_fast.engine.packing.packer import pack
from mlic_fast.engine.path import code_latents
from mlic_fast.kernels import products
from mlic_fast.kernels.configs import Config
from mlic_fast.kernels.functions import compile_only
from mlic_fast.profiling.preset_models import trained_like_model

#: Grid, outputs, warps, stages; the first are those of configs.py.
TILES = (
    *((32, 64, 4, 4), (16, 64, 4, 4), (64, 64, 4, 3), (64, 32, 4, 4), (32, 32, 4, 4)),
    *((64, 32, 4, 3), (64, 64, 8, 3), (128, 64, 8, 3)),
)

conv = products.conv
calls: dict[str, dict[str, Any]] = {}
tiles = TILES[0]


def record(x: Any, weights: Any, grid: Any, **options: Any) -> Any:
    """In place of the launcher: remembers one call of each shape, and how often it comes."""
    colour = options.get("colour", products.ALL)
    shape = {
        "positions": grid.count // (1 if colour == products.ALL else 2),
        "outputs": weights.outputs,
        "inputs": options.get("inputs", 1),
        "channels": weights.channels,
        "side": weights.kernel,
        "block_k": weights.block_k,
        "input": int(x.kind),
        "colour": colour,
        "end": ", ".join(name for name in ("latents", "shuffle", "out_scale") if name in options),
    }
    call = calls.setdefault(str(shape), {**shape, "launches": 0, "us": {}})
    call["launches"] += 1
    call["run"] = lambda: conv(x, weights, grid, **options)
    return conv(x, weights, grid, **options)


def collect() -> None:
    height, width = (1, 2) if card.rehearses else (8, 12)
    packed = pack(trained_like_model("mlic_plus_plus"))
    ops, config = GpuOps(packed, card.device), packed.config
    z = torch.zeros((1, height, width, config.N), dtype=torch.int32, device=card.device)
    half = (1, 4 * height, 2 * width, config.slice_channels)
    symbols = torch.zeros(half, dtype=torch.int32, device=card.device)
    compile_only(lambda: code_latents(ops, z, lambda *_: symbols), os.cpu_count() or 1)
    products.conv = record
    code_latents(ops, z, lambda *_: symbols)
    products.conv = conv
    launches = sum(call["launches"] for call in calls.values())
    print(f"{len(calls)} shapes, {launches} launches", flush=True)


def fixed(*_: Any) -> Config:
    """In place of what chooses a configuration."""
    positions, outputs, warps, stages = tiles
    return Config(positions, outputs=outputs, warps=warps, stages=stages)


def time_tiles() -> None:
    label = "{}x{} w{} s{}".format(*tiles)
    compile_only(lambda: [call["run"]() for call in calls.values()], os.cpu_count() or 1)
    card.spin(0.2)
    for call in calls.values():
        call["us"][label] = round(card.launch_us(call["run"]), 2)


def save() -> None:
    rows = [{k: v for k, v in call.items() if k != "run"} for call in calls.values()]
    card.save({"tiles": [{"kernel": "products", **row} for row in rows]})


card.do("collect", collect)
products.product_config = fixed
for tiles in TILES[:2] if card.rehearses else TILES:
    card.do("tiles {}x{}, {} warps, {} stages".format(*tiles), time_tiles, 5)
    save()
print(card.launches())
