"""What engines that handle one image at a time have in common: batches, pixels, the final check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mlic_fast.engine.digest import latents_digest
from mlic_fast.errors import CorruptStreamError

if TYPE_CHECKING:
    from torch import Tensor


class PerImageEngine(ABC):
    """A :class:`mlic_fast.engine.Engine` made of methods that handle one image.

    Images and latents are arrays or tensors, as ``arrays`` says.
    """

    arrays: Literal["numpy", "torch"]

    @abstractmethod
    def encode(self, image: list[Any], rate: float | None) -> tuple[bytes, int]:
        """uint8 [1, 3, H, W], multiples of 64 -> payload and its number of lanes.

        It is taken out of the list.
        """

    @abstractmethod
    def decode(self, payload: bytes, lanes: int, size: tuple[int, int]) -> tuple[Any, int]:
        """Payload and size of z -> decoded latents [1, M, 4h, 4w] float32, and their digest."""

    @abstractmethod
    def synthesise(self, y_hat: Any, rate: float | None) -> Any:
        """Decoded latents -> uint8 [1, 3, H, W]."""

    def digest(self, y_hat: Any) -> int:
        """Of the decoded latents of one image, [1, M, H, W]."""
        return latents_digest(y_hat)

    def batch_limit(self, height: int, width: int) -> int:
        return 1

    def encode_images(self, images: list[Any], rate: float | None) -> list[tuple[bytes, int]]:
        return [self.encode(images, rate)]

    def encoder(self, image: Any) -> Callable[[float | None], tuple[bytes, int]]:
        return lambda rate: self.encode([image], rate)

    def decode_images(
        self, payloads: Sequence[tuple[bytes, int]], size: tuple[int, int], rate: float | None
    ) -> list[Any]:
        return [
            self.synthesise(self._checked_latents(payload, lanes, size), rate)[0]
            for payload, lanes in payloads
        ]

    def decode_latents(
        self, payloads: Sequence[tuple[bytes, int]], size: tuple[int, int]
    ) -> list[Any]:
        return [self._checked_latents(*payload, size)[0] for payload in payloads]

    def _checked_latents(self, payload: bytes, lanes: int, size: tuple[int, int]) -> Any:
        y_hat, digest = self.decode(payload, lanes, size)
        check_digest(self.digest(y_hat), digest)
        return y_hat


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in 0..1, of any shape."""
    return pixels.float() / 255


def to_pixels(image: Tensor) -> Tensor:
    """float in 0..1, clamped -> uint8, of any shape."""
    return (image.float().clamp(0, 1) * 255).round().byte()


def check_digest(found: int, expected: int) -> None:
    """Raise CorruptStreamError unless the decoded latents are the encoded ones."""
    if found != expected:
        raise CorruptStreamError(
            "the decoded latents are not the encoded ones: the stream is damaged, or it was "
            "made by a machine whose arithmetic differs; get a fresh copy of it"
        )
