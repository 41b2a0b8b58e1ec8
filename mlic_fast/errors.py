"""Errors raised by mlic_fast. All derive from :class:`MlicError`."""

from __future__ import annotations


class MlicError(Exception):
    """Base class. The message is one sentence for the user and says what to do."""


class CorruptStreamError(MlicError):
    """The bytes are not a stream of this codec, or they are cut short or altered."""


class UnsupportedStreamError(MlicError):
    """The stream's format or arithmetic is of a version that this release cannot decode."""


class TooManyPixelsError(MlicError):
    """The stream decodes to more pixels than it may."""


class WrongModelError(MlicError):
    """The stream was made with another model than the one loaded."""


class UnsupportedImageError(MlicError):
    """The image cannot be compressed: not an image, an unsupported kind of pixels, or too large."""


class CheckpointError(MlicError):
    """A checkpoint cannot be read, or its tensors do not fit the model."""


class EngineError(MlicError):
    """The requested engine or device is unknown or cannot run here."""


class CapacityError(EngineError):
    """A payload is larger than the buffer that was made for it on the device."""


class DeviceMemoryError(EngineError):
    """The images need more memory than the device has free."""


class KernelResourcesError(EngineError):
    """A kernel of the model needs more shared memory or registers than the device has."""


class QualityError(MlicError, ValueError):
    """The quality is out of range, or the model has a single rate and takes none."""


class EvaluationError(MlicError):
    """Nothing can be measured or compared: no images, a codec that is missing, curves apart."""
