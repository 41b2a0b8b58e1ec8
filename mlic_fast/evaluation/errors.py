"""The error of evaluation."""

from mlic_fast.errors import MlicError


class EvaluationError(MlicError):
    """Nothing can be measured or compared: no images, a codec that is missing, curves apart."""
