"""Writes tests/golden/float_models.npz: what the small models of lively.py give. Run by hand.

    PYTHONPATH=tests python tests/models/make_golden.py

Only for a change of models that is meant; the MLIC++ one was made when its code equalled the
vectors of the public code.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lively import SMALL, lively_model, photograph

from mlic_fast.models import MlicModel

PATH = Path(__file__).parents[1] / "golden" / "float_models.npz"


def outputs(model: MlicModel) -> dict[str, np.ndarray]:
    """A reduced image, and bits of each channel at each latent row."""
    with torch.no_grad():
        out = model(photograph(64, 128))
    bits = -out["likelihoods"]["y"].log2().sum(3)[0]
    return {
        "x_hat": out["x_hat"][0, :, ::4, ::4].numpy(),
        "y_bits": bits.numpy(),
        "z_bits": -out["likelihoods"]["z"].log2()[0].numpy(),
    }


if __name__ == "__main__":
    arrays = {
        f"{name}.{key}": value.astype(np.float32)
        for name, config in SMALL.items()
        for key, value in outputs(lively_model(config).eval()).items()
    }
    np.savez_compressed(PATH, **arrays)
