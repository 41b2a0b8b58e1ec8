"""Pictures to code, and a model of several rates."""

from __future__ import annotations

from dataclasses import replace

import torch
from lively import SMALL, photograph
from torch import Tensor

RATES = replace(SMALL["mlic_plus_plus"], lambdas=(0.01, 0.02, 0.08))


def picture(height: int, width: int) -> Tensor:
    return (photograph(height, width)[0] * 255).round().to(torch.uint8)
