"""The identity of a model: what ties a stream to the model it was made with."""

from __future__ import annotations

import hashlib

from mlic_fast.coder.arrays import little_endian
from mlic_fast.engine.packing.packed import PackedModel
from mlic_fast.models.mlic import Transforms


def model_identity(model: Transforms, packed: PackedModel) -> bytes:
    """SHA-256 over all that decoding needs: the packed entropy path, and the weights of g_s.

    The parameters of ``g_s`` and of the inverse gains count in order of name, as float32 bytes.
    """
    digest = hashlib.sha256(packed.digest())
    for name, parameter in sorted(model.named_parameters()):
        if name.startswith("g_s.") or name == "gain.log_inverse_gain":
            digest.update(name.encode())
            digest.update(little_endian(parameter.detach().float().cpu().numpy()).tobytes())
    return digest.digest()
