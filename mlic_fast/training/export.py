"""``python -m mlic_fast.training.export CHECKPOINT OUTPUT``: weights for shipping.

Half precision, and the identity that streams carry, so that ``mlic-fast info`` can name the model
without loading it.
"""

from __future__ import annotations

import copy
import sys

from mlic_fast.engine.identity import model_identity
from mlic_fast.engine.pack import pack
from mlic_fast.models import load_checkpoint, save_checkpoint


def export(source: str, target: str) -> bytes:
    """Write the parameters of ``source`` in half precision, the constants as they are; returns the
    identity of the model that is written.
    """
    model = load_checkpoint(source)
    for parameter in model.parameters():
        parameter.data = parameter.data.half()
    # What a reader gets: the rounded weights as float32.
    rounded = copy.deepcopy(model).float()
    identity = model_identity(rounded, pack(rounded))
    save_checkpoint(model, target, {"identity": identity.hex()})
    return identity


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m mlic_fast.training.export CHECKPOINT OUTPUT")
    print(export(sys.argv[1], sys.argv[2]).hex())
