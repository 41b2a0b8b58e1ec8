"""The models against what is published: vectors of the MLIC++ code, names, sizes, widths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlic_fast.models import MLIC, PRESETS, MlicModel, MLICPlus, MLICPlusPlus, create_model
from mlic_fast.models import load_checkpoint as load


@pytest.fixture(scope="module")
def vectors(shared_dir: Path) -> dict[str, np.ndarray]:
    with np.load(shared_dir / "golden" / "mlicpp_small_io.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def public_model(shared_dir: Path) -> MlicModel:
    return load(shared_dir / "golden" / "mlicpp_small.safetensors")


@pytest.fixture(scope="module")
def image(vectors: dict[str, np.ndarray]) -> Tensor:
    return torch.from_numpy(vectors["image"]).permute(2, 0, 1)[None].float() / 255


def test_forward_equals_the_public_code(
    public_model: MlicModel, image: Tensor, vectors: dict[str, np.ndarray]
) -> None:
    with torch.no_grad():
        out = public_model(image)
    for name, value in (
        ("x_hat", out["x_hat"]),
        ("y_likelihoods", out["likelihoods"]["y"]),
        ("z_likelihoods", out["likelihoods"]["z"]),
    ):
        np.testing.assert_allclose(value.numpy(), vectors[name], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.usefixtures("compressai_installed")
def test_compress_gives_the_bytes_of_the_public_code(
    public_model: MlicModel, image: Tensor, vectors: dict[str, np.ndarray]
) -> None:
    public_model.update()  # our own tables, not those of the file
    encoded = public_model.compress(image)
    (y_string,), (z_string,) = encoded["strings"]
    assert y_string == vectors["y_string"].tobytes()
    assert z_string == vectors["z_string"].tobytes()
    assert tuple(encoded["shape"]) == tuple(vectors["z_shape"])
    x_hat = public_model.decompress(encoded["strings"], encoded["shape"])["x_hat"]
    np.testing.assert_allclose(x_hat.numpy(), vectors["x_hat_decoded"], rtol=0, atol=1e-4)


@pytest.mark.usefixtures("compressai_installed")
def test_update_reproduces_the_published_tables(shared_dir: Path) -> None:
    path = shared_dir / "golden" / "mlicpp_small.safetensors"
    published, remade = load(path), load(path)
    remade.update()
    assert published.gaussian_conditional._quantized_cdf.numel()
    for name, buffer in published.named_buffers():
        other = remade.get_buffer(name)
        assert torch.equal(buffer, other) or name.endswith("scale_table"), name


def test_full_size_tensors_are_the_published_ones(shared_dir: Path) -> None:
    with open(shared_dir / "golden" / "mlicpp_state_dict_keys.json") as file:
        published = json.load(file)
    with torch.device("meta"):
        state = create_model("mlic_plus_plus").state_dict()
    own = {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in state.items()}
    assert own == {k: [s, d.removeprefix("torch.")] for k, (s, d) in published.items()}


def test_published_sizes() -> None:
    with torch.device("meta"):
        model = create_model("mlic_plus_plus")
    assert sum(p.numel() for p in model.parameters()) == 83_501_408
    assert len(model.state_dict()) == 1023


def test_the_2023_family_has_its_published_size() -> None:
    with torch.device("meta"):
        model = MLICPlusPlus(weight_family="2023")
    assert sum(p.numel() for p in model.parameters()) == 116_716_928
    layers = [m for m in model.lrp_nonanchor[9].lrp_transform if isinstance(m, nn.Conv2d)]
    assert [m.in_channels for m in layers] == [640, 488, 336, 184]
    assert layers[-1].out_channels == 32


@pytest.mark.parametrize(
    ("kind", "anchor", "nonanchor"),
    [(MLIC, 512, 640), (MLICPlus, 832, 960), (MLICPlusPlus, 832, 960)],
)
def test_entropy_parameters_have_the_published_widths(
    kind: type[MlicModel], anchor: int, nonanchor: int
) -> None:
    with torch.device("meta"):
        model = kind()
    assert model.config == PRESETS[model.config.variant]
    for i in range(1, model.config.slices):
        for name, width in (("anchor", anchor), ("nonanchor", nonanchor)):
            fusion = getattr(model, f"entropy_parameters_{name}")[i].fusion
            convs = [m for m in fusion if isinstance(m, nn.Conv2d)]
            assert [m.in_channels for m in convs] == [width, 320, 256, 128]
            assert convs[-1].out_channels == 64


def test_a_width_given_alone_carries_over_to_the_transforms() -> None:
    with torch.device("meta"):
        model = MLICPlusPlus(N=32)
    assert model.g_a.analysis_transform[0].conv1.out_channels == 32


@pytest.mark.parametrize("preset", ["mlic", "mlic_plus"])
def test_published_sizes_train_and_evaluate(preset: str) -> None:
    with torch.device("meta"):
        model = create_model(preset)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.003)
        for name, buffer in model.named_buffers():
            # What constructors fill: positions, bounds; meta tensors carry no values.
            buffer.fill_(0 if buffer.dtype == torch.int64 else 1e-3)
            assert not name.endswith("weight")
    out = model(torch.rand(1, 3, 64, 64))
    m = PRESETS[preset].M
    assert out["x_hat"].shape == (1, 3, 64, 64)
    assert out["likelihoods"]["y"].shape == (1, m, 4, 4)
    assert out["likelihoods"]["z"].shape == (1, 192, 1, 1)
    out["x_hat"].mean().backward()
