"""Images <-> streams: the one place that knows both pixels and bytes."""

from __future__ import annotations

import copy
import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor

from mlic_fast import bitstream, images
from mlic_fast.engine import Engine, create_engine
from mlic_fast.engine.digest import latents_digest
from mlic_fast.engine.identity import model_identity
from mlic_fast.engine.pack import load_packed, pack
from mlic_fast.engine.packed import PackedModel
from mlic_fast.errors import (
    CheckpointError,
    CorruptStreamError,
    EngineError,
    QualityError,
    UnsupportedStreamError,
    WrongModelError,
)
from mlic_fast.models.checkpoints import load_checkpoint
from mlic_fast.models.mlic import ALIGNMENT, MlicModel, Transforms

Output = Literal["torch", "numpy", "pil"]

WEIGHTS = Path(__file__).parent / "weights"
#: Quality of a variable-rate model when none is given.
DEFAULT_QUALITY = 60


class Codec:
    """Compresses photographs with one model. Made by :func:`load`.

    Attributes:
        model: the float model; of a packed file, its transforms alone.
        packed: the entropy path in integers.
        device: where it runs.
        engine: name of the engine, e.g. ``"cpu"``.
        model_id: the 4 bytes that name the model in a stream.
    """

    def __init__(
        self, model: Transforms, packed: PackedModel, device: torch.device, engine: Engine
    ) -> None:
        self.model = model
        self.packed = packed
        self.device = device
        self.model_id = model_identity(model, packed)[: bitstream.MODEL_ID_BYTES]
        self._engine = engine

    @property
    def engine(self) -> str:
        return self._engine.name

    def __repr__(self) -> str:
        return (
            f"Codec({self.model.config.variant}, id={self.model_id.hex()}, "
            f"engine={self.engine!r}, device={str(self.device)!r})"
        )

    def compress(self, image: Any, quality: int | None = None) -> bytes | list[bytes]:
        """Compress an image, or a batch.

        Args:
            image: a path, a PIL image, a uint8 array [H, W, 3], a uint8 tensor [3, H, W]; or a
                uint8 tensor [B, 3, H, W], which gives a list of B streams.
            quality: 1 (smallest) .. 100 (best) for a model with several rates, 60 if not given.

        Raises:
            UnsupportedImageError: for what :mod:`mlic_fast.images` refuses.
            QualityError: for a quality out of range, or given to a model of a single rate.
        """
        quality = self._check_quality(quality)
        if isinstance(image, Tensor) and image.dim() == 4:
            return [self._compress(images.load_image(single), quality) for single in image]
        return self._compress(images.load_image(image), quality)

    def decompress(self, data: bytes | Iterable[bytes], output: Output = "torch") -> Any:
        """Decompress a stream, or a list of them.

        Returns a uint8 tensor [3, H, W] on the codec's device, a uint8 array [H, W, 3]
        (``output="numpy"``) or a PIL image (``output="pil"``); a list of those for a list.

        Raises:
            CorruptStreamError: not a stream, cut short, altered, or decoded out of step.
            WrongModelError: made with another model.
            UnsupportedStreamError: of another version of the arithmetic.
        """
        if output not in ("torch", "numpy", "pil"):
            raise ValueError(f"output must be 'torch', 'numpy' or 'pil', not {output!r}")
        if isinstance(data, Iterable) and not isinstance(data, (bytes, bytearray, memoryview, str)):
            return [self.decompress(single, output) for single in data]
        header, payload = self._open(data)
        with torch.inference_mode():
            y_hat = self._decode(header, payload)
            x_hat = self._engine.synthesise(y_hat, self._rate(header.quality))
            pixels = (x_hat[0].float().clamp(0, 1) * 255).round().to(torch.uint8)
        image = images.crop(pixels, header.height, header.width).contiguous()
        if output == "torch":
            return image
        array = images.to_array(image)
        if output == "numpy":
            return array
        from PIL import Image

        return Image.fromarray(array)

    def decode_latents(self, data: bytes) -> Tensor:
        """The decoded latents of a stream: float32 [M, ceil(H/64) * 4, ceil(W/64) * 4]."""
        with torch.inference_mode():
            return self._decode(*self._open(data))[0]

    def _compress(self, image: Tensor, quality: int) -> bytes:
        height, width = image.shape[1:]
        bitstream.check_size(width, height)
        with torch.inference_mode():
            x = images.pad(image[None].to(self.device), ALIGNMENT).float() / 255
            payload, lanes = self._engine.encode(x, self._rate(quality))
        header = bitstream.Header(
            arithmetic_version=self._engine.arithmetic_version,
            lanes=lanes,
            model_id=self.model_id,
            quality=quality,
            width=width,
            height=height,
        )
        return bitstream.write(header, payload)

    def _decode(self, header: bitstream.Header, payload: bytes) -> Tensor:
        size = (-(-header.height // ALIGNMENT), -(-header.width // ALIGNMENT))
        y_hat, digest = self._engine.decode(payload, header.lanes, size)
        if latents_digest(y_hat) != digest:
            raise CorruptStreamError(
                "the decoded latents are not the encoded ones: the stream is damaged, or it was "
                "made by a machine whose arithmetic differs; get a fresh copy of it"
            )
        return y_hat

    def _open(self, data: bytes | bytearray | memoryview) -> tuple[bitstream.Header, bytes]:
        header, payload = bitstream.read(data)
        if header.arithmetic_version != self._engine.arithmetic_version:
            made = "provisional" if header.arithmetic_version == bitstream.PROVISIONAL else "exact"
            raise UnsupportedStreamError(
                f"the stream was made with {made} arithmetic (version "
                f"{header.arithmetic_version}), which the engine {self.engine!r} does not decode"
            )
        if header.model_id != self.model_id:
            raise WrongModelError(
                f"the stream was made with model {header.model_id.hex()}, but the model loaded is "
                f"{self.model_id.hex()}; load the model it was made with"
            )
        if bool(header.quality) != bool(self.model.config.rates):
            raise CorruptStreamError("the stream is invalid: its quality does not fit its model")
        return header, payload

    def _check_quality(self, quality: int | None) -> int:
        if not self.model.config.rates:
            if quality is not None:
                raise QualityError("this model has a single rate: leave quality out")
            return 0
        if quality is None:
            return DEFAULT_QUALITY
        if isinstance(quality, bool) or not isinstance(quality, SupportsIndex):
            raise QualityError(f"quality must be a whole number from 1 to 100, not {quality!r}")
        quality = operator.index(quality)
        if not 1 <= quality <= 100:
            raise QualityError(f"quality must be a whole number from 1 to 100, not {quality}")
        return quality

    def _rate(self, quality: int) -> Tensor | None:
        """Quality 1 .. 100 -> rate 0 .. rates - 1 of the gain units, linearly."""
        if not quality:
            return None
        rate = (quality - 1) / 99 * (self.model.config.rates - 1)
        return torch.tensor([rate], dtype=torch.float32, device=self.device)


def load(
    model: str | os.PathLike[str] | MlicModel = "demo", device: str = "auto", engine: str = "auto"
) -> Codec:
    """Load a model and make a codec of it.

    Args:
        model: ``"demo"`` (the weights that come with the package), a checkpoint file
            (:func:`mlic_fast.models.load_checkpoint`), a packed file (``mlic-fast pack``), or a
            model.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; ``"auto"`` is the CPU, which all exact
            engines run on so far.
        engine: ``"auto"`` or the name of an engine (:data:`mlic_fast.engine.ENGINES`).

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
        EngineError: the device or engine is unknown or cannot run here.
    """
    target = _device(device)
    if isinstance(model, MlicModel):
        # A copy: the caller may train on; a codec never changes.
        transforms, packed = _packed_now(copy.deepcopy(model))
    else:
        if model == "demo":
            model = WEIGHTS / "demo.safetensors"
        elif isinstance(model, str) and not Path(model).exists():
            raise CheckpointError(f"no model called {model!r}: give 'demo' or a checkpoint file")
        transforms, packed = load_packed(model) or _packed_now(load_checkpoint(model))
    transforms = transforms.eval().requires_grad_(False).to(target)
    return Codec(transforms, packed, target, create_engine(engine, transforms, packed, target))


def _packed_now(model: MlicModel) -> tuple[Transforms, PackedModel]:
    return model, pack(model)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise EngineError(f"unsupported device {name!r}: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"device {name!r} was asked for, but PyTorch finds no CUDA device here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(f"there is no device {name!r}: {torch.cuda.device_count()} CUDA devices")
    return device
