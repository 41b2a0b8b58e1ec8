"""The range coder where the latents are: on a CUDA device, or emulated on the CPU.

Streams are those of `mlic_fast.coder.rans`, bit for bit, both ways. On "cuda" the kernels of
csrc/rans/gpu run on PyTorch's current stream. Only `DeviceDecoder.load`, `DeviceDecoder.digests`
and `DeviceEncoder.payloads` wait or touch the host's memory, so all else can be captured in a CUDA
graph: the buffers are made by the constructors and keep their places. On "cpu" the same source runs
with loops in place of threads, for tests.

An object is for one thread and one stream at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlic_fast import _C
from mlic_fast.coder.tables import Tables
from mlic_fast.errors import CapacityError, EngineError

_core = _C.gpu_coder

#: Tables of the hyper-latents begin here; those before are chosen by scale.
FIRST_CHANNEL_TABLE = 64

#: The host fetches the results together with the first 1/FETCHED of a payload's room. Most payloads
#: fit in that, so the host waits once.
FETCHED = 4

#: PayloadHeader of csrc/rans/gpu/layout.h.
_HEADER = np.dtype([("size", np.uint32), ("lanes", np.uint32), ("offset", np.uint64)])


class DeviceTables:
    """Tables on a device.

    Raises:
        EngineError: neither a CPU nor a CUDA device, or CUDA cannot be used here.
    """

    def __init__(self, tables: Tables, device: torch.device | str) -> None:
        device = torch.device(device)
        if device.type not in ("cpu", "cuda"):
            raise EngineError(
                f"the range coder runs on cpu and cuda devices, not on {device.type}."
            )
        if device.type == "cuda":
            _check_cuda()
        self.count = len(tables)
        self._image = _core.TableImage(tables.core)
        self._bytes = torch.from_numpy(self._image.bytes()).to(device)
        self.device = self._bytes.device  # with its number


def _check_cuda() -> None:
    if not _core.has_cuda:
        raise EngineError(
            "mlic_fast was built without CUDA: install it where nvcc is found, or set "
            "MLIC_FAST_CUDA=ON for the build to say what is missing."
        )
    if not torch.cuda.is_available():
        raise EngineError("PyTorch finds no CUDA device here.")


class _Coder:
    """What decoder and encoder share: where they run, and checks of what they are given."""

    def __init__(self, tables: DeviceTables, batch: int, capacity: int, symbols: int) -> None:
        if batch < 1 or not 0 <= symbols < 1 << 31 or not 8 <= capacity < 1 << 31:
            raise ValueError("a coder is for one payload or more, of 8 bytes to 2 GiB")
        self.batch, self.capacity, self.symbols = batch, capacity + capacity % 2, symbols
        self.device = tables.device
        self._tables = tables
        self._number = _core.HOST if self.device.type == "cpu" else self.device.index

    def _common(self) -> dict[str, Any]:
        """Arguments that the C++ decoder and encoder both take."""
        return {
            "image": self._tables._image,
            "tables": self._tables._bytes.data_ptr(),
            "device": self._number,
            "batch": self.batch,
            "capacity": self.capacity,
            "symbols": self.symbols,
        }

    def _empty(self, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _host(self, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """An array on the host, pinned where there is a GPU, so that copies wait for nothing."""
        return torch.empty(shape, dtype=dtype, pin_memory=self.device.type == "cuda")

    def _wait(self) -> None:
        """Wait for all work on the current stream."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _stream(self) -> int:
        return (
            0 if self.device.type == "cpu" else torch.cuda.current_stream(self.device).cuda_stream
        )

    def _guard(self) -> contextlib.AbstractContextManager[Any]:
        """While entered, PyTorch's current device is the coder's; afterwards it is what it was."""
        return (
            contextlib.nullcontext()
            if self.device.type == "cpu"
            else torch.cuda.device(self.device)
        )

    def _check(self, x: Tensor, dtype: torch.dtype, name: str) -> None:
        if x.dtype != dtype or x.device != self.device or not x.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous, {dtype}, on {self.device}; "
                f"not {x.dtype} on {x.device} with strides {x.stride()}"
            )
        if x.ndim < 2 or x.shape[0] != self.batch:
            raise ValueError(f"{name} must be [{self.batch}, .., C], not {list(x.shape)}")
        if x.numel() > self.batch * self.symbols:
            raise ValueError(f"{name}: this coder was made for {self.symbols} symbols an image")
        if x.shape[-1] > _core.MAX_CHANNELS:
            raise ValueError(f"a pass has at most {_core.MAX_CHANNELS} channels")

    def _check_channels(self, x: Tensor, first: int) -> None:
        if not 0 <= first <= self._tables.count - x.shape[-1]:
            raise ValueError(
                f"{x.shape[-1]} channels need as many tables from number {first} on; there are "
                f"{self._tables.count} tables"
            )


def _shape(x: Tensor) -> Any:
    channels = x.shape[-1]
    return _core.PassShape(x.numel() // max(1, x.shape[0] * channels), channels)


class DeviceDecoder(_Coder):
    """Decodes a batch of payloads, pass by pass.

    A damaged payload gives arbitrary symbols in the pass where the damage is found, and zeros from
    then on, for its own image alone; `digests` reports it.

    Args:
        tables: those of the encoder.
        batch: number of payloads.
        capacity: bytes of the largest payload.
        symbols: of the largest pass of one image.
        blocks: blocks of threads that sort the symbols of a pass, 1, 2, 4 or 8; by default as many
            as pay for its size. GPUs without clusters (before compute capability 9.0) have one.

    Attributes:
        results: int32 [batch, 2] on the device, written by `finish`: an error number, 0 if there is
            none, and the digest (its 32 bits).
    """

    def __init__(
        self,
        tables: DeviceTables,
        *,
        batch: int,
        capacity: int,
        symbols: int,
        blocks: int | None = None,
    ) -> None:
        super().__init__(tables, batch, capacity, symbols)
        if blocks not in (None, 1, 2, 4, 8):
            raise ValueError("blocks must be 1, 2, 4 or 8")
        self._payloads_at = batch * _core.HEADER_BYTES
        self._input = self._empty(self._payloads_at + batch * self.capacity)
        self.results = self._empty(batch, 2, dtype=torch.int32)
        self._staged = self._host(0)
        self._loaded = torch.cuda.Event() if self.device.type == "cuda" else None
        self._host_results = self._host(batch, 2, dtype=torch.int32)
        self._scratch = (
            self._empty(batch * _core.STATE_BYTES),
            self._empty(batch * (self.capacity // 2 + _core.RETURNED_WORDS), dtype=torch.int16),
            self._empty(batch * _core.DECODER_SCRATCH * symbols, dtype=torch.int32),
        )
        states, words, scratch = (x.data_ptr() for x in self._scratch)
        self._core = _core.Decoder(
            **self._common(),
            blocks=blocks or 0,
            headers=self._input.data_ptr(),
            payloads=self._input.data_ptr() + self._payloads_at,
            states=states,
            words=words,
            scratch=scratch,
            results=self.results.data_ptr(),
        )

    def load(self, payloads: Sequence[bytes], lanes: Sequence[int]) -> None:
        """Copies payloads to the device, on the current stream. Not to be captured.

        Raises:
            ValueError: more or fewer payloads than the batch, or one beyond the capacity.
        """
        if len(payloads) != self.batch or len(lanes) != self.batch:
            raise ValueError(f"this decoder takes {self.batch} payloads at a time")
        sizes = [len(payload) for payload in payloads]
        if max(sizes) > self.capacity:
            raise ValueError(f"a payload of {max(sizes)} bytes exceeds {self.capacity}")
        headers = np.zeros(self.batch, _HEADER)
        headers["size"], headers["lanes"] = sizes, lanes
        headers["offset"][1:] = np.cumsum(sizes[:-1])
        data = b"".join([headers.tobytes(), *payloads])
        if self._loaded is not None:
            self._loaded.synchronize()  # what was staged before has left
        if self._staged.numel() < len(data):
            self._staged = self._host(1 << len(data).bit_length())
        self._staged[: len(data)].numpy()[:] = np.frombuffer(data, np.uint8)
        self._input[: len(data)].copy_(self._staged[: len(data)], non_blocking=True)
        if self._loaded is not None:
            self._loaded.record(torch.cuda.current_stream(self.device))

    def begin(self) -> None:
        """Starts decoding the payloads that were loaded."""
        with self._guard():
            self._core.begin(self._stream())

    def decode(self, indexes: Tensor, out: Tensor | None = None) -> Tensor:
        """The symbols of the next pass.

        Args:
            indexes: uint8 [batch, .., C], at most 63.
            out: int32, where to put them.

        Returns:
            int32, in the shape of the indexes.
        """
        self._check(indexes, torch.uint8, "indexes")
        if out is None:
            out = torch.empty_like(indexes, dtype=torch.int32)
        self._check(out, torch.int32, "out")
        if out.shape != indexes.shape:
            raise ValueError(f"indexes {list(indexes.shape)} and out {list(out.shape)} differ")
        return self._decode(out, indexes.data_ptr(), 0)

    def decode_channels(self, out: Tensor, first: int = FIRST_CHANNEL_TABLE) -> Tensor:
        """The symbols of the next pass, int32 [batch, .., C], put into `out`, where the table of a
        symbol is `first` plus its channel: the hyper-latents."""
        self._check(out, torch.int32, "out")
        self._check_channels(out, first)
        return self._decode(out, 0, first)

    def _decode(self, out: Tensor, indexes: int, first: int) -> Tensor:
        if out.numel() > 0:
            with self._guard():
                self._core.decode(out.data_ptr(), indexes, _shape(out), first, self._stream())
        return out

    def finish(self) -> None:
        """Checks that each payload was consumed and writes `results`."""
        with self._guard():
            self._core.finish(self._stream())

    def digests(self) -> list[int]:
        """Waits for the device; the digest of each image.

        Raises:
            CorruptStreamError: a payload is damaged; the message is `mlic_fast.coder.Decoder`'s.
            ValueError: a pass had indexes without a table.
        """
        self._host_results.copy_(self.results, non_blocking=True)
        self._wait()
        results = self._host_results.numpy().view(np.uint32)
        for error in results[:, 0]:
            _core.check(int(error))
        return [int(digest) for digest in results[:, 1]]


class DeviceEncoder(_Coder):
    """Codes the passes of a batch of images: sorts each as it comes, and does the rest in `finish`.

    Args:
        tables: the probability tables.
        batch: number of images.
        capacity: bytes of the largest payload.
        symbols: of all passes of one image together.
        lanes: as for `mlic_fast.coder.Encoder`.

    Attributes:
        digests: int32 [batch] on the device, zeros at first: 32 bits that come back from the
            decoder, to be written before `finish`.
    """

    def __init__(
        self,
        tables: DeviceTables,
        *,
        batch: int,
        capacity: int,
        symbols: int,
        lanes: int | None = None,
    ) -> None:
        super().__init__(tables, batch, capacity, symbols)
        if lanes is not None and lanes not in [2**k for k in range(1, 11)]:
            raise ValueError("lanes must be a power of two from 2 to 1024")
        # A page that is followed by another holds at least words for 954 of its bytes, except for
        # those that lanes were started from; at each such start the last may hold less.
        page_count = (self.capacity + 2 * _core.RETURNED_WORDS) // 954 + _core.MAX_RETIREMENTS + 32
        self.digests = torch.zeros(batch, dtype=torch.int32, device=self.device)
        self._results = self._empty(batch, 3, dtype=torch.int32)
        self._payloads = self._empty(batch, self.capacity)
        self._host_results = self._host(batch, 3, dtype=torch.int32)
        self._host_payloads = self._host(batch, self.capacity // FETCHED)
        events = _core.event_room(symbols) + _core.MAX_PASSES * _core.event_room(0)
        self._scratch = (
            self._empty(batch * (3 * symbols + events), dtype=torch.int32),
            self._empty(batch * _core.INFO_BYTES),
            self._empty(batch * page_count * _core.PAGE_BYTES),
        )
        scratch, infos, pages = (x.data_ptr() for x in self._scratch)
        self._recorded: list[Tensor] = []
        self._core = _core.Encoder(
            **self._common(),
            events=events,
            lanes=lanes or 0,
            page_count=page_count,
            digests=self.digests.data_ptr(),
            scratch=scratch,
            infos=infos,
            pages=pages,
            payloads=self._payloads.data_ptr(),
            results=self._results.data_ptr(),
        )

    def begin(self) -> None:
        """Forgets the passes of the batch before."""
        self._recorded.clear()
        self._core.begin()

    def record(self, symbols: Tensor, indexes: Tensor) -> None:
        """Adds a pass and sorts it, on the current stream. Nothing is copied: both must keep their
        contents until `finish` has run.

        Args:
            symbols: int32 [batch, .., C].
            indexes: uint8, of the same shape, at most 63.

        Raises:
            ValueError: not such tensors, or more symbols or passes than there is room for.
        """
        self._check(symbols, torch.int32, "symbols")
        self._check(indexes, torch.uint8, "indexes")
        if symbols.shape != indexes.shape:
            raise ValueError(
                f"symbols {list(symbols.shape)} and indexes {list(indexes.shape)} differ in shape"
            )
        self._record(symbols, indexes, 0)

    def record_channels(self, symbols: Tensor, first: int = FIRST_CHANNEL_TABLE) -> None:
        """Adds a pass in which a symbol's table is `first` plus its channel: the hyper-latents.

        For symbols and errors see `record`.
        """
        self._check(symbols, torch.int32, "symbols")
        self._check_channels(symbols, first)
        self._record(symbols, None, first)

    def _record(self, symbols: Tensor, indexes: Tensor | None, first: int) -> None:
        if symbols.numel() == 0:
            return
        address = 0 if indexes is None else indexes.data_ptr()
        with self._guard():
            self._core.record(symbols.data_ptr(), address, _shape(symbols), first, self._stream())
        self._recorded += [symbols] if indexes is None else [symbols, indexes]

    def finish(self) -> None:
        """Codes what was recorded, in two launches, on a stream that has waited for those of
        `record`."""
        with self._guard():
            self._core.finish(self._stream())

    def payloads(self) -> list[tuple[bytes, int]]:
        """Waits for the device; payload and number of lanes of each image.

        Raises:
            CapacityError: a payload exceeds the capacity.
            ValueError: a pass had indexes without a table.
        """
        fetched = self._host_payloads.shape[1]
        self._host_results.copy_(self._results, non_blocking=True)
        self._host_payloads.copy_(self._payloads[:, :fetched], non_blocking=True)
        self._wait()
        results = self._host_results.numpy().view(np.uint32)
        for error in results[:, 0]:
            if error == _core.ERROR_CAPACITY:
                raise CapacityError(f"a payload exceeds {self.capacity} bytes.")
            _core.check(int(error))
        longest = int(results[:, 1].max())
        data = self._host_payloads.numpy()
        if longest > fetched:
            data = self._payloads[:, :longest].cpu().numpy()
        return [
            (row[:size].tobytes(), int(lanes))
            for row, (_, size, lanes) in zip(data, results, strict=True)
        ]
