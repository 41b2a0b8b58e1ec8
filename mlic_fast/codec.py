"""Images <-> streams: the one place that knows both pixels and bytes."""

from __future__ import annotations

import copy
import operator
import os
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np
import numpy.typing as npt

from mlic_fast import bitstream, images, sections, targets
from mlic_fast.engine import (
    Engine,
    begin_gpu,
    create_engine,
    gpu_possible,
    gpu_problem,
    resolve_device,
)
from mlic_fast.engine.packing.packed import PackedModel
from mlic_fast.engine.surroundings import surroundings
from mlic_fast.errors import (
    CorruptStreamError,
    QualityError,
    TooManyPixelsError,
    UnsupportedStreamError,
    WrongModelError,
)
from mlic_fast.images import Picture, Pixels
from mlic_fast.inspection import stream_bytes
from mlic_fast.metadata import NONE, Metadata, from_sections
from mlic_fast.model_sources import path_of, read_float_model, read_packed_source, read_source
from mlic_fast.models.config import ALIGNMENT

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mlic_fast.models.mlic import MlicModel, Transforms

Output = Literal["torch", "numpy", "pil"]

#: Quality of a variable-rate model when none is given.
DEFAULT_QUALITY = 60


class Codec:
    """Compresses photographs with one model. Made by :func:`load`.

    Attributes:
        packed: the entropy path in integers.
        model_id: the 4 bytes that name the model in a stream.
    """

    def __init__(
        self,
        model: Transforms | None,
        packed: PackedModel,
        device: torch.device | str,
        engine: Engine,
        *,
        file: Path | None = None,
        identity: bytes | None = None,
    ) -> None:
        """``identity`` instead of a model: that is in ``file``, and read when it is needed."""
        self.packed = packed
        self._model = model
        self._device = str(device)
        self._engine = engine
        self._file = file and file.absolute()
        if identity is None:
            from mlic_fast.engine.identity import model_identity

            assert model is not None
            identity = model_identity(model, packed)
        self._identity = identity
        self.model_id = identity[: bitstream.MODEL_ID_BYTES]

    @property
    def model(self) -> Transforms:
        """The float model; of a packed file, its transforms alone.

        Coding does without it. Raises WrongModelError if its file holds another model by now.
        """
        if self._model is None:
            assert self._file is not None
            self._model = read_float_model(self._file, self._identity).to(self.device)
        return self._model

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        import torch

        return torch.device(self._device)

    @property
    def engine(self) -> str:
        """Name of the engine that computes, e.g. ``"cpu"``."""
        return self._engine.name

    def __repr__(self) -> str:
        return (
            f"Codec({self.packed.config.variant}, id={self.model_id.hex()}, "
            f"engine={self.engine!r}, device={self._device!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """As a file and a digest, or as weights: other processes load them once.

        Copies may be the codec itself, which never changes.
        """
        source: Path | bytes
        if self._file is not None:
            source = self._file
        else:
            from mlic_fast.engine.packing.packer import packed_bytes
            from mlic_fast.models.checkpoints import checkpoint_bytes
            from mlic_fast.models.mlic import MlicModel

            model = self.model
            if isinstance(model, MlicModel):
                source = checkpoint_bytes(model)
            else:
                source = packed_bytes(model, self.packed)
        return _again, (source, self._identity, self._device, self.engine)

    def compress(
        self,
        image: Any,
        quality: int | None = None,
        *,
        metadata: Literal["all", "none"] | Metadata = "all",
        target_bytes: int | None = None,
        target_psnr: float | None = None,
    ) -> bytes | list[bytes]:
        """Compress an image, or several.

        Args:
            image: a path, the bytes of a file, an open file, a PIL image, a uint8 array [H, W, 3],
                a uint8 tensor [3, H, W] or what gives one through DLPack; with four channels the
                last one is alpha, which is kept exactly. A list of those, or an array or tensor
                with one dimension more, gives a list of streams.
            quality: 1 (smallest) .. 100 (best) for a model with several rates, 60 if not given.
            metadata: ``"all"`` keeps what a file or PIL image has of an ICC profile, EXIF and XMP
                data, and leaves its pixels alone; ``"none"`` keeps nothing and converts to sRGB.
                Or what to keep instead, for pixels that are left alone.
            target_bytes: instead of a quality: the best one whose stream is not larger.
            target_psnr: instead: the lowest quality that has this PSNR over RGB, in dB.

        Raises:
            UnsupportedImageError: for what :mod:`mlic_fast.images` refuses.
            QualityError: for a quality out of range, or given to a model of a single rate; for a
                target that no quality meets.
            DeviceMemoryError: on a GPU, for more than it has memory for.
        """
        if not (metadata in ("all", "none") or isinstance(metadata, Metadata)):
            raise ValueError(f"metadata must be 'all', 'none' or Metadata, not {metadata!r}")
        if (quality, target_bytes, target_psnr).count(None) < 2:
            raise QualityError("give one of quality, target_bytes and target_psnr")
        for name, target in (("target_bytes", target_bytes), ("target_psnr", target_psnr)):
            if target is not None and not _is_positive(target):
                raise QualityError(f"{name} must be a number above 0, not {target!r}")
        if target_bytes is None and target_psnr is None:
            quality = self._check_quality(quality)
        several = images.is_several(image)
        pictures = [
            images.load_picture(each, metadata=metadata != "none")
            for each in (image if several else [image])
        ]
        for number in range(len(pictures)):
            pictures[number].warn()
            if isinstance(metadata, Metadata):
                pictures[number] = replace(pictures[number], metadata=metadata.upright())
        if quality is not None:
            streams = self._compress(pictures, quality)
        else:
            streams = [self._compress_to(each, target_bytes, target_psnr) for each in pictures]
        return streams if several else streams[0]

    def decompress(
        self, data: Any, output: Output = "torch", *, max_pixels: int = bitstream.DECODED_PIXELS
    ) -> Any:
        """Decompress a stream, or a list of them.

        Args:
            data: bytes, the path of a file, an open file; or a list of those.
            output: ``"torch"``, ``"numpy"`` or ``"pil"``.
            max_pixels: of a picture; what it would cost is known before anything is decoded.

        Returns a uint8 tensor [3, H, W] on the codec's device, a uint8 array [H, W, 3]
        (``output="numpy"``) or a PIL image (``output="pil"``), whose ``info`` has the metadata;
        with four channels where the picture is not opaque. A list of those for a list.

        Raises:
            CorruptStreamError: not a stream, cut short, altered, or decoded out of step.
            TooManyPixelsError: more than ``max_pixels``.
            WrongModelError: made with another model.
            UnsupportedStreamError: of another version of the arithmetic.
            DeviceMemoryError: on a GPU, for more than it has memory for.
        """
        if output not in ("torch", "numpy", "pil"):
            raise ValueError(f"output must be 'torch', 'numpy' or 'pil', not {output!r}")
        several = isinstance(data, Iterable) and not _is_stream(data)
        opened = [self._open(each, max_pixels) for each in (data if several else [data])]
        carried = [sections.Sections(stream.sections) for stream in opened]
        metadata = [from_sections(each) if output == "pil" else NONE for each in carried]
        alphas = [
            sections.read_alpha(each, stream.header.height, stream.header.width)
            for each, stream in zip(carried, opened, strict=True)
        ]
        decoded = [
            _converted(image, alpha, known, output)
            for image, alpha, known in zip(self._decompress(opened), alphas, metadata, strict=True)
        ]
        return decoded if several else decoded[0]

    def decode_latents(self, data: Any, *, max_pixels: int = bitstream.DECODED_PIXELS) -> Tensor:
        """The decoded latents of a stream, as :meth:`decompress` takes them.

        float32 [M, ceil(H/64) * 4, ceil(W/64) * 4].
        """
        header, _, payload = self._open(data, max_pixels)
        with surroundings():
            size = _hyper_size(header)
            (latents,) = self._engine.decode_latents([(payload, header.lanes)], size)
        return images.as_tensor(images.contiguous(latents))

    def warmup(self, sizes: Iterable[tuple[int, int]], batch: int = 1) -> None:
        """Prepare for images of these sizes, (width, height) each, in batches of ``batch``.

        On a GPU the first image of a size compiles kernels and the second captures a CUDA graph, on
        a CPU the work on the second is recorded; after a warm-up nothing of that is left to do.

        No other thread may synchronise the whole device (``torch.cuda.synchronize()``) while a
        graph is captured: where threads do that, warm up before they start.
        """
        for width, height in sizes:
            bitstream.check_size(width, height)
            images = np.zeros((batch, height, width, 3), np.uint8)
            for _ in range(2):
                self.decompress(self.compress(images))

    def _compress_to(self, picture: Picture, size: int | None, psnr: float | None) -> bytes:
        if not self.packed.config.rates:
            raise QualityError("this model has a single rate: it meets no target")
        image, carried = picture.pixels, _sections(picture)
        _, height, width = image.shape
        bitstream.check_size(width, height)
        with surroundings():
            padded = self._for_engine(images.pad(image[None], ALIGNMENT))
            encode_at = self._engine.encoder(padded)

            def encode(quality: int) -> bytes:
                return self._stream(
                    (width, height), quality, *encode_at(self._rate(quality)), carried
                )

            if size is not None:
                return targets.largest_within(encode, size)
            assert psnr is not None
            from mlic_fast.evaluation.metrics import psnr as psnr_of

            original = images.as_tensor(image)

            def reached(data: bytes) -> float:
                return psnr_of(original, self.decompress(data)[:3].to(original.device))

            return targets.smallest_reaching(encode, reached, psnr)

    def _compress(self, pictures: list[Picture], quality: int) -> list[bytes]:
        """Streams in the order of the pictures, those of equal size in batches.

        They are taken out of the list: their memory is free while they are coded.
        """
        sizes: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for number, (height, width) in enumerate(each.pixels.shape[1:] for each in pictures):
            bitstream.check_size(width, height)
            sizes[height, width].append(number)
        carried = [_sections(picture) for picture in pictures]
        waiting = dict(enumerate(pictures))
        pictures.clear()
        streams: dict[int, bytes] = {}
        with surroundings():
            for (height, width), numbers in sizes.items():
                limit = self._engine.batch_limit(height, width)
                for start in range(0, len(numbers), limit):
                    part = numbers[start : start + limit]
                    batch = _batch([waiting.pop(number).pixels for number in part])
                    given = [self._for_engine(images.pad(batch, ALIGNMENT))]
                    del batch
                    payloads = self._engine.encode_images(given, self._rate(quality))
                    for number, (payload, lanes) in zip(part, payloads, strict=True):
                        streams[number] = self._stream(
                            (width, height), quality, payload, lanes, carried[number]
                        )
        return [streams[number] for number in sorted(streams)]

    def _for_engine(self, batch: Any) -> Any:
        if self._engine.arrays == "numpy":
            return batch if isinstance(batch, np.ndarray) else batch.cpu().numpy()
        return images.as_tensor(batch).to(self.device)

    def _stream(
        self, size: tuple[int, int], quality: int, payload: bytes, lanes: int, carried: bytes
    ) -> bytes:
        """``size``: width and height."""
        width, height = size
        header = bitstream.Header(
            arithmetic_version=self._engine.arithmetic_version,
            lanes=lanes,
            model_id=self.model_id,
            quality=quality,
            width=width,
            height=height,
        )
        return bitstream.write(header, payload, carried)

    def _decompress(self, opened: Sequence[bitstream.Stream]) -> list[Pixels]:
        """Images [3, H, W] in the order of the streams, those of equal size in batches."""
        groups: dict[tuple[int, int, int], list[int]] = {}
        for number, (header, _, _) in enumerate(opened):
            groups.setdefault((header.width, header.height, header.quality), []).append(number)
        decoded: dict[int, Any] = {}
        with surroundings():
            for (width, height, quality), numbers in groups.items():
                limit = self._engine.batch_limit(height, width)
                for start in range(0, len(numbers), limit):
                    part = numbers[start : start + limit]
                    pixels = self._engine.decode_images(
                        [(opened[number].payload, opened[number].header.lanes) for number in part],
                        _hyper_size(opened[part[0]].header),
                        self._rate(quality),
                    )
                    for number, image in zip(part, pixels, strict=True):
                        decoded[number] = images.contiguous(images.crop(image, height, width))
        return [decoded[number] for number in range(len(opened))]

    def _open(self, data: Any, max_pixels: int) -> bitstream.Stream:
        stream = bitstream.split(stream_bytes(data))
        header = stream.header
        if header.pixels > max_pixels:
            raise TooManyPixelsError(
                f"the stream holds {header.width}x{header.height} pixels, more than the limit of "
                f"{max_pixels}; raise max_pixels (--max-pixels) if you trust it"
            )
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
        if bool(header.quality) != bool(self.packed.config.rates):
            raise CorruptStreamError("the stream is invalid: its quality does not fit its model")
        return stream

    def _check_quality(self, quality: int | None) -> int:
        if not self.packed.config.rates:
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

    def _rate(self, quality: int) -> float | None:
        """Quality 1 .. 100 -> rate 0 .. rates - 1 of the gain units, linearly; in float32."""
        if not quality:
            return None
        return float(np.float32((quality - 1) / 99 * (self.packed.config.rates - 1)))


def load(
    model: str | os.PathLike[str] | MlicModel = "photo", device: str = "auto", engine: str = "auto"
) -> Codec:
    """Load a model and make a codec of it.

    Args:
        model: ``"photo"`` (the weights that come with the package), a checkpoint file
            (:func:`mlic_fast.models.load_checkpoint`), a packed file (``mlic-fast pack``), or a
            model.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. ``"auto"`` is the GPU where there is one and
            the engine leaves the choice: if a golden stream decodes bit for bit there
            (:mod:`mlic_fast.self_check`, once a machine). If it does not, a RuntimeWarning says
            what differed, and it is the CPU.
        engine: ``"auto"`` or the name of an engine (:data:`mlic_fast.engine.ENGINES`).

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
        EngineError: the device or engine is unknown or cannot run here.
    """
    automatic = device == engine == "auto"
    target = "cpu" if automatic else resolve_device(device, engine)
    gpu = "cuda" if automatic and gpu_possible() else target
    if gpu != "cpu" and engine != "reference" and gpu_problem() is None:
        begin_gpu(gpu)
    path = path_of(model)
    packed_source = None if path is None or engine == "reference" else read_packed_source(path)
    if packed_source is None:
        import torch  # noqa: F401  (surroundings look after what is imported)
    with surroundings():
        source = packed_source or read_source(model, path)

        def codec_on(target: str) -> Codec:
            # On a GPU a copy of the model, as that may turn out to be unsound.
            moved = source.model
            if moved is not None and target != "cpu":
                moved = copy.deepcopy(moved).to(target)
            transforms = source.transforms or moved
            assert transforms is not None
            made = create_engine(engine, transforms, source.packed, target)
            return Codec(
                moved, source.packed, target, made, file=source.file, identity=source.identity
            )

        return (automatic and gpu_possible() and _on_a_sound_gpu(codec_on)) or codec_on(target)


def _on_a_sound_gpu(codec_on: Callable[[str], Codec]) -> Codec | None:
    """A codec on the current GPU; None where there is none, or, with a warning, a wrong one."""
    import torch

    from mlic_fast import self_check

    problem = gpu_problem()
    if problem is None:
        try:
            codec = codec_on(resolve_device("cuda", "auto"))
            problem = self_check.remembered(codec)
        except Exception as error:  # whatever a machine may lack; the CPU needs none of it
            problem = f"{type(error).__name__}: {error}"
        if problem is None:
            return codec
    if torch.cuda.is_available():
        warnings.warn(
            f"the CPU is used, not the GPU: {problem}. See mlic-fast doctor; device='cpu' or "
            "device='cuda' chooses without this check.",
            RuntimeWarning,
            stacklevel=4,
        )
    return None


def _is_positive(target: object) -> bool:
    """Whether it is a finite number above 0."""
    numbers = (int, float, np.integer, np.floating)
    return isinstance(target, numbers) and bool(0 < target < float("inf"))


def _is_stream(data: Any) -> bool:
    return isinstance(data, (bytes, bytearray, memoryview, str, os.PathLike)) or hasattr(
        data, "read"
    )


@lru_cache(maxsize=4)
def _again(source: Path | bytes, identity: bytes, device: str, engine: str) -> Codec:
    """The codec of :meth:`Codec.__reduce__` in another process, loaded once.

    Raises WrongModelError if the file holds another model by now.
    """
    if isinstance(source, Path):
        codec = load(source, device=device, engine=engine)
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.safetensors"
            file.write_bytes(source)
            codec = load(file, device=device, engine=engine)
        codec._file = None
    if codec._identity != identity:
        raise WrongModelError(f"{source!r} holds another model than when the codec was made")
    return codec


def _hyper_size(header: bitstream.Header) -> tuple[int, int]:
    """Height and width of z."""
    return -(-header.height // ALIGNMENT), -(-header.width // ALIGNMENT)


def _sections(picture: Picture) -> bytes:
    contents = picture.metadata.to_contents()
    if picture.alpha is not None:
        contents[sections.ALPHA] = sections.alpha_content(images.as_array(picture.alpha))
    return sections.join(contents)


def _batch(each: Sequence[Pixels]) -> Any:
    """A batch [B, 3, H, W] of equal images: a tensor if they are tensors, else an array."""
    if len(each) == 1:
        return each[0][None]
    if not all(map(images.is_tensor, each)):
        return np.stack([images.as_array(image) for image in each])
    import torch

    return torch.stack(list(map(images.as_tensor, each)))


def _converted(
    image: Pixels, alpha: npt.NDArray[np.uint8] | None, metadata: Metadata, output: Output
) -> Any:
    if output == "torch":
        image = images.as_tensor(image)
        if alpha is None:
            return image
        import torch

        return torch.cat([image, images.as_tensor(alpha)[None].to(image.device)])
    if alpha is not None:
        image = np.concatenate([images.as_array(image), alpha[None]])
    return images.to_array(image) if output == "numpy" else images.to_pil(image, metadata)
