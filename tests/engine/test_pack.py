"""The packer: nothing overflows, the same bits everywhere, odd weights, damaged packed files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lively import SMALL, lively_model
from safetensors import safe_open
from safetensors.torch import save_file

import mlic_fast
from mlic_fast.engine.arithmetic import ACTIVATION_LIMIT, WEIGHT_LIMIT
from mlic_fast.engine.identity import model_identity
from mlic_fast.engine.packing.integer_weights import pack_weight
from mlic_fast.engine.packing.packer import load_packed, pack, save_packed
from mlic_fast.errors import CheckpointError
from mlic_fast.models import MlicModel

INT32 = 2**31 - 1


def worst_sum(weight: np.ndarray) -> int:
    return int(np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(1).max())


@given(
    st.integers(1, 4000),
    st.sampled_from([1e-44, 1e-40, 1e-30, 1e-3, 1.0, 1e20, 3e38]),
    st.sampled_from(["normal", "equal", "one", "ties", "ternary"]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_weights_of_any_kind_fit_int32(size: int, magnitude: float, kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    w = {
        "normal": lambda: random.standard_normal(size),
        "equal": lambda: np.ones(size),
        "one": lambda: np.eye(1, size)[0],
        "ties": lambda: np.floor(random.uniform(-8, 8, size)) + 0.5,
        "ternary": lambda: random.integers(-1, 2, size),
    }[kind]()
    w = np.clip(w * magnitude, -3e38, 3e38).astype(np.float32)
    segment = pack_weight(w[None, None, None, :])
    assert worst_sum(segment.weight) * ACTIVATION_LIMIT <= INT32
    assert np.abs(segment.weight).max() <= WEIGHT_LIMIT
    assert np.isfinite(segment.scale).all() and (segment.scale > 0).all()
    real = segment.weight.reshape(-1) * segment.scale.astype(np.float64)
    step = max(np.abs(w).max() / WEIGHT_LIMIT, np.abs(w.astype(float)).sum() / 5e5)
    assert np.abs(real - w).max() <= max(0.51 * step, 2.0**-100)


def test_every_layer_of_every_variant_fits_int32(model: MlicModel) -> None:
    packed = pack(model)
    assert all(
        worst_sum(segment.weight) * ACTIVATION_LIMIT <= INT32
        for layer in packed.layers.values()
        for segment in layer.segments
    )
    # All of the entropy path is there, nothing of the transforms.
    own = {n for n, m in model.named_modules() if getattr(m, "weight", None) is not None}
    path = {n for n in own if not n.startswith(("g_a.", "g_s.", "h_a."))}
    extra = {"medians", *(n for n in packed.layers if n.endswith(".attention"))}
    assert packed.layers.keys() == path | extra
    assert all(-60 <= e <= 60 for e in packed.exponents.values())


def test_packing_is_deterministic(model: MlicModel) -> None:
    """Across threads, memory layouts, dtypes and devices of the float model."""
    base = pack(model).digest()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 3)
        assert pack(model).digest() == base
    finally:
        torch.set_num_threads(threads)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert pack(other).digest() == base
    assert pack(other.double()).digest() == base
    with torch.inference_mode():
        assert pack(model).digest() == base


def test_identity_names_all_that_decoding_needs(small_models: dict[str, MlicModel]) -> None:
    model = copy.deepcopy(small_models["mlic_plus_plus"])
    packed = pack(model)
    identities = {model_identity(model, packed)}
    for name in (
        "g_s.synthesis_transform.7.0.bias",
        "entropy_bottleneck.quantiles",
        "local_context.2.relative_position_table",
        "lrp_nonanchor.2.lrp_transform.4.bias",
    ):
        with torch.no_grad():
            model.get_parameter(name).flatten()[1] += 0.01
        identities.add(model_identity(model, pack(model)))
    assert len(identities) == 5
    with torch.no_grad():  # the analysis alone may differ: it writes other streams, reads the same
        model.g_a.analysis_transform[0].conv1.bias += 1
        model.h_a.reduction[0].bias += 1
    assert model_identity(model, pack(model)) in identities


def test_a_packed_model_owns_its_memory(small_models: dict[str, MlicModel], variant: str) -> None:
    model = copy.deepcopy(small_models[variant])
    packed = pack(model)
    digest = packed.digest()
    floats = [parameter.detach().numpy() for parameter in model.parameters()]
    for name, array in packed.arrays().items():
        assert not any(np.shares_memory(array, each) for each in floats), name
    for each in floats:
        each.fill(7)
    assert packed.digest() == digest


def test_dead_channels_and_odd_magnitudes() -> None:
    model = lively_model(SMALL["mlic_plus_plus"]).eval()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(model.named_parameters()):
            if name.endswith("weight") and not name.startswith(("g_", "h_a")):
                parameter[: 1 + i % 3] = 0
                parameter[-1] *= (1.0, 1e-30, 1e-42, 30.0)[i % 4]
        model.channel_context[1].fushion[0].weight.zero_()
        model.channel_context[1].fushion[0].bias.zero_()
    packed = pack(model)
    scales = np.concatenate([s.scale for p in packed.layers.values() for s in p.segments])
    assert np.isfinite(scales).all() and (scales > 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(value: float) -> None:
    model = lively_model(SMALL["mlic"]).eval()
    with torch.no_grad():
        model.lrp_anchor[1].lrp_transform[0].bias[3] = value
    with pytest.raises(CheckpointError, match=r"lrp_anchor\.1\.lrp_transform\.0\.bias"):
        pack(model)


def test_overflow_in_calibration_is_refused() -> None:
    model = lively_model(SMALL["mlic"]).eval()
    with torch.no_grad():
        for layer in (0, 4, 8):
            model.h_s.increase[layer].weight.mul_(1e36)
    with np.errstate(all="ignore"), pytest.raises(CheckpointError, match=r"h_s.*overflows"):
        pack(model)


def test_huge_weights_that_stay_in_range_are_packed() -> None:
    model = lively_model(SMALL["mlic"]).eval()
    with torch.no_grad():
        model.h_s.increase[4].weight.mul_(1e20)
        model.h_s.increase[4].bias.zero_()
        model.h_s.increase[6][0].weight.mul_(1e-20)
    packed = pack(model)
    assert packed.exponents["h_s.increase.4"] < -50


# -- packed files ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed_file(
    small_models: dict[str, MlicModel], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    model = small_models["mlic_plus_plus"]
    save_packed(model, pack(model), path)
    return path


def test_packed_files(model: MlicModel, tmp_path: Path) -> None:
    packed = pack(model)
    save_packed(model, packed, tmp_path / "x.safetensors")
    loaded = load_packed(tmp_path / "x.safetensors")
    assert loaded is not None
    assert loaded[1].digest() == packed.digest()
    assert loaded[1].exponents == packed.exponents
    assert model_identity(*loaded) == model_identity(model, packed)


def test_files_of_other_kinds_are_not_packed(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no model")
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "text"):
        assert load_packed(path) is None


def test_damaged_packed_files_are_refused(packed_file: Path, tmp_path: Path) -> None:
    with safe_open(packed_file, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    first = "packed.h_s.increase.0"

    def attempt(changes: dict[str, torch.Tensor | None], **texts: str) -> None:
        changed = {k: v for k, v in (tensors | changes).items() if v is not None}
        path = tmp_path / "x.safetensors"
        save_file(changed, path, metadata=metadata | texts)
        with pytest.raises(CheckpointError):
            load_packed(path)

    weight = tensors[f"{first}.0.weight"]
    attempt({f"{first}.0.weight": None})
    attempt({f"{first}.0.scale": None})
    attempt({f"{first}.bias": None})
    attempt({f"{first}.0.weight": weight[:-1].clone()})
    attempt({f"{first}.0.weight": weight.float()})
    attempt({f"{first}.0.weight": torch.full_like(weight, WEIGHT_LIMIT)})
    steep = torch.zeros_like(weight)
    steep[1, 0, 0, 0] = WEIGHT_LIMIT + 1
    attempt({f"{first}.0.weight": steep})
    attempt({f"{first}.x.weight": weight.clone()})
    attempt({"packed.local_context.1.norm1.gain": None})
    attempt({f"{first}.1.{k}": tensors[f"{first}.0.{k}"].clone() for k in ("weight", "scale")})
    attempt({f"{first}.0.scale": torch.full_like(tensors[f"{first}.0.scale"], float("nan"))})
    attempt({f"{first}.bias": torch.full_like(tensors[f"{first}.bias"], float("inf"))})
    attempt({"packed.exponents": tensors["packed.exponents"][1:].clone()})
    attempt({"packed.exponents": tensors["packed.exponents"] + 100})
    attempt({"packed.tables.frequencies": tensors["packed.tables.frequencies"][:-1].clone()})
    attempt({"packed.tables.frequencies": None})
    attempt({"packed.exponents": tensors["packed.exponents"].float()})
    attempt({"g_s.synthesis_transform.0.conv1.weight": None})
    bias = "g_s.synthesis_transform.0.conv1.bias"
    attempt({bias: torch.full_like(tensors[bias], float("nan"))})
    attempt({}, **{"mlic_fast.exponents": "7"})
    attempt({}, **{"mlic_fast.exponents": '["a"]'})
    attempt({}, **{"mlic_fast.exponents": "{"})
    names = json.loads(metadata["mlic_fast.exponents"])
    attempt({}, **{"mlic_fast.exponents": json.dumps([7, *names[1:]])})
    attempt({}, **{"mlic_fast.config": "{}"})


def test_an_exponent_that_is_missing_is_found_when_it_is_used(
    packed_file: Path, tmp_path: Path
) -> None:
    with safe_open(packed_file, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    names = json.loads(metadata["mlic_fast.exponents"])
    names[names.index("h_s.increase.4")] = "nobody's"
    metadata["mlic_fast.exponents"] = json.dumps(names)
    save_file(tensors, tmp_path / "x", metadata=metadata)
    for engine in ("cpu", "spec"):
        with pytest.raises(CheckpointError, match=r"h_s\.increase\.4"):
            mlic_fast.load(tmp_path / "x", engine=engine).compress(
                torch.zeros(3, 5, 9, dtype=torch.uint8)
            )
