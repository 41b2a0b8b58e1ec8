"""The engine ``gpu``: from bytes to pixels and back without the host between.

Analysis, entropy path and range coder are launches on one stream; an image size that comes again is
one CUDA graph each way. The host writes the payloads to the device before a decode, and reads
payloads or results after all is done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from mlic_fast.bitstream import EXACT
from mlic_fast.coder.gpu_coder import CapacityError, DeviceDecoder, DeviceEncoder, DeviceTables
from mlic_fast.engine.arithmetic import SYMBOL_LIMIT
from mlic_fast.engine.gpu.block_transforms import GpuTransforms
from mlic_fast.engine.gpu.fused_transforms import FusedTransforms
from mlic_fast.engine.gpu.gpu_operations import GpuOps
from mlic_fast.engine.gpu.graphs import GATE, Pool, Recording
from mlic_fast.engine.packing.pack_transforms import pack_transforms
from mlic_fast.engine.packing.packed import PackedModel, PackedTransforms
from mlic_fast.engine.path import code_latents
from mlic_fast.engine.per_image import check_digest
from mlic_fast.errors import DeviceMemoryError, KernelResourcesError
from mlic_fast.kernels.functions import compile_only
from mlic_fast.kernels.latents import digest
from mlic_fast.models.checkerboard import Parity
from mlic_fast.models.config import ALIGNMENT, MlicConfig
from mlic_fast.models.mlic import Transforms

Result = TypeVar("Result")

#: Side branches: a pass is sorted for the range encoder while the next one is computed; decoded
#: latents and payloads are checked while g_s runs.
SORT, CHECK = "sort", "check"
#: Pixels of a batch at most; bounds the workspace.
BATCH_PIXELS = 1 << 23
#: CUDA graphs and buffers are kept for sizes that may come again in one part of so many of the
#: device's memory: a graph has a workspace of its own, of all activations of g_a or g_s.
CACHE_SHARE = 4
#: Room for a payload, in bytes a pixel: eight times what a photograph takes at the best quality. A
#: larger one gets the room that the escapes of any symbols need.
USUAL_BYTES, MOST_BYTES = 1, 12


class GpuEngine:
    """Transforms in half precision, the entropy path on Triton kernels, the range coder on the
    device.

    Any number of threads may use it at once, each on a stream of its own.

    Args:
        model: the transforms; block transforms may be packed already.
        packed: its entropy path.
        device: a CUDA device; or the CPU, where kernels run in Triton's interpreter, for tests.
        ops: backend of the entropy path, default GpuOps.
        dtype: of the transforms.

    Attributes:
        captures: whether sizes that come again become CUDA graphs; without them every stage can be
            watched.
    """

    name = "gpu"
    arithmetic_version = EXACT
    arrays: Literal["numpy", "torch"] = "torch"

    def __init__(
        self,
        model: Transforms | PackedTransforms,
        packed: PackedModel,
        device: torch.device,
        *,
        ops: Any = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.captures = True
        self._device = device
        self._packed = packed
        self._ops = ops or GpuOps(packed, device)
        self._transforms = device_transforms(model, dtype, device)
        self._tables = DeviceTables(packed.tables, device)
        self._medians = torch.from_numpy(packed.layers["medians"].bias).to(device)
        self._compiled: set[tuple[bool, bool, int]] = set()
        cache = _memory(device) // CACHE_SHARE
        self._encodes: Pool[_Encode] = Pool(cache // 2)
        self._decodes: Pool[_Decode] = Pool(cache // 2)
        if device.type == "cuda":  # other threads use what was made here on streams of their own
            torch.cuda.synchronize(device)

    def batch_limit(self, height: int, width: int) -> int:
        return max(1, BATCH_PIXELS // (height * width))

    def encode_images(self, images: list[Tensor], rate: float | None) -> list[tuple[bytes, int]]:
        """Raises DeviceMemoryError."""
        return self._encode_batch(images.pop(), rate)

    def _encode_batch(self, images: Tensor, rate: float | None) -> list[tuple[bytes, int]]:
        batch, _, height, width = images.shape
        size = (batch, height, width)

        def encode() -> list[tuple[bytes, int]]:
            try:
                return self._encode(images, rate, (*size, USUAL_BYTES))
            except CapacityError:
                return self._encode(images, rate, (*size, MOST_BYTES))

        return self._within_memory(encode, *size)

    def _encode(
        self, images: Tensor, rate: float | None, key: tuple[int, int, int, int]
    ) -> list[tuple[bytes, int]]:
        new = partial(_Encode, self, *key)
        with self._current(), GATE.working(), self._encodes.lent(key, new) as job:
            return job(images, rate)

    def compile_kernels(self, batch: int, height: int, width: int, encoding: bool) -> None:
        """Compile what a path of this size of z launches, many kernels at a time.

        Sizes of one magnitude launch the same kernels, with few exceptions, which compile when they
        are launched; others have some of their own.
        """
        size = batch, height, width
        kind = encoding, batch == 1, (batch * height * width).bit_length()
        if kind in self._compiled or self._device.type != "cuda":
            return
        work = partial(compile_path, self._ops, self._transforms, self._device, *size, encoding)
        compile_only(work, os.cpu_count() or 1)
        self._compiled.add(kind)

    def _current(self) -> AbstractContextManager[Any]:
        """PyTorch's and Triton's launches go to the current device."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def encoder(self, image: Tensor) -> Callable[[float | None], tuple[bytes, int]]:
        return lambda rate: self._encode_batch(image, rate)[0]

    def decode_images(
        self, payloads: Sequence[tuple[bytes, int]], size: tuple[int, int], rate: float | None
    ) -> Tensor:
        return self._decode(payloads, size, rate, True)

    def decode_latents(
        self, payloads: Sequence[tuple[bytes, int]], size: tuple[int, int]
    ) -> Tensor:
        return self._decode(payloads, size, None, False)

    def _decode(
        self,
        payloads: Sequence[tuple[bytes, int]],
        size: tuple[int, int],
        rate: float | None,
        synthesise: bool,
    ) -> Tensor:
        height, width = (ALIGNMENT * side for side in size)
        longest = max(len(payload) for payload, _ in payloads)
        # A power of two, so that there are few different jobs.
        room = USUAL_BYTES << max(0, -(-longest // (height * width)) - 1).bit_length()
        key = (len(payloads), *size, room, synthesise)
        new = partial(_Decode, self, *key)

        def decode() -> Tensor:
            with self._current(), GATE.working(), self._decodes.lent(key, new) as job:
                return job(payloads, rate)

        return self._within_memory(decode, len(payloads), height, width)

    def _within_memory(
        self, work: Callable[[], Result], batch: int, height: int, width: int
    ) -> Result:
        """Do it; once more with nothing kept, if the device is out of memory."""
        for _ in range(2):
            try:
                return work()
            except OutOfResources as error:
                raise KernelResourcesError(
                    f"a kernel of this model needs {error.required} bytes of {error.name}, of "
                    f"which this GPU has {error.limit}; load with device='cpu'"
                ) from error
            except torch.OutOfMemoryError:
                pass  # what it holds on to, its traceback's arrays, is free when this block is left
            with self._current(), GATE.working():  # while no thread captures
                self._encodes.clear()
                self._decodes.clear()
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
        needed, there = (
            f"{bytes_ / 2**30:.1f} GiB"
            for bytes_ in (
                workspace(self._packed.config, batch, height, width),
                _memory(self._device),
            )
        )
        what = "an image" if batch == 1 else f"{batch} images"
        less = "" if batch == 1 else "take fewer images at a time, or "
        raise DeviceMemoryError(
            f"there is not enough GPU memory for {what} of {width}x{height} pixels: about {needed} "
            f"are needed besides the weights, of {there} in all; {less}load with device='cpu'"
        )


def device_transforms(
    model: Transforms | PackedTransforms, dtype: torch.dtype, device: torch.device
) -> FusedTransforms | GpuTransforms:
    """Block transforms in exact arithmetic, residual ones on PyTorch's convolutions in a dtype."""
    if isinstance(model, PackedTransforms):
        return GpuTransforms(model, device)
    if model.config.transform_kind.exact_on_gpu:
        return GpuTransforms(pack_transforms(model), device)
    return FusedTransforms(model, dtype)


def workspace(config: MlicConfig, batch: int, height: int, width: int) -> int:
    """Bytes that images of H x W pixels need on the device (docs/architecture.md, Memory)."""
    positions = batch * height * width // 256
    hyper = 2 * config.slices * positions // 2 * config.entropy_parameters_channels[0] * 4
    residuals = 2 * positions * 2 * config.lrp_channels[0] * 4
    windows = positions // 2 * 25 * config.slice_channels * 2
    transforms = 4 * config.stage_channels[0] * 64 * positions * 2
    if config.transforms == "blocks":
        transforms = 4 * config.block_channels * 4 * positions * 4
    return hyper + residuals + windows + transforms


def compile_path(
    ops: Any,
    transforms: FusedTransforms | GpuTransforms,
    device: torch.device,
    batch: int,
    height: int,
    width: int,
    encoding: bool,
) -> None:
    """The launches of a path and of its transforms, on arrays whose contents do not matter."""
    config = ops.config
    z = torch.zeros((batch, height, width, config.N), dtype=torch.int32, device=device)
    shape = (batch, 4 * height, 4 * width, config.M)
    half = (*shape[:2], shape[2] // 2, config.slice_channels)
    symbols = torch.zeros(half, dtype=torch.int32, device=device)
    y = (
        torch.zeros(shape, device=device, dtype=torch.float32).chunk(config.slices, dim=-1)
        if encoding
        else None
    )
    rate = torch.zeros(1, device=device, dtype=torch.float32) if config.rates else None
    if encoding:
        size = batch, 3, ALIGNMENT * height, ALIGNMENT * width
        transforms.analyse(torch.zeros(size, dtype=torch.uint8, device=device), rate)
    else:
        transforms.synthesise(
            torch.zeros(shape, device=device, dtype=torch.float32).permute(0, 3, 1, 2), rate
        )
    latents = code_latents(ops, z, lambda *_: symbols, y)
    digest(latents.whole, out=torch.zeros(batch, dtype=torch.int32, device=device))  # type: ignore[attr-defined]


class _Encode:
    """Buffers of one batch of one size, and its graph: uint8 images -> payloads."""

    def __init__(self, engine: GpuEngine, batch: int, height: int, width: int, room: int) -> None:
        self._engine = engine
        device, config = engine._device, engine._packed.config
        positions = height * width // 256
        self._images = torch.empty((batch, 3, height, width), dtype=torch.uint8, device=device)
        self._rate = torch.zeros(1, device=device, dtype=torch.float32) if config.rates else None
        self._encoder = DeviceEncoder(
            engine._tables,
            batch=batch,
            capacity=room * height * width,
            symbols=positions * config.M + positions // 16 * config.N,
        )
        self._recording = Recording(self._work, device)
        self._buffers = batch * height * width * (3 + 2 * room) + 8 * batch * positions * config.M

    @property
    def nbytes(self) -> int:
        return self._buffers + self._recording.nbytes

    def __call__(self, images: Tensor, rate: float | None) -> list[tuple[bytes, int]]:
        self._images.copy_(images, non_blocking=True)  # the payloads are waited for
        if self._rate is not None and rate is not None:
            self._rate.fill_(rate)
        self._recording(self._engine.captures)
        return self._encoder.payloads()

    def _work(self) -> None:
        engine, encoder = self._engine, self._encoder
        batch, _, height, width = self._images.shape
        engine.compile_kernels(batch, height // ALIGNMENT, width // ALIGNMENT, True)
        y, z = engine._transforms.analyse(self._images, self._rate)
        z_symbols = _to_symbols(_channels_last(z) - engine._medians)
        encoder.begin()
        with engine._ops.aside(SORT):
            encoder.record_channels(z_symbols)

        def record(
            index: int, parity: Parity, scale_indexes: Tensor, means: Tensor, symbols: Tensor
        ) -> Tensor:
            with engine._ops.aside(SORT):
                encoder.record(symbols, scale_indexes)
            return symbols

        slices = _channels_last(y).chunk(engine._packed.config.slices, dim=-1)
        latents = code_latents(engine._ops, z_symbols, record, slices)
        digest(latents.whole, out=encoder.digests)  # type: ignore[attr-defined]
        engine._ops.join(SORT)
        encoder.finish()


class _Decode:
    """Buffers of one batch of one size, and its graph: payloads -> uint8 images, or latents."""

    def __init__(
        self,
        engine: GpuEngine,
        batch: int,
        height: int,
        width: int,
        room: int,
        synthesise: bool,
    ) -> None:
        self._engine = engine
        self._synthesise = synthesise
        device, config = engine._device, engine._packed.config
        positions = height * width
        pixels = positions * ALIGNMENT**2
        self._decoder = DeviceDecoder(
            engine._tables,
            batch=batch,
            capacity=max(room * pixels, 1 << 16),
            symbols=positions * max(8 * config.slice_channels, config.N),
        )
        self._z = torch.empty((batch, height, width, config.N), dtype=torch.int32, device=device)
        self._rate = (
            torch.zeros(1, device=device, dtype=torch.float32)
            if config.rates and synthesise
            else None
        )
        self._digests = torch.empty(batch, dtype=torch.int32, device=device)
        self._host_digests = torch.empty(batch, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._recording = Recording(self._work, device)
        self._buffers = batch * pixels * (2 * room + 3) + 16 * self._z.numel()

    @property
    def nbytes(self) -> int:
        return self._buffers + self._recording.nbytes

    def __call__(self, payloads: Sequence[tuple[bytes, int]], rate: float | None) -> Tensor:
        if self._rate is not None and rate is not None:
            self._rate.fill_(rate)
        self._decoder.load([payload for payload, _ in payloads], [lanes for _, lanes in payloads])
        # Cloned, as the next decode, maybe on another stream, writes to it; before the wait for the
        # digests, so that this is done when the job goes back.
        out = self._recording(self._engine.captures).clone()
        self._host_digests.copy_(self._digests, non_blocking=True)
        expected = self._decoder.digests()
        for found, right in zip(self._host_digests.tolist(), expected, strict=True):
            check_digest(found & 0xFFFFFFFF, right)
        return out

    def _work(self) -> Tensor:
        engine, decoder = self._engine, self._decoder
        batch, height, width, _ = self._z.shape
        engine.compile_kernels(batch, height, width, False)
        decoder.begin()
        decoder.decode_channels(self._z)

        def decode(
            index: int, parity: Parity, scale_indexes: Tensor, means: Tensor, symbols: None
        ) -> Tensor:
            return decoder.decode(scale_indexes)

        latents = code_latents(engine._ops, self._z, decode)
        y_hat: Tensor = latents.whole  # type: ignore[attr-defined]
        with engine._ops.aside(CHECK):
            digest(y_hat, out=self._digests)
            decoder.finish()
        out = y_hat.permute(0, 3, 1, 2)
        if self._synthesise:
            out = engine._transforms.synthesise(out, self._rate)
        engine._ops.join(CHECK)  # until here nothing else may have the latents' memory
        return out


def _memory(device: torch.device) -> int:
    """Bytes of a CUDA device; some for the interpreter."""
    if device.type != "cuda":
        return 4 << 30
    return int(torch.cuda.get_device_properties(device).total_memory)


def _to_symbols(x: Tensor) -> Tensor:
    """As :func:`mlic_fast.engine.arithmetic.to_symbols`."""
    x = torch.nan_to_num(x, nan=0.0).clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT)
    return torch.round(x).to(torch.int32)


def _channels_last(x: Tensor) -> Tensor:
    """[B, C, H, W] -> contiguous [B, H, W, C]; free for what is channels-last already."""
    return x.permute(0, 2, 3, 1).contiguous()
