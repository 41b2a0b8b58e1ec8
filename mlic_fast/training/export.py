"""``python -m mlic_fast.training.export CHECKPOINT OUTPUT``: weights for shipping.

Half precision, and the identity that streams carry, so that ``mlic-fast info`` can name the model
without loading it.
"""

from __future__ import annotations

import sys

from mlic_fast.engine.identity import model_identity
from mlic_fast.engine.pack import pack
from mlic_fast.models import load_checkpoint, save_checkpoint


def export(source: str, target: str) -> bytes:
    """Write ``source`` in half precision; returns the identity of the model that is written."""
    model = load_checkpoint(source).half()
    # What a reader gets: the rounded weights as float32.
    identity = model_identity(model, pack(model.float()))
    save_checkpoint(model.half(), target, {"identity": identity.hex()})
    return identity


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m mlic_fast.training.export CHECKPOINT OUTPUT")
    print(export(sys.argv[1], sys.argv[2]).hex())
