"""``python -m mlic_fast.training.export CHECKPOINT OUTPUT``: weights for shipping.

Half precision, the identity that streams carry, so that ``mlic-fast info`` can name the model
without loading it, and of block transforms what packing finds out, so that it loads in no time.
"""

from __future__ import annotations

import copy
import sys

from mlic_fast.atomic_files import write_atomically
from mlic_fast.engine.identity import model_identity
from mlic_fast.engine.packing.pack_transforms import pack_transforms
from mlic_fast.engine.packing.packer import pack
from mlic_fast.engine.packing.stored import IDENTITY, with_packing
from mlic_fast.models import load_checkpoint
from mlic_fast.models.checkpoints import checkpoint_bytes


def export(source: str, target: str) -> bytes:
    """Write the parameters of ``source`` in half precision, the constants as they are; returns the
    identity of the model that is written.
    """
    model = load_checkpoint(source)
    for parameter in model.parameters():
        parameter.data = parameter.data.half()
    # What a reader gets: the rounded weights as float32.
    rounded = copy.deepcopy(model).float()
    packed = pack(rounded)
    identity = model_identity(rounded, packed)
    data = checkpoint_bytes(model, {IDENTITY: identity.hex()})
    if model.config.transform_kind.exact_on_gpu:
        data = with_packing(data, packed, pack_transforms(rounded))
    write_atomically(target, data)
    return identity


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m mlic_fast.training.export CHECKPOINT OUTPUT")
    print(export(sys.argv[1], sys.argv[2]).hex())
