"""Images to streams and back through every engine."""

from __future__ import annotations

import copy
import io
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lively import BLOCKS, SMALL, lively_model
from PIL import Image
from small_pictures import RATES, picture
from torch import Tensor

import mlic_fast
from mlic_fast import bitstream
from mlic_fast.codec import Codec, load
from mlic_fast.engine import bands, block_networks
from mlic_fast.engine.cpu.cpu_operations import CpuOps
from mlic_fast.errors import (
    CheckpointError,
    CorruptStreamError,
    QualityError,
    TooManyPixelsError,
    UnsupportedImageError,
)
from mlic_fast.evaluation import psnr
from mlic_fast.imagecodecs import mlic_check, mlic_decode, mlic_encode
from mlic_fast.models import MlicModel, save_checkpoint


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (63, 65), (64, 64), (257, 129)])
def test_sizes(codec: Codec, size: tuple[int, int], poisoned: None) -> None:
    height, width = size
    image = picture(height, width)
    data = codec.compress(image)
    header, _ = bitstream.read(data)
    assert (header.height, header.width, header.quality) == (height, width, 0)
    assert header.arithmetic_version == bitstream.EXACT
    decoded = codec.decompress(data)
    assert decoded.shape == image.shape and decoded.dtype == torch.uint8
    assert codec.compress(image) == data


def test_engines_agree(small_models: dict[str, MlicModel], variant: str) -> None:
    image = picture(65, 130)
    model = small_models[variant]
    streams, latents, pixels = set(), [], []
    for engine in ("cpu", "spec"):
        codec = load(model, device="cpu", engine=engine)
        assert codec.engine == engine
        data = codec.compress(image)
        streams.add(data)
        latents.append(codec.decode_latents(data))
        pixels.append(codec.decompress(data))
    assert len(streams) == 1
    assert torch.equal(*latents) and torch.equal(*pixels)


def test_the_image_is_that_of_the_float_model(small_models: dict[str, MlicModel]) -> None:
    """The exact path changes decoded latents by less than a step, so hardly a pixel."""
    model = small_models["mlic_plus_plus"]
    image = picture(128, 128)
    spec = load(model, engine="spec", device="cpu")
    decoded = spec.decompress(spec.compress(image))
    with torch.no_grad():
        x_hat = model(image[None].float() / 255)["x_hat"][0]
    expected = (x_hat.clamp(0, 1) * 255).round()
    difference = (decoded.float() - expected).abs()
    assert difference.mean() < 6


@pytest.mark.parametrize("engine", ["cpu", "spec"])
def test_bands_change_no_bit(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large pictures are transformed, and most networks run, in bands."""
    codec = load(lively_model(replace(BLOCKS, M=96, slices=3)), device="cpu", engine=engine)
    whole = block_networks.synthesis
    seen: list[int] = []

    def counted(ops: Any, y: Any) -> Any:
        seen.append(y.shape[1])
        return whole(ops, y)

    image = picture(330, 200)  # 24x16 latents
    data = codec.compress(image)
    pixels = codec.decompress(data)
    monkeypatch.setattr(codec._engine, "_recordings", None)  # large pictures are not recorded
    monkeypatch.setattr(block_networks, "synthesis", counted)
    monkeypatch.setattr(bands, "BAND_POSITIONS", 16)
    assert codec.compress(image) == data
    assert torch.equal(codec.decompress(data), pixels)
    assert seen == [12, 16, 12]


@pytest.mark.parametrize("variant", ["mlic", "mlic_plus", "mlic_plus_plus"])
@pytest.mark.parametrize("family", ["current", "2023"])
def test_bands_of_networks(variant: str, family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL[variant], weight_family=family)
    codec = load(lively_model(config), device="cpu", engine="cpu")
    data = codec.compress(picture(330, 200))
    latents = codec.decode_latents(data)
    hidden: list[int] = []
    network = CpuOps._residual_hidden

    def counted(ops: CpuOps, i: int, parity: Any, last: Any, start: Any) -> Any:
        hidden.append(last.q.shape[1])
        return network(ops, i, parity, last, start)

    monkeypatch.setattr(codec._engine, "_recordings", None)  # large pictures are not recorded
    monkeypatch.setattr(CpuOps, "_residual_hidden", counted)
    monkeypatch.setattr(bands, "BAND_POSITIONS", 16)
    assert torch.equal(codec.decode_latents(data), latents)
    assert max(hidden) < 24 and len(hidden) > 2 * config.slices


def test_decode_latents_is_what_the_encoder_had(codec: Codec, compress_to_latents: Any) -> None:
    data, latents = compress_to_latents(codec, picture(63, 130))
    y_hat = codec.decode_latents(data)
    assert y_hat.dtype == torch.float32
    assert y_hat.shape == (codec.model.config.M, 4, 12)
    assert np.array_equal(latents, y_hat)


def test_inputs_and_outputs_of_all_kinds(fast: Codec, tmp_path: Path) -> None:
    image = picture(66, 91)
    array = image.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(array).save(tmp_path / "x.png")
    data = fast.compress(image)
    inputs: list[Any] = [
        array,
        np.asfortranarray(array),
        Image.fromarray(array),
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        image.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        torch.nn.functional.pad(image, (5, 5))[:, :, 5:-5],
    ]
    for given in inputs:
        assert fast.compress(given) == data
    for kind in (bytes, bytearray, memoryview):
        out = fast.decompress(kind(data))
        assert isinstance(out, Tensor) and out.is_contiguous()
    array = fast.decompress(data, output="numpy")
    assert array.dtype == np.uint8 and array.shape == (66, 91, 3)
    assert np.array_equal(array, out.permute(1, 2, 0).numpy())
    pil = fast.decompress(data, output="pil")
    assert pil.mode == "RGB" and np.array_equal(np.asarray(pil), array)
    with pytest.raises(ValueError, match="output"):
        fast.decompress(data, output="jpeg")  # type: ignore[arg-type]


def test_lists_and_other_frameworks(fast: Codec, tmp_path: Path) -> None:
    """One call, whose order is kept whatever is coded together."""

    class Foreign:
        """What knows DLPack alone, as an array of another framework may."""

        def __init__(self, tensor: Tensor) -> None:
            self.__dlpack__, self.__dlpack_device__ = tensor.__dlpack__, tensor.__dlpack_device__

    small, large = picture(33, 40), picture(65, 30)
    Image.fromarray(large.permute(1, 2, 0).numpy()).save(tmp_path / "large.png")
    sources = [small, tmp_path / "large.png", small.permute(1, 2, 0).numpy(), Foreign(small)]
    right = [fast.compress(image) for image in (small, large, small, small)]
    assert fast.compress(sources) == fast.compress(tuple(sources)) == right
    assert fast.compress(np.stack([sources[2]] * 2)) == [right[0]] * 2
    assert fast.compress([]) == []
    with pytest.raises(UnsupportedImageError):
        fast.compress([small, None])
    with pytest.raises(UnsupportedImageError, match="uint8"):
        fast.compress(Foreign(torch.zeros(3, 8, 8)))


def test_as_imagecodecs_has_it() -> None:
    array = picture(20, 30).permute(1, 2, 0).contiguous().numpy()
    data = mlic_encode(array, level=30)
    assert data == mlic_fast.compress(array, quality=30) and mlic_check(data)
    decoded = mlic_decode(data)
    assert np.array_equal(decoded, mlic_fast.decompress(data, output="numpy"))
    out = np.zeros_like(decoded)
    assert mlic_decode(data, out=out) is out and np.array_equal(out, decoded)
    with pytest.raises(ValueError, match="shape"):
        mlic_decode(data, out=out[1:])
    assert not mlic_check(b"\x89PNG")


def test_batches(codec: Codec) -> None:
    batch = torch.stack([picture(65, 70), picture(65, 70).flip(2), picture(65, 70) // 2])
    streams = codec.compress(batch)
    assert streams == [codec.compress(image) for image in batch]
    decoded = codec.decompress(streams)
    assert len(decoded) == 3
    for data, image in zip(streams, decoded, strict=True):
        assert torch.equal(codec.decompress(data), image)
    assert codec.compress(batch[:0]) == []


def test_images_that_are_refused(fast: Codec) -> None:
    for image in (
        torch.zeros(3, 0, 5, dtype=torch.uint8),
        torch.zeros(3, 64, 64),
        torch.zeros(5, 64, 64, dtype=torch.uint8),
        torch.zeros(1, 3, 64, 64),
        np.zeros((64, 64, 3), np.float32),
        torch.zeros(3, 1, 65536, dtype=torch.uint8),
        b"not an image",
        None,
    ):
        with pytest.raises(UnsupportedImageError):
            fast.compress(image)


def test_images_beyond_the_range_of_training(fast: Codec) -> None:
    for value in (0, 255):
        image = torch.full((3, 64, 64), value, dtype=torch.uint8)
        assert fast.decompress(fast.compress(image)).shape == image.shape
    noise = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    assert fast.decompress(fast.compress(noise)).shape == noise.shape


@pytest.mark.parametrize("engine", ["cpu", "spec", "reference"])
def test_a_codec_owns_its_weights(engine: str, compressai_installed: None, tmp_path: Path) -> None:
    """What becomes of ``codec.model``, or of its memory, changes no stream and no pixel."""
    save_checkpoint(lively_model(RATES), tmp_path / "model.safetensors")
    codec = load(tmp_path / "model.safetensors", device="cpu", engine=engine)
    image = picture(70, 64)
    data = codec.compress(image, quality=40)
    pixels = codec.decompress(data)
    codec.model.share_memory()  # as multiprocessing does: the former memory is freed
    garbage = [torch.full_like(p, 9.0) for p in codec.model.parameters() for _ in range(3)]
    assert garbage
    assert codec.compress(image, quality=40) == data
    assert torch.equal(codec.decompress(data), pixels)
    with torch.no_grad():
        for parameter in codec.model.parameters():
            parameter.fill_(float("nan"))
    assert codec.compress(image, quality=40) == data
    assert torch.equal(codec.decompress(data), pixels)


def test_latents_that_are_not_numbers_still_make_a_stream(
    small_models: dict[str, MlicModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU residual transforms are free arithmetic; half precision may overflow."""
    model = copy.deepcopy(small_models["mlic"])
    with torch.no_grad():
        model.g_a.analysis_transform[6].bias[0] = float("nan")
    with pytest.raises(CheckpointError):
        load(model, device="cpu")
    codec = load(small_models["mlic"], device="cpu", engine="spec")
    transforms = codec._engine._transforms  # type: ignore[attr-defined]
    whole = transforms.at_rate

    def broken(latents: Any, factors: Any) -> tuple[Any, Any]:
        y, z = whole(latents, factors)
        y = y.copy()
        y[..., 0], y[..., 1], y[..., 2] = np.nan, np.inf, -np.inf
        return y, np.zeros_like(z)

    monkeypatch.setattr(transforms, "at_rate", broken)
    data = codec.compress(picture(64, 64))
    assert codec.decode_latents(data).isfinite().all()


def test_pixels_are_limited_before_anything_is_decoded(variable: Codec) -> None:
    data = variable.compress(picture(64, 65))
    for limit in (64 * 65, 1 << 27):
        assert variable.decompress(data, max_pixels=limit).shape == (3, 64, 65)
    for decode in (variable.decompress, variable.decode_latents):
        with pytest.raises(TooManyPixelsError, match="65x64 pixels, more than the limit of 4159"):
            decode(data, max_pixels=64 * 65 - 1)
    header, payload = bitstream.read(data)
    huge = bitstream.write(replace(header, width=16385, height=8192), payload)
    with pytest.raises(TooManyPixelsError):
        variable.decompress([data, huge])


def test_targets(variable: Codec) -> None:
    image = picture(70, 130)
    streams = [variable.compress(image, quality=quality) for quality in range(1, 101)]
    for size in (len(streams[0]), len(streams[40]) + 1, 1 << 20):
        data = variable.compress(image, target_bytes=size)
        assert data in streams and len(data) <= size
        quality = streams.index(data)
        assert quality == 99 or len(streams[quality + 1]) > size
    photo = load()  # of random weights PSNR does not grow with quality
    for quality in (1, 31):
        right = photo.compress(image, quality=quality)
        target = psnr(image, photo.decompress(right))
        assert photo.compress(image, target_psnr=target) == right
    (one,) = variable.compress(image[None], target_bytes=1 << 20)
    assert one == streams[-1]
    for options in (
        {"target_bytes": len(streams[0]) - 1},
        {"target_psnr": 99},
        {"target_psnr": float("nan")},
        {"target_psnr": -1},
        {"target_bytes": 0},
        {"target_bytes": "9000"},
        {"target_bytes": 9, "target_psnr": 9},
        {"quality": 9, "target_bytes": 9},
    ):
        with pytest.raises(QualityError):
            variable.compress(image, **options)


def test_qualities(variable: Codec) -> None:
    image = picture(64, 128)
    sizes = {q: len(variable.compress(image, quality=q)) for q in (1, 30, 60, 100)}
    assert sorted(sizes.values()) == list(sizes.values())
    assert sizes[1] < sizes[100]
    default = variable.compress(image)
    assert default == variable.compress(image, quality=60)
    assert bitstream.read(variable.compress(image, quality=1))[0].quality == 1
    for quality in (0, 101, -1, 50.5, "60", True):
        with pytest.raises(QualityError, match="1 to 100"):
            variable.compress(image, quality=quality)  # type: ignore[arg-type]
    assert variable.compress(image, quality=np.int64(60)) == default  # type: ignore[arg-type]


def test_quality_of_a_single_rate_model(fast: Codec) -> None:
    with pytest.raises(QualityError, match="single rate"):
        fast.compress(picture(64, 64), quality=60)


def test_one_codec_in_several_threads(codecs: dict[str, Codec]) -> None:
    codec = codecs["mlic_plus_plus"]
    pictures = [picture(64, 64 + 30 * i) for i in range(4)]
    expected = [codec.compress(image) for image in pictures]
    decoded = [codec.decompress(data) for data in expected]
    failures: list[object] = []

    def work(i: int) -> None:
        try:
            for k in range(4):
                j = (i + k) % 4
                data = codec.compress(pictures[j])
                if data != expected[j] or not torch.equal(codec.decompress(data), decoded[j]):
                    failures.append(j)
                with pytest.raises(CorruptStreamError):
                    codec.decompress(data[:-1])
        except BaseException as error:  # shown below, in the thread of the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_streams_in_files(fast: Codec, tmp_path: Path) -> None:
    data = fast.compress(picture(33, 20))
    path = tmp_path / "a.mlic"
    path.write_bytes(data)
    pixels, latents = fast.decompress(data), fast.decode_latents(data)
    for source in (path, str(path), io.BytesIO(data), bytearray(data), memoryview(data)):
        assert torch.equal(fast.decompress(source), pixels)
    with path.open("rb") as file:
        assert torch.equal(fast.decode_latents(file), latents)
        for read in (fast.decompress, fast.decode_latents, mlic_fast.info):
            with pytest.raises(CorruptStreamError, match=r"seek\(0\)"):
                read(file)
    assert all(torch.equal(each, pixels) for each in fast.decompress([path, data]))
    with pytest.raises(FileNotFoundError):
        fast.decompress(tmp_path / "gone.mlic")
