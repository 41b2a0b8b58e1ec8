"""Compressed pictures as training data, for PyTorch's DataLoader and for webdataset shards.

>>> from torch.utils.data import DataLoader
>>> from mlic_fast.data import MlicDataset
>>> loader = DataLoader(MlicDataset("photos"), batch_size=None, num_workers=4)

Workers may be forked or spawned: a codec travels to them as the name of its file and is loaded
once in each.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

import mlic_fast
from mlic_fast.codec import Codec
from mlic_fast.errors import MlicError

SUFFIX = ".mlic"


class MlicDataset(Dataset[Any]):
    """The .mlic files of a folder and of its subfolders, in the order of their names.

    An item is a picture, uint8 [3, H, W] ([4, H, W] if it is not opaque), or with ``latents`` its
    decoded latents, float32 [M, ceil(H/64) * 4, ceil(W/64) * 4], which cost no synthesis.

    Args:
        folder: where the files are; hidden files and folders are left out.
        codec: what :func:`mlic_fast.load` takes as a model, or a codec.
        latents: whether items are latents.
        transform: makes the item of a tensor and the path of its file, from which a label can be
            read; it must be picklable where workers are spawned.

    Attributes:
        files: the path of every item.

    Raises:
        FileNotFoundError: if there is no such file below the folder.
        MlicError: on access, of the type that the codec raises, with the name of the file.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        codec: Any = "photo",
        *,
        latents: bool = False,
        transform: Callable[[Tensor, Path], Any] | None = None,
    ) -> None:
        root = Path(folder)
        self.files = sorted(
            path
            for path in root.rglob(f"*{SUFFIX}")
            if path.is_file() and not any(p.startswith(".") for p in path.relative_to(root).parts)
        )
        if not self.files:
            raise FileNotFoundError(f"there is no {SUFFIX} file in {root} and its subfolders")
        self._decode = _decoder(codec, latents)
        self._transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        path = self.files[index]
        try:
            tensor = self._decode(path)
        except MlicError as error:
            raise type(error)(f"{path}: {error}") from error
        return tensor if self._transform is None else self._transform(tensor, path)


class WebdatasetDecoder:
    """Decodes the ``.mlic`` files of webdataset shards, and leaves others to other decoders.

    >>> shards = webdataset.WebDataset("photos-{000..099}.tar").decode(WebdatasetDecoder())

    Args:
        codec: what :func:`mlic_fast.load` takes as a model, or a codec.
        latents: whether to decode latents alone; see :class:`MlicDataset`.
    """

    def __init__(self, codec: Any = "photo", *, latents: bool = False) -> None:
        self._decode = _decoder(codec, latents)

    def __call__(self, key: str, data: bytes) -> Tensor | None:
        """What a ``.mlic`` file holds; None for a file of another kind."""
        return self._decode(data) if key.endswith(SUFFIX) else None


def _decoder(codec: Any, latents: bool) -> Callable[[Any], Tensor]:
    loaded = codec if isinstance(codec, Codec) else mlic_fast.load(codec)
    return loaded.decode_latents if latents else loaded.decompress
