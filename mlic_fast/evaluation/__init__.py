"""Measuring codecs: bits a pixel of real files, PSNR, MS-SSIM, times, BD-rate."""

from mlic_fast.errors import EvaluationError
from mlic_fast.evaluation.bdrate import bd_rate
from mlic_fast.evaluation.measuring import Curve, Measurement, measure, measure_curves
from mlic_fast.evaluation.metrics import ms_ssim, ms_ssim_db, psnr, ssimulacra2
from mlic_fast.evaluation.pillow_codecs import PILLOW_CODECS, PillowCodec

__all__ = [
    "PILLOW_CODECS",
    "Curve",
    "EvaluationError",
    "Measurement",
    "PillowCodec",
    "bd_rate",
    "measure",
    "measure_curves",
    "ms_ssim",
    "ms_ssim_db",
    "psnr",
    "ssimulacra2",
]
