"""The reference engine behind the codec's interface: the baseline of every benchmark.

Float32 and ``compressai.ans``, as the public code does it (:mod:`mlic_fast.models.reference`). Its
streams decode on the machine that made them, if at all, and are marked as provisional.
"""

from __future__ import annotations

import copy
import struct
from typing import Literal

import torch
from torch import Tensor

from mlic_fast.bitstream import PROVISIONAL
from mlic_fast.engine.digest import latents_digest
from mlic_fast.engine.per_image import PerImageEngine, to_pixels, to_unit
from mlic_fast.errors import CorruptStreamError
from mlic_fast.models import reference
from mlic_fast.models.mlic import MlicModel

_PREFIX = struct.Struct("<II")  # digest of the latents, bytes of the string of z


class ReferenceEngine(PerImageEngine):
    """Payload: digest, length of the string of z, string of z, string of y."""

    name = "reference"
    arithmetic_version = PROVISIONAL
    arrays: Literal["numpy", "torch"] = "torch"

    def __init__(self, model: MlicModel) -> None:
        self._model = copy.deepcopy(model)  # a copy that no caller changes
        self._model.update()

    def encode(self, image: list[Tensor], rate: float | None) -> tuple[bytes, int]:
        y = self._model.analyse(to_unit(image.pop()), rate_tensor(rate))
        encoded, y_hat = reference.encode_latents(self._model, y)
        (y_string,), (z_string,) = encoded["strings"]
        prefix = _PREFIX.pack(latents_digest(y_hat), len(z_string))
        return prefix + z_string + y_string, 1 << 1

    def decode(self, payload: bytes, lanes: int, size: tuple[int, int]) -> tuple[Tensor, int]:
        if len(payload) < _PREFIX.size:
            raise CorruptStreamError("the stream is cut short; get a fresh copy of it")
        digest, length = _PREFIX.unpack_from(payload)
        z_string, y_string = payload[_PREFIX.size :][:length], payload[_PREFIX.size + length :]
        # compressai reads past the end of what is shorter than a state, or not whole words.
        if any(len(string) < 4 or len(string) % 4 for string in (z_string, y_string)):
            raise CorruptStreamError("the stream is damaged; get a fresh copy of it")
        return reference.decode_latents(self._model, [[y_string], [z_string]], size), digest

    def synthesise(self, y_hat: Tensor, rate: float | None) -> Tensor:
        return to_pixels(self._model.synthesise(y_hat, rate_tensor(rate)))


def rate_tensor(rate: float | None) -> Tensor | None:
    """The rate as the gains of the float model take it: float32 [1]."""
    return None if rate is None else torch.tensor([rate], dtype=torch.float32)
