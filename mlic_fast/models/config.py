"""Configurations of the MLIC family."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from mlic_fast.errors import CheckpointError
from mlic_fast.models.transform_kinds import TRANSFORM_KINDS, TransformKind

Variant = Literal["mlic", "mlic_plus", "mlic_plus_plus"]
WeightFamily = Literal["current", "2023"]
TransformName = Literal["residual", "blocks"]

#: In a checkpoint file: the configuration, in its metadata; the prefix of what packing found out
#: (:mod:`mlic_fast.engine.packing.stored`), in the names of its tensors.
CONFIG_KEY = "mlic_fast.config"
PACKING = "packing."

#: Height and width of the image must be multiples of this: z is at 1/64 of it.
ALIGNMENT = 64

#: Lagrange multipliers of the papers, lowest rate first (MLIC++, section 4.1).
MSE_LAMBDAS = (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483)
MS_SSIM_LAMBDAS = (2.4, 4.58, 8.73, 16.64, 31.73, 60.5)

#: Fields that hold several widths, and how many.
_HIDDEN = {
    "stage_channels": 3,
    "hyper_channels": 2,
    "channel_context_channels": 2,
    "entropy_parameters_channels": 3,
    "lrp_channels": 2,
    "analysis_blocks": 2,
    "synthesis_blocks": 2,
}

#: Lagrange multipliers of the photograph model, in equal ratios.
PHOTO_LAMBDAS = tuple(0.0018 * 100 ** (i / 7) for i in range(8))


#: Far above any model, so that the configuration in a file of a stranger cannot ask for hours.
MAX_WIDTH, MAX_COUNT, MAX_LAMBDA = 4096, 64, 1e6


def _is_width(value: object, limit: int = MAX_WIDTH) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= limit


def _limit(name: str) -> int:
    return MAX_COUNT if name == "slices" or name.endswith("_blocks") else MAX_WIDTH


@dataclass(frozen=True)
class MlicConfig:
    """Hyper-parameters of one model.

    The defaults are the published sizes; a reduced model differs in widths alone.

    Attributes:
        variant: which of the three entropy models.
        N: channels of the hyper-latents z, and of the transforms without ``stage_channels``.
        M: channels of the latents y.
        slices: number of channel slices; M / slices channels each.
        transforms: ``"residual"``, g_a and g_s as published, or ``"blocks"``, which begin and end
            with 8x8 blocks of pixels as vectors.
        stage_channels: channels of residual transforms at 1/2, 1/4 and 1/8 of the image.
        block_channels: channels of block transforms at 1/8 of the image; M are at 1/16.
        analysis_blocks: number of blocks of g_a at 1/8 and at 1/16.
        synthesis_blocks: number of blocks of g_s at 1/8 and at 1/16.
        hyper_channels: hidden channels of h_s at 1/64 and 1/32, and at 1/16; without, M and 3/2 M.
        channel_context_channels: hidden channels of the channel context.
        entropy_parameters_channels: hidden channels of the entropy parameters.
        lrp_channels: hidden channels of the latent residual prediction.
        weight_family: ``"2023"`` selects the wide latent residual prediction and the narrow first
            synthesis block of the first published MLIC++ weights.
        lambdas: the Lagrange multipliers of a variable-rate model, lowest rate first; empty for a
            model of a single rate.
    """

    variant: Variant = "mlic_plus_plus"
    N: int = 192
    M: int = 320
    slices: int = 10
    stage_channels: tuple[int, int, int] = field(default=(0, 0, 0))
    hyper_channels: tuple[int, int] | None = None
    channel_context_channels: tuple[int, int] = (192, 128)
    entropy_parameters_channels: tuple[int, int, int] = (320, 256, 128)
    lrp_channels: tuple[int, int] = (224, 128)
    weight_family: WeightFamily = "current"
    lambdas: tuple[float, ...] = ()
    transforms: TransformName = "residual"
    block_channels: int = 256
    analysis_blocks: tuple[int, int] = (3, 2)
    synthesis_blocks: tuple[int, int] = (4, 2)

    def __post_init__(self) -> None:
        if tuple(self.stage_channels) == (0, 0, 0):
            object.__setattr__(self, "stage_channels", (self.N, self.N, self.N))
        for name in ("N", "M", "slices", "block_channels"):
            limit = _limit(name)
            if not _is_width(getattr(self, name), limit):
                raise ValueError(f"{name} must be a whole number from 1 to {limit}")
        for name, length in _HIDDEN.items():
            widths = getattr(self, name)
            if name == "hyper_channels" and widths is None:
                continue
            limit = _limit(name)
            if len(widths) != length or not all(_is_width(width, limit) for width in widths):
                raise ValueError(f"{name} must be {length} whole numbers from 1 to {limit}")
        if self.variant not in ("mlic", "mlic_plus", "mlic_plus_plus"):
            raise ValueError(f"unknown variant {self.variant!r}")
        if self.weight_family not in ("current", "2023"):
            raise ValueError(f"unknown weight family {self.weight_family!r}")
        if self.block_channels % 2:
            raise ValueError("block_channels must be even")
        if self.transforms not in TRANSFORM_KINDS:
            raise ValueError(f"unknown transforms {self.transforms!r}")
        if self.M % self.slices:
            raise ValueError(f"M = {self.M} is not divisible by {self.slices} slices")
        if self.slice_channels % 2:
            raise ValueError("the contexts have two heads: slices need an even number of channels")
        if self.slice_channels > 128:
            raise ValueError("at most 128 channels a slice: the logits of a head must fit int32")
        if self.slice_channels % 32 and self.variant != "mlic":
            raise ValueError("the inter-slice context needs slices of a multiple of 32 channels")
        if len(self.lambdas) > MAX_COUNT:
            raise ValueError(f"there are more than {MAX_COUNT} lambdas")
        if list(self.lambdas) != sorted(set(self.lambdas)) or not all(
            0 < x <= MAX_LAMBDA for x in self.lambdas
        ):
            raise ValueError(f"lambdas must be positive, up to {MAX_LAMBDA:g}, and increase")

    @property
    def slice_channels(self) -> int:
        """C: channels of one slice."""
        return self.M // self.slices

    @property
    def rates(self) -> int:
        """Number of trained rates of a variable-rate model, 0 for a model of a single rate."""
        return len(self.lambdas)

    @property
    def transform_kind(self) -> TransformKind:
        """The kind of the transforms g_a and g_s."""
        return TRANSFORM_KINDS[self.transforms]

    def to_json(self) -> str:
        """The configuration as a checkpoint file holds it; equal ones give equal text."""
        values = asdict(self)
        if self.hyper_channels is None:
            del values["hyper_channels"]  # so that the models before it keep their identities
        for name, kind in TRANSFORM_KINDS.items():
            for field_name in kind.fields if name != self.transforms else ():
                del values[field_name]
        if self.transforms == MlicConfig.transforms:
            del values["transforms"]  # likewise
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> MlicConfig:
        """Inverse of :meth:`to_json`. Raises CheckpointError for anything else."""
        try:
            values: dict[str, Any] = json.loads(text)
            unknown = set(values) - {f.name for f in fields(cls)}
            if unknown:
                raise ValueError(f"unknown fields {sorted(unknown)}")
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**values)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"the model configuration cannot be read: {error}") from error


PRESETS: dict[str, MlicConfig] = {
    "mlic": MlicConfig(variant="mlic", M=192, slices=6),
    "mlic_plus": MlicConfig(variant="mlic_plus"),
    "mlic_plus_plus": MlicConfig(variant="mlic_plus_plus"),
    "demo": MlicConfig(
        variant="mlic_plus_plus",
        N=64,
        M=192,
        slices=3,
        stage_channels=(32, 48, 96),
        hyper_channels=(64, 96),
        channel_context_channels=(64, 48),
        entropy_parameters_channels=(128, 96, 64),
        lrp_channels=(64, 48),
        lambdas=MSE_LAMBDAS,
    ),
    "photo": MlicConfig(
        variant="mlic_plus_plus",
        N=64,
        M=320,
        slices=5,
        hyper_channels=(96, 128),
        channel_context_channels=(96, 64),
        entropy_parameters_channels=(192, 128, 64),
        lrp_channels=(64, 48),
        lambdas=PHOTO_LAMBDAS,
        transforms="blocks",
    ),
}
