"""Ray Data: read and write compressed pictures on many machines. Needs ``mlic_fast[ray]``.

>>> pictures = mlic_fast.ray.read_mlic("s3://bucket/photos")   # rows: image, path, size, quality
>>> mlic_fast.ray.write_mlic(pictures, "s3://bucket/smaller", quality=30)

A worker, whose codec is loaded once, uses as many threads as it has CPUs of Ray, or its GPU:

>>> dataset.map_batches(MlicEncoder, fn_constructor_kwargs={"quality": 60}, batch_size=8,
...                     num_gpus=1)
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import mlic_fast
from mlic_fast import bitstream, storage
from mlic_fast.codec import Codec
from mlic_fast.errors import MlicError

SUFFIX = ".mlic"
#: Pictures that a worker takes at a time.
BATCH = 8
#: Options of tasks that read and write. Workers hold their CPUs; if these were all CPUs of a small
#: cluster, a task that asked for one would wait for ever.
_NO_CPU: Any = {"num_cpus": 0}

Batch = dict[str, Any]


def read_mlic(
    paths: str | list[str],
    codec: Any = "photo",
    *,
    latents: bool = False,
    filesystem: Any = None,
    **workers: Any,
) -> Any:
    """A dataset of the .mlic files in folders, or of single files.

    Rows have ``path``, ``width``, ``height``, ``quality`` (0 for a model of a single rate) and
    ``image``, uint8 [H, W, 3] ([H, W, 4] if it is not opaque), or with ``latents`` instead
    ``latents``, float32 [M, h, w].

    Args:
        paths: paths or URLs.
        codec: what :func:`mlic_fast.load` takes as a model; a file must be there on every machine.
        latents: whether to decode no further than the latents.
        filesystem: of pyarrow; found from the URLs if not given.
        workers: options of ``Dataset.map_batches``, e.g. ``num_cpus``, ``num_gpus``, ``compute``.

    A stream that cannot be decoded ends the run with the error and its path; Ray's
    ``DataContext.max_errored_blocks`` allows some.
    """
    import ray.data

    files = ray.data.read_binary_files(
        paths,
        filesystem=filesystem,
        include_paths=True,
        file_extensions=[SUFFIX[1:]],
        **_NO_CPU,
    )
    return files.map_batches(
        MlicDecoder,
        fn_constructor_kwargs={"codec": codec, "latents": latents},
        **{"batch_size": BATCH, "num_cpus": 1, **workers},
    )


def write_mlic(
    dataset: Any,
    path: str,
    quality: int | None = None,
    codec: Any = "photo",
    *,
    filesystem: Any = None,
    **workers: Any,
) -> int:
    """Compress the column ``image`` of a dataset into files, and return how many there are.

    The file of a row has the name in the column ``path``, with the suffix ``.mlic``, in the folder
    ``path``. No half file is ever seen. A row whose file is there already, with the same bytes, is
    done: a worker that was lost may be repeated.

    Args:
        dataset: of Ray, e.g. of ``ray.data.read_images(.., include_paths=True)``.
        path: folder, as a path or URL.
        quality: of :meth:`mlic_fast.Codec.compress`.
        codec, filesystem, workers: as for :func:`read_mlic`.

    Raises FileExistsError, wrapped by Ray, for two rows of one name, or a file with other bytes.
    """
    encoded = dataset.map_batches(
        MlicEncoder,
        fn_constructor_kwargs={"codec": codec, "quality": quality},
        **{"batch_size": BATCH, "num_cpus": 1, **workers},
    )
    filesystem, folder = storage.resolve(path, filesystem)
    written = encoded.map_batches(_Writer(filesystem, folder), **_NO_CPU)
    return sum(row["written"] for row in written.iter_rows())


class MlicEncoder:
    """For ``map_batches``: the column ``image`` becomes ``mlic``, streams of the same bytes as
    anywhere. Pictures of equal size are compressed together.
    """

    def __init__(self, codec: Any = "photo", quality: int | None = None) -> None:
        self.codec = load_here(codec)
        self.quality = quality

    def __call__(self, batch: Batch) -> Batch:
        """Rows with ``image`` (see :meth:`mlic_fast.Codec.compress`) -> rows with ``mlic``."""
        pictures = [np.asarray(image) for image in batch.pop("image")]
        return batch | {"mlic": _column(self.codec.compress(pictures, self.quality))}


class MlicDecoder:
    """For ``map_batches``: the column ``bytes`` becomes ``image`` or ``latents``, ``width``,
    ``height`` and ``quality``. An error names the row's ``path`` if there is one.
    """

    def __init__(self, codec: Any = "photo", latents: bool = False) -> None:
        self.codec = load_here(codec)
        self.latents = latents

    def __call__(self, batch: Batch) -> Batch:
        """Rows with ``bytes`` -> rows with what they decode to."""
        streams = [bytes(stream) for stream in batch.pop("bytes")]
        names = batch.get("path", [f"row {i}" for i in range(len(streams))])
        decoded, headers = [], []
        for stream, name in zip(streams, names, strict=True):
            try:
                if self.latents:
                    decoded.append(self.codec.decode_latents(stream).cpu().numpy())
                else:
                    decoded.append(self.codec.decompress(stream, output="numpy"))
            except MlicError as error:
                raise type(error)(f"{name}: {error}") from error
            headers.append(bitstream.split(stream).header)
        fields = {
            name: np.array([getattr(header, name) for header in headers], np.int32)
            for name in ("width", "height", "quality")
        }
        return batch | fields | {"latents" if self.latents else "image": _column(decoded)}


class _Writer:
    def __init__(self, filesystem: Any, folder: str) -> None:
        self.filesystem, self.folder = filesystem, folder

    def __call__(self, batch: Batch) -> Batch:
        for source, data in zip(batch["path"], batch["mlic"], strict=True):
            name = posixpath.splitext(posixpath.basename(source))[0] + SUFFIX
            target = posixpath.join(self.folder, name)
            there = storage.read_if_there(self.filesystem, target)
            if there is None:
                storage.write(self.filesystem, target, data)
            elif there != data:
                raise FileExistsError(f"{target} exists already, and is not that of {source}")
        return {"written": np.array([len(batch["path"])])}


def load_here(codec: Any, device: str = "auto", engine: str = "auto") -> Codec:
    """A codec for what Ray has given this worker: its GPU, or as many threads as it has CPUs."""
    import ray

    given = ray.get_runtime_context().get_assigned_resources()
    torch.set_num_threads(max(1, int(given.get("CPU", 1))))
    if isinstance(codec, Codec):
        return codec
    if device == "auto":
        device = "cuda" if given.get("GPU") else "cpu"
    return mlic_fast.load(codec, device=device, engine=engine)


def _column(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    """A column of objects that may differ in shape."""
    column = np.empty(len(values), object)
    for i, value in enumerate(values):
        column[i] = value
    return column
