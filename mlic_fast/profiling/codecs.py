"""The codecs that a benchmark is about."""

from __future__ import annotations

import copy

import torch

import mlic_fast
from mlic_fast.codec import Codec
from mlic_fast.engine import create_engine
from mlic_fast.models import PRESETS
from mlic_fast.profiling.preset_models import trained_like_model

#: Engines that have no other device.
_CPU_ENGINES = ("cpu", "spec")


def load_codecs(model: str, device: str, engine: str, against: str | None) -> list[Codec]:
    """One codec, or two that share a model, packed once.

    Args:
        model: ``"photo"``, a checkpoint or packed file, or a preset, which is made with seeded
            weights (:mod:`mlic_fast.profiling.preset_models`).
        device: of the first; the second one's too, if it can run there.
        engine: of the first.
        against: of the second.

    Raises:
        EngineError: an engine is unknown or cannot run.
    """
    seeded = model in PRESETS and model != "photo"
    first = mlic_fast.load(trained_like_model(model) if seeded else model, device, engine)
    if against is None:
        return [first]
    where = torch.device("cpu") if against in _CPU_ENGINES else first.device
    transforms = first.model if where == first.device else copy.deepcopy(first.model).to(where)
    shared = transforms, first.packed, where
    return [first, Codec(*shared, create_engine(against, *shared))]
