"""Rate and distortion of the exact arithmetic against the float model, for other operand widths.

The table of docs/arithmetic.md: for each choice of activation limit, weight limit and headroom the
model is packed and photographs are run through the exact path (the specification; no files are
written), at several qualities. Rates are ideal code lengths under the same integer tables.

    python benchmarks/bench_widths.py PHOTOGRAPHS [--model photo] [--images 6]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mlic_fast
from mlic_fast.coder import scale_indexes
from mlic_fast.engine import arithmetic
from mlic_fast.engine.packing import packer
from mlic_fast.engine.path import code_latents
from mlic_fast.evaluation import bd_rate
from mlic_fast.images import load_image, pad
from mlic_fast.models.checkerboard import Parity, squeeze, unsqueeze
from mlic_fast.models.mlic import MlicModel

# Activation limit, weight limit, headroom.
CHOICES = [
    (4095, 16383, 1.0),
    (4095, 16383, 2.0),
    (4095, 16383, 4.0),
    (4095, 16383, 8.0),
    (4095, 16383, 32.0),
    (16383, 16383, 8.0),
    (2047, 2047, 2.0),
    (2047, 2047, 8.0),
    (1023, 1023, 8.0),
    (511, 511, 8.0),
]
QUALITIES = (1, 21, 41, 60, 80, 100)


class _Meter:
    """Pass coder that rounds y about the means and adds up ideal code lengths."""

    def __init__(self, y: Tensor, slices: int, tables: Any) -> None:
        self.y = y.chunk(slices, dim=1)
        self.tables = tables
        self.bits = 0.0

    def add(self, symbols: Any, indexes: Any) -> None:
        self.bits += float(self.tables.bits(symbols, indexes).sum())


class _Exact(_Meter):
    def __call__(self, index: int, parity: Parity, indexes: Any, means: Any, symbols: Any) -> Any:
        self.add(symbols, indexes)
        return symbols


class _Float(_Meter):
    def __call__(self, index: int, parity: Parity, scales: Tensor, means: Tensor) -> Tensor:
        means = squeeze(means, parity)
        symbols = torch.round(squeeze(self.y[index], parity) - means)
        indexes = scale_indexes(squeeze(scales, parity) * packer.SCALE_FACTOR)
        self.add(symbols.numpy().astype(np.int32), indexes)
        return unsqueeze(symbols + means, parity)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="photo")
    parser.add_argument("--images", type=int, default=6)
    args = parser.parse_args()

    model = mlic_fast.load(args.model, device="cpu").model
    assert isinstance(model, MlicModel)
    paths = sorted(p for p in args.folder.iterdir() if p.suffix in (".png", ".webp"))
    images = [load_image(p) for p in paths[:: max(1, len(paths) // args.images)]][: args.images]
    rates = (
        [(q - 1) / 99 * (model.config.rates - 1) for q in QUALITIES]
        if model.config.rates
        else [None]
    )
    inputs = [
        (pad(image[None]).float() / 255, image, None if rate is None else torch.tensor([rate]))
        for rate in rates
        for image in images
    ]
    prepared = []
    for x, image, rate in inputs:
        y = model.analyse(x, rate)
        z = torch.round(model.h_a(y) - model.entropy_bottleneck.medians())
        prepared.append((y, z, image, rate))

    def curve(results: list[tuple[float, Tensor]]) -> list[tuple[float, float]]:
        """(bits a pixel, PSNR) at each rate, mean over the images."""
        points = []
        for start in range(0, len(results), len(images)):
            bpp, psnr = [], []
            for (bits, y_hat), (_, _, image, rate) in zip(
                results[start : start + len(images)],
                prepared[start : start + len(images)],
                strict=True,
            ):
                x_hat = model.synthesise(y_hat, rate)[0, :, : image.shape[1], : image.shape[2]]
                mse = (x_hat.clamp(0, 1) - image / 255).square().mean()
                bpp.append(bits / image[0].numel())
                psnr.append(float(-10 * torch.log10(mse)))
            points.append((float(np.mean(bpp)), float(np.mean(psnr))))
        return points

    packed = packer.pack(model)
    tables = packed.tables

    def hyper_bits(z: Tensor) -> float:
        symbols = z.permute(0, 2, 3, 1).numpy().astype(np.int32)
        return float(tables.bits(symbols, packed.hyper_indexes(symbols.shape)).sum())

    results = []
    for y, z, _, _ in prepared:
        meter = _Float(y, model.config.slices, tables)
        y_hat = model.code_latents(model.h_s(z + model.entropy_bottleneck.medians()), meter)
        results.append((meter.bits + hyper_bits(z), y_hat))
    reference = curve(results)
    print("float", " ".join(f"({b:.4f}, {p:.3f})" for b, p in reference))

    print("| activations | weights | headroom | bits, lowest to highest rate | PSNR | BD-rate |")
    print("|---|---|---|---|---|---|")
    for activation, weight, headroom in CHOICES:
        arithmetic.ACTIVATION_LIMIT = packer.ACTIVATION_LIMIT = activation
        packer.WEIGHT_LIMIT = weight
        packer.HEADROOM = headroom
        packed = packer.pack(model)
        ops = arithmetic.SpecOps(packed)
        results = []
        for y, z, _, _ in prepared:
            exact = _Exact(y, model.config.slices, packed.tables)
            symbols = z.permute(0, 2, 3, 1).contiguous().numpy().astype(np.int32)
            slices = np.split(y.permute(0, 2, 3, 1).numpy(), model.config.slices, axis=-1)
            latents = code_latents(ops, symbols, exact, slices)
            y_hat = torch.from_numpy(np.concatenate(latents.y, -1)).permute(0, 3, 1, 2).contiguous()
            results.append((exact.bits + hyper_bits(z), y_hat))
        points = curve(results)
        bits = ", ".join(
            f"{(b / f - 1) * 100:+.3f} %" for (b, _), (f, _) in zip(points, reference, strict=True)
        )
        psnr = max(abs(p - f) for (_, p), (_, f) in zip(points, reference, strict=True))
        rate = f"{bd_rate(reference, points):+.4f} %" if len(points) > 3 else "-"
        print(
            f"| ±{activation} | ±{weight} | {headroom:g} | {bits} | ±{psnr:.4f} dB | {rate} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
