"""The float models of the MLIC family, for training and as the reference of the codec.

Modules that need PyTorch are imported when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlic_fast.models.config import MS_SSIM_LAMBDAS, MSE_LAMBDAS, PRESETS, MlicConfig

if TYPE_CHECKING:
    from mlic_fast.models.checkpoints import load_checkpoint, save_checkpoint
    from mlic_fast.models.mlic import MLIC, MlicModel, MLICPlus, MLICPlusPlus, create_model

__all__ = [
    "MLIC",
    "MSE_LAMBDAS",
    "MS_SSIM_LAMBDAS",
    "PRESETS",
    "MLICPlus",
    "MLICPlusPlus",
    "MlicConfig",
    "MlicModel",
    "create_model",
    "load_checkpoint",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "checkpoints" if name.endswith("_checkpoint") else "mlic"
    return getattr(import_module(f"{__name__}.{module}"), name)
