"""``python -m mlic_fast.conformance.make [NAME ..]``: makes the golden files, or some of them.

Only for a new version of the arithmetic or of the format: golden files are never remade to make a
check pass. Weights are seeded and lively: scales from far below the lowest table to the highest
one, means of tens. Symbols are drawn about the scales that the model itself predicts, some of them
escapes, so no image and no float transform is involved. In the stream ``extreme`` the symbols are
enormous, and activations saturate. The golden file ``photo`` is made of parts of a photograph
instead, and made again for new weights of the shipped model.
"""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import mlic_fast
from mlic_fast import bitstream
from mlic_fast.coder import SCALES, Encoder
from mlic_fast.conformance import FOLDER
from mlic_fast.conformance.engines import codec_on
from mlic_fast.conformance.golden import Golden, write_golden
from mlic_fast.conformance.recorder import Recorder
from mlic_fast.conformance.verification import record
from mlic_fast.engine.arithmetic import SYMBOL_LIMIT, SpecOps
from mlic_fast.engine.digest import latents_digest
from mlic_fast.engine.identity import model_identity
from mlic_fast.engine.packing.packed import PackedModel
from mlic_fast.engine.packing.packer import pack
from mlic_fast.engine.path import code_latents
from mlic_fast.metadata import NONE, Metadata
from mlic_fast.models import MlicConfig, MlicModel, create_model
from mlic_fast.models.checkerboard import Parity
from mlic_fast.models.config import ALIGNMENT
from mlic_fast.models.mlic import Transforms
from mlic_fast.profiling.seeded_weights import seed_weights

Array = npt.NDArray[np.int32]

#: Widths that no vector length divides.
_SMALL = MlicConfig(
    N=20,
    M=64,
    slices=2,
    stage_channels=(8, 8, 8),
    channel_context_channels=(37, 19),
    entropy_parameters_channels=(45, 33, 21),
    lrp_channels=(35, 17),
)
CONFIGS = {
    "mlic": dataclasses.replace(_SMALL, variant="mlic", M=54, slices=3),
    "mlic_plus": dataclasses.replace(_SMALL, variant="mlic_plus"),
    "mlic_plus_plus": dataclasses.replace(_SMALL, M=96, slices=3, lambdas=(0.0018, 0.013, 0.0483)),
    "mlic_plus_plus_2023": dataclasses.replace(_SMALL, weight_family="2023"),
    "blocks": dataclasses.replace(
        _SMALL,
        transforms="blocks",
        block_channels=22,
        analysis_blocks=(1, 2),
        synthesis_blocks=(2, 1),
        lambdas=(0.0018, 0.013, 0.0483),
    ),
}
#: Width, height and quality (where the model has several rates) by name of the stream.
STREAMS = {
    "one_pixel": (1, 1, 1),
    "odd": (77, 131, 60),
    "wide": (590, 193, 100),
    "extreme": (65, 64, 50),
}
#: Weights of a layer that are not zero, at most.
_DENSE = 1600
_ESCAPES = 0.004


#: Top, left, height, width and quality of the parts of a photograph that ``photo`` is made of.
PARTS = {
    "one_pixel": (100, 200, 1, 1, 60),
    "odd": (40, 170, 131, 77, 1),
    "face": (10, 120, 193, 200, 60),
    "wide": (300, 0, 65, 320, 100),
    "carrying": (60, 200, 40, 30, 20),
}
#: What the stream ``carrying`` has in its sections, beside transparency.
CARRIED = Metadata(
    icc_profile=b"a profile is opaque to the format",
    exif=b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x01\0\0\0\0\0\0\0",
    xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>',
    cicp=bytes([12, 13, 0, 1]),
    gamma=0.45455,
)


def main(names: list[str]) -> None:
    """Writes golden streams into the package: those of the given names, or all."""
    for name in names or [*CONFIGS, "photo"]:
        golden = make_photo() if name == "photo" else make_golden(name)
        path = FOLDER / f"{name}.zip"
        write_golden(golden, path)
        print(f"{path}  {path.stat().st_size} bytes")


def make_photo() -> Golden:
    """Streams of the shipped model."""
    from skimage.data import astronaut

    codec = mlic_fast.load("photo", device="cpu", engine="spec")
    recorder = Recorder(SpecOps(codec.packed))
    judge = codec_on(recorder, codec.model, codec.packed)
    streams = {}
    for name, (top, left, height, width, quality) in PARTS.items():
        part, metadata = astronaut()[top : top + height, left : left + width], NONE
        if name == "carrying":
            part, metadata = np.dstack([part, part[:, :, 0]]), CARRIED
        data = judge.compress(part, quality, metadata=metadata)
        assert isinstance(data, bytes)
        streams[name] = data
    expected = {name: record(judge, recorder, data) for name, data in streams.items()}
    return Golden(codec.model, codec.packed, streams, expected, shipped=True)


def make_golden(name: str) -> Golden:
    """A model of seeded weights, its streams and what they decode to."""
    config, seed = CONFIGS[name], list(CONFIGS).index(name)
    model = golden_model(config, seed)
    packed = pack(model)
    transforms = Transforms(config)
    transforms.load_state_dict({k: model.state_dict()[k] for k in transforms.state_dict()})
    recorder = Recorder(SpecOps(packed))
    codec = codec_on(recorder, transforms, packed)
    streams, expected = {}, {}
    for number, (name, (width, height, quality)) in enumerate(STREAMS.items()):
        source = _Drawn(packed, seed=1000 * seed + number, extreme=name == "extreme")
        payload, lanes = source.encode(-(-height // ALIGNMENT), -(-width // ALIGNMENT))
        header = bitstream.Header(
            arithmetic_version=bitstream.EXACT,
            lanes=lanes,
            model_id=model_identity(transforms, packed)[: bitstream.MODEL_ID_BYTES],
            quality=quality if config.rates else 0,
            width=width,
            height=height,
        )
        streams[name] = bitstream.write(header, payload)
        expected[name] = record(codec, recorder, streams[name])
    return Golden(transforms, packed, streams, expected)


def golden_model(config: MlicConfig, seed: int) -> MlicModel:
    """Weights under which every part of the entropy path matters."""
    model = create_model(config).eval()
    seed_weights(model, seed, dense=_DENSE)
    random = np.random.Generator(np.random.PCG64(seed + 100))

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(random.uniform(low, high, shape)).float()

    c = config.slice_channels
    with torch.no_grad():
        prior = model.entropy_bottleneck
        for parameter in [*prior.biases, *prior.factors]:
            parameter.copy_(uniform(-0.5, 0.5, *parameter.shape))
        prior.quantiles[:, 0, 1] = uniform(-3, 3, config.N)
        model.get_parameter("h_s.increase.8.weight")[config.M :] *= 3
        for name, parameter in model.named_parameters():
            if name.endswith("relative_position_table"):
                parameter.copy_(uniform(-2, 2, *parameter.shape))
            elif name.startswith(("g_a.", "g_s.", "h_a.")):
                if not config.transform_kind.exact_on_gpu:
                    parameter.zero_()  # latents are what is compared
                elif name.startswith(("g_a.embed.", "g_s.project.")):
                    parameter.mul_(0.1)
        for colour in ("anchor", "nonanchor"):
            for parameters in getattr(model, f"entropy_parameters_{colour}"):
                last = parameters.fusion[-1]
                spread = torch.exp(uniform(np.log(0.03), np.log(60), c))
                last.weight[:c] *= spread.reshape(c, 1, 1, 1)
                last.bias[:c] = spread * uniform(-1.5, 1, c)
                last.weight[c:] *= 5
        # What reads decoded latents, whose values are tens, must not drown the rest.
        for name, module in model.named_modules():
            if name.endswith(("fushion.0", "queries.0", "keys.0", "values.0", "convs.0")):
                module.weight *= 0.1
            elif name.endswith("lrp_transform.0"):
                module.weight[:, config.M :] *= 0.1
            elif name.endswith(("lrp_transform.4", "lrp_transform.6")) and isinstance(
                module, nn.Conv2d
            ):
                module.weight *= 0.7
    return model


class _Drawn:
    """Draws the symbols of a stream and encodes them: the pass coder of an encoder without y."""

    def __init__(self, packed: PackedModel, seed: int, extreme: bool) -> None:
        self._packed = packed
        self._extreme = extreme
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._encoder = Encoder(packed.tables)

    def encode(self, height: int, width: int) -> tuple[bytes, int]:
        """Payload and lanes for z of a size."""
        config = self._packed.config
        shape = (1, height, width, config.N)
        symbols = self._draw(np.full(shape, 10.0))
        self._add(symbols, self._packed.hyper_indexes(shape))
        slices = code_latents(SpecOps(self._packed), symbols, self).y
        y_hat = np.ascontiguousarray(np.moveaxis(np.concatenate(slices, axis=-1), -1, 1))
        return self._encoder.finish(latents_digest(y_hat)), self._encoder.lanes

    def __call__(
        self,
        index: int,
        parity: Parity,
        scale_indexes: npt.NDArray[np.uint8],
        means: object,
        symbols: None,
    ) -> Array:
        drawn = self._draw(SCALES[scale_indexes].astype(np.float64))
        self._add(drawn, scale_indexes)
        return drawn

    def _draw(self, scales: npt.NDArray[np.float64]) -> Array:
        x = self._random.standard_normal(scales.shape) * scales
        far = x * np.minimum(50, np.maximum(100 / scales, 1))
        x = np.where(self._random.random(scales.shape) < _ESCAPES, far, x)
        if self._extreme:
            x = np.where(self._random.random(scales.shape) < 0.05, x * 1e6, x)
        return np.clip(np.rint(x), -SYMBOL_LIMIT, SYMBOL_LIMIT).astype(np.int32)

    def _add(self, symbols: Array, indexes: npt.NDArray[np.integer]) -> None:
        self._encoder.encode(symbols, indexes)


if __name__ == "__main__":
    main(sys.argv[1:])
