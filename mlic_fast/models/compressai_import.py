"""The one place that imports CompressAI, an optional dependency of the reference engine."""

from __future__ import annotations

import warnings
from functools import cache
from types import ModuleType

import torch

from mlic_fast.errors import EngineError


@cache
def compressai_ans() -> ModuleType:
    """The module ``compressai.ans``. Raises EngineError where CompressAI is not installed."""
    _import_compressai()
    from compressai import ans

    return ans


def pmf_to_quantized_cdf(pmf: list[float], precision: int) -> list[int]:
    """CompressAI's own quantisation of probabilities, so that tables equal the published ones."""
    _import_compressai()
    from compressai._CXX import pmf_to_quantized_cdf as quantize

    return quantize(pmf, precision)


@cache
def _import_compressai() -> object:
    """Import CompressAI, also beside a CPU build of PyTorch.

    Returns what must stay alive: torchvision from PyPI is a CUDA build, whose operators a CPU build
    of PyTorch does not know; declaring their schemas is enough for the import to succeed.
    """
    library = None
    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import compressai  # noqa: F401
    except ImportError as error:
        raise EngineError(
            "the reference engine needs CompressAI: pip install 'mlic_fast[reference]'"
        ) from error
    return library
