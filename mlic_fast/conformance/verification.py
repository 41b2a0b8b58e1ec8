"""Decoding streams with every engine and comparing everything with ``==``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from mlic_fast import bitstream
from mlic_fast.codec import Codec
from mlic_fast.coder import Encoder
from mlic_fast.conformance.engines import backends, codec_on, create_ops
from mlic_fast.conformance.golden import Expected, read_golden
from mlic_fast.conformance.recorder import Recorder
from mlic_fast.engine.digest import latents_digest
from mlic_fast.engine.packing.packed import PackedModel
from mlic_fast.errors import MlicError
from mlic_fast.models.mlic import Transforms
from mlic_fast.sections import NAMES, Sections


@dataclass(frozen=True)
class Check:
    """One stream decoded by one backend; ``problem`` says what differs first, None if nothing."""

    file: str
    stream: str
    backend: str
    problem: str | None


def verify_golden(path: str | os.PathLike[str], engines: Sequence[str] = ()) -> Iterator[Check]:
    """Every stream of a golden file, with every engine.

    Raises CheckpointError for a file that is no golden file, EngineError for an unknown engine.
    """
    golden = read_golden(path)
    codecs = {}
    for backend in backends(engines):
        recorder = Recorder(create_ops(backend, golden.packed))
        codecs[backend] = codec_on(recorder, golden.model, golden.packed), recorder
    for stream, data in golden.streams.items():
        for backend, (codec, recorder) in codecs.items():
            try:
                found = record(codec, recorder, data)
                problem = _first_difference(golden.expected[stream], found)
            except MlicError as error:
                problem = str(error)
            yield Check(str(path), stream, backend, problem)


def verify_stream(
    path: str | os.PathLike[str],
    model: Transforms,
    packed: PackedModel,
    engines: Sequence[str] = (),
) -> Iterator[Check]:
    """An ordinary stream: it decodes with every engine, to the same latents."""
    data = Path(path).read_bytes()
    first: tuple[str, Tensor] | None = None
    for backend in backends(engines):
        problem = None
        try:
            ops = Recorder(create_ops(backend, packed))
            y_hat = codec_on(ops, model, packed).decode_latents(data).cpu()
            if first is None:
                first = backend, y_hat
            elif not torch.equal(y_hat.view(torch.int32), first[1].view(torch.int32)):
                problem = f"the latents differ from those of {first[0]}"
        except MlicError as error:
            problem = str(error)
        yield Check(str(path), Path(path).stem, backend, problem)


def record(codec: Codec, recorder: Recorder, data: bytes) -> Expected:
    """Decode a stream and hash everything on the way; then code its symbols again.

    Where transforms are exact on every device, the pixels are hashed too, and the stream that they
    compress to. So are the contents of sections.

    Raises what :meth:`Codec.decode_latents` raises.
    """
    y_hat = codec.decode_latents(data).cpu()
    recorder.latents(y_hat[None], codec.packed.config.slices)
    digest = latents_digest(y_hat)
    encoded = _encode_again(codec.packed, recorder, data, digest)
    found = {
        **recorder.hashes,
        "digest": f"{digest:08x}",
        "encoded again": "the same" if encoded == data else "other bytes",
    }
    if codec.model.config.transform_kind.exact_on_gpu:
        pixels = codec.decompress(data, output="numpy")
        quality = bitstream.read(data)[0].quality or None
        compressed = codec.compress(pixels[:, :, :3], quality=quality)
        assert isinstance(compressed, bytes)
        found["pixels"] = hashlib.sha256(pixels.tobytes()).hexdigest()
        found["pixels compressed"] = hashlib.sha256(compressed).hexdigest()
    carried = Sections(bitstream.split(data).sections)
    for kind, name in NAMES.items():
        if content := carried.get(kind, bitstream.MAX_PIXELS):
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def _encode_again(packed: PackedModel, recorder: Recorder, data: bytes, digest: int) -> bytes:
    header, carried, _ = bitstream.split(data)
    encoder = Encoder(packed.tables)
    indexes: list[npt.NDArray[Any]] = [
        packed.hyper_indexes(recorder.symbols[0].shape),
        *recorder.indexes,
    ]
    for symbols, table in zip(recorder.symbols, indexes, strict=True):
        encoder.encode(symbols, table)
    return bitstream.write(header, encoder.finish(digest), carried)


def _first_difference(expected: Expected, found: Expected) -> str | None:
    """The first of what is expected that was not found."""
    for name, value in expected.items():
        if found.get(name) != value:
            return f"{name}: {found.get(name, 'nothing')} instead of {value}"
    return None
