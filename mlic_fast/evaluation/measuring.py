"""Rate, distortion and time of a codec on a set of images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from mlic_fast.errors import EvaluationError
from mlic_fast.evaluation.bdrate import bd_rate
from mlic_fast.evaluation.metrics import SMALLEST_SIDE, ms_ssim, ms_ssim_db, psnr, ssimulacra2


class ImageCodec(Protocol):
    """What is measured: :class:`mlic_fast.Codec`, or anything that works like it."""

    def compress(self, image: Tensor, quality: int | None = None) -> Any:
        """uint8 [3, H, W] -> bytes of a file."""
        ...

    def decompress(self, data: bytes) -> Tensor:
        """Bytes of a file -> uint8 [3, H, W]."""
        ...


#: What tables call it; a codec; a quality, None for models of a single rate.
Setting = tuple[str, ImageCodec, int | None]


@dataclass(frozen=True)
class Measurement:
    """One image at one quality, or the mean over images.

    Attributes:
        image: name of the file, or ``"mean"``.
        bytes: size of the compressed file.
        bits_per_pixel: ``8 bytes / (H W)``.
        psnr: over RGB, in dB.
        ms_ssim: in 0..1; None for images with a side below 161 pixels.
        ms_ssim_db: ``-10 log10(1 - ms_ssim)``, in dB.
        encode_seconds: from uint8 pixels to bytes.
        decode_seconds: from bytes to uint8 pixels.
        ssimulacra2: 100 at most; None if it was not asked for.
    """

    image: str
    bytes: float
    bits_per_pixel: float
    psnr: float
    ms_ssim: float | None
    ms_ssim_db: float | None
    encode_seconds: float
    decode_seconds: float
    ssimulacra2: float | None = None


@dataclass(frozen=True)
class Point:
    """All images at one setting of a codec."""

    setting: str
    images: list[Measurement]

    @property
    def mean(self) -> Measurement:
        """Mean over the images.

        PSNR is the mean of the images' dB; MS-SSIM in dB is that of the mean MS-SSIM, as the
        field's tables have it.
        """

        def mean(name: str) -> float:
            return sum(getattr(image, name) for image in self.images) / len(self.images)

        def measured(name: str) -> float | None:
            return None if any(getattr(i, name) is None for i in self.images) else mean(name)

        names = ("bytes", "bits_per_pixel", "psnr", "encode_seconds", "decode_seconds")
        similarity = measured("ms_ssim")
        return Measurement(
            image="mean",
            ms_ssim=similarity,
            ms_ssim_db=None if similarity is None else ms_ssim_db(similarity),
            ssimulacra2=measured("ssimulacra2"),
            **{name: mean(name) for name in names},
        )


@dataclass(frozen=True)
class Curve:
    """A codec at several settings."""

    name: str
    points: list[Point]

    def bd_rate_against(self, anchor: Curve, metric: str = "psnr") -> float:
        """BD-rate in percent by mean rate and mean quality, an attribute of measurements."""
        return bd_rate(anchor.rates(metric), self.rates(metric))

    def rates(self, metric: str) -> list[tuple[float, float]]:
        """(bits a pixel, quality) of every setting. Raises EvaluationError if not measured."""
        means = [point.mean for point in self.points]
        values = [(mean.bits_per_pixel, getattr(mean, metric)) for mean in means]
        if any(value is None for _, value in values):
            raise EvaluationError(f"{metric} was not measured on every image")
        return values


def measure(
    codec: ImageCodec, image: Tensor, name: str, quality: int | None, *, perceptual: bool = False
) -> Measurement:
    """Compresses and decompresses one image, uint8 [3, H, W], and compares.

    With ``perceptual`` by SSIMULACRA 2 too, which takes about two seconds a megapixel.
    """
    start = time.perf_counter()
    data = codec.compress(image, quality=quality)
    encoded = time.perf_counter()
    # Copying to the host waits for a device to finish.
    decoded = codec.decompress(data).cpu()
    end = time.perf_counter()
    height, width = image.shape[1:]
    similarity = ms_ssim(image, decoded) if min(height, width) >= SMALLEST_SIDE else None
    return Measurement(
        image=name,
        bytes=len(data),
        bits_per_pixel=8 * len(data) / (height * width),
        psnr=psnr(image, decoded),
        ms_ssim=similarity,
        ms_ssim_db=None if similarity is None else ms_ssim_db(similarity),
        encode_seconds=encoded - start,
        decode_seconds=end - encoded,
        ssimulacra2=ssimulacra2(image, decoded) if perceptual else None,
    )


def measure_curves(
    curves: Sequence[tuple[str, Sequence[Setting]]],
    images: Iterable[tuple[str, Tensor]],
    progress: Callable[[], object] = lambda: None,
    *,
    perceptual: bool = False,
) -> list[Curve]:
    """Measures every image at every setting of every codec.

    Args:
        curves: name and settings; single-rate models are one codec a setting.
        images: name and pixels, uint8 [3, H, W]. They are gone through once, and none is kept.
        progress: called after every measurement.
        perceptual: see :func:`measure`.
    """
    measured = [Curve(name, [Point(label, []) for label, _, _ in each]) for name, each in curves]
    warm: list[ImageCodec] = []
    for name, image in images:
        for curve, (_, settings) in zip(measured, curves, strict=True):
            for point, (_, codec, quality) in zip(curve.points, settings, strict=True):
                if not any(codec is other for other in warm):
                    # The first call compiles, allocates and warms caches up; it is not the speed.
                    codec.decompress(codec.compress(image, quality=quality))
                    warm.append(codec)
                point.images.append(measure(codec, image, name, quality, perceptual=perceptual))
                progress()
        del image  # before the next one is read
    return measured
