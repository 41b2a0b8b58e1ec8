"""The float models of the MLIC family, for training and as the reference of the codec."""

from mlic_fast.models.checkpoints import load_checkpoint, save_checkpoint
from mlic_fast.models.config import MS_SSIM_LAMBDAS, MSE_LAMBDAS, PRESETS, MlicConfig
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
