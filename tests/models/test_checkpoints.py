"""Checkpoints: every supported kind gives the same model, anything else a CheckpointError."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lively import BLOCKS, SMALL, lively_model
from safetensors.torch import save_file
from torch import Tensor

import mlic_fast
from mlic_fast.cli import main
from mlic_fast.engine.packing.packer import pack, save_packed
from mlic_fast.errors import CheckpointError
from mlic_fast.models import (
    PRESETS,
    MlicConfig,
    MlicModel,
    create_model,
    load_checkpoint,
    save_checkpoint,
)
from mlic_fast.models.checkpoints import CONFIG_KEY, read_safetensors

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def plus_plus(small_models: dict[str, MlicModel]) -> MlicModel:
    return small_models["mlic_plus_plus"]


def assert_same(actual: MlicModel, expected: MlicModel) -> None:
    assert actual.config == expected.config
    assert not actual.training
    own, other = actual.state_dict(), expected.state_dict()
    assert own.keys() == other.keys()
    for name, value in other.items():
        if value.numel() and own[name].numel():  # tables may not be made yet
            assert torch.equal(own[name], value), name


# -- files that fit --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*sorted(SMALL), "variable", "2023", "blocks"])
def test_own_files(name: str, tmp_path: Path) -> None:
    config = {
        **SMALL,
        "variable": replace(SMALL["mlic_plus"], lambdas=(0.1, 0.2)),
        "2023": replace(SMALL["mlic_plus_plus"], weight_family="2023"),
        "blocks": BLOCKS,
    }[name]
    model = lively_model(config).eval()
    save_checkpoint(model, tmp_path / "model.safetensors")
    assert_same(load_checkpoint(tmp_path / "model.safetensors"), model)


def test_half_precision_files_give_float32_models(plus_plus: MlicModel, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    state = plus_plus.state_dict()
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(half, path, metadata={CONFIG_KEY: plus_plus.config.to_json()})
    loaded = load_checkpoint(path)
    for (name, own), value in zip(loaded.named_parameters(), plus_plus.parameters(), strict=True):
        assert own.dtype == torch.float32
        assert torch.equal(own, value.half().float()), name
    bounds = [
        value
        for name, value in loaded.named_buffers()
        if name.endswith("likelihood_lower_bound.bound")
    ]
    assert bounds == [torch.tensor([1e-9])] * 2  # in half precision they are zero


def test_constants_are_the_model_s_own(model: MlicModel, tmp_path: Path) -> None:
    """Whatever a file says they are: places in tables among them."""
    parameters = {name for name, _ in model.named_parameters()}
    damaged = {
        k: v if k in parameters else torch.full_like(v, 77)
        for k, v in model.state_dict().items()
        if v.numel()
    }
    path = tmp_path / "x.safetensors"
    save_file(damaged, path, metadata={CONFIG_KEY: model.config.to_json()})
    assert_same(load_checkpoint(path), model)


def as_bare(state: State) -> Any:
    return state


def as_public(state: State) -> Any:
    """As the public code saves it, from several GPUs."""
    wrapped = {f"module.{k}": v for k, v in state.items()}
    return {
        "epoch": 3,
        "state_dict": wrapped,
        "loss": torch.tensor(1.5),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
        "aux_optimizer": {},
        "lr_scheduler": {"milestones": {1: 2}},
    }


def as_old_compressai(state: State) -> Any:
    """Before CompressAI 1.2.7: entropy_bottleneck._matrix0 and so on."""
    singular = {"matrices": "_matrix", "biases": "_bias", "factors": "_factor"}
    return {
        "state_dict": {
            re.sub(
                r"\.(matrices|biases|factors)\.(\d)$", lambda m: f".{singular[m[1]]}{m[2]}", k
            ): v
            for k, v in state.items()
        }
    }


def as_compressai(state: State) -> Any:
    """CompressAI's own MLIC++: other places, the same weights."""
    places = {
        "channel_context": "channel_context.y{}.channel_part",
        "global_inter_context": "channel_context.y{}.global_inter_part",
        "local_context": "latent_codec.y{}.spatial_context_nonanchor",
        "global_intra_context": "latent_codec.y{}.intra_channel_context_nonanchor",
        "entropy_parameters_anchor": "latent_codec.y{}.entropy_parameters_anchor",
        "entropy_parameters_nonanchor": "latent_codec.y{}.entropy_parameters_nonanchor",
        "lrp_anchor": "latent_codec.y{}.lrp_anchor",
        "lrp_nonanchor": "latent_codec.y{}.lrp_nonanchor",
    }
    renamed = {}
    for key, value in state.items():
        root, _, rest = key.partition(".")
        if root in places:
            index, _, rest = rest.partition(".")
            key = f"latent_codec.y.{places[root].format(index)}.{rest}"
        elif root in ("h_a", "h_s"):
            key = f"latent_codec.{key}"
        elif root == "entropy_bottleneck":
            key = f"latent_codec.z.{key}"
        elif root == "gaussian_conditional":
            for i in range(SMALL["mlic_plus_plus"].slices):
                renamed[f"latent_codec.y.latent_codec.y{i}.y.gaussian_conditional.{rest}"] = value
            continue
        renamed[key] = value
    return renamed


@pytest.mark.parametrize("shape", [as_bare, as_public, as_old_compressai, as_compressai])
@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_foreign_files(
    plus_plus: MlicModel, tmp_path: Path, shape: Callable[[State], Any], container: str
) -> None:
    path = tmp_path / "foreign.pth.tar"
    content = shape(plus_plus.state_dict())
    if container == "safetensors":
        content = content.get("state_dict", content)
        content = {k.removeprefix("module."): v.clone() for k, v in content.items()}
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    assert_same(load_checkpoint(path, allow_pickle=container != "safetensors"), plus_plus)


def test_foreign_file_of_the_2023_family(tmp_path: Path) -> None:
    # Its hidden widths follow from the others; those of a configuration are not used.
    config = replace(SMALL["mlic_plus_plus"], weight_family="2023", lrp_channels=(224, 128))
    model = lively_model(config).eval()
    torch.save(as_public(model.state_dict()), tmp_path / "old.pth.tar")
    assert_same(load_checkpoint(tmp_path / "old.pth.tar", allow_pickle=True), model)


@pytest.mark.usefixtures("compressai_installed")
def test_published_tables_are_kept(plus_plus: MlicModel, tmp_path: Path) -> None:
    model = lively_model(plus_plus.config)
    model.update()
    torch.save(as_public(model.state_dict()), tmp_path / "updated.pth.tar")
    loaded = load_checkpoint(tmp_path / "updated.pth.tar", allow_pickle=True)
    assert loaded.entropy_bottleneck.tables() == model.entropy_bottleneck.tables()
    assert loaded.gaussian_conditional.tables() == model.gaussian_conditional.tables()


# -- files that do not -----------------------------------------------------------------------


def test_all_that_does_not_fit_is_named(plus_plus: MlicModel, tmp_path: Path) -> None:
    state = dict(plus_plus.state_dict())
    del state["lrp_anchor.1.lrp_transform.2.bias"]
    state["h_a.reduction.9.weight"] = torch.zeros(1)
    state["g_s.synthesis_transform.2.conv1.weight"] = torch.zeros(3, 4)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "x.pth", allow_pickle=True)
    message = str(caught.value)
    assert "missing: lrp_anchor.1.lrp_transform.2.bias" in message
    assert "unexpected: h_a.reduction.9.weight" in message
    assert "g_s.synthesis_transform.2.conv1.weight [3, 4] instead of [16, 16, 3, 3]" in message


def test_a_long_list_is_cut(plus_plus: MlicModel, tmp_path: Path) -> None:
    state = plus_plus.state_dict()
    state |= {f"decoder.{i}": torch.zeros(1) for i in range(500)}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="and 492 more") as caught:
        load_checkpoint(tmp_path / "x.pth", allow_pickle=True)
    assert len(str(caught.value)) < 1000


class Trap:
    """Runs code where a file is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("container", ["pickle", "zip", "legacy"])
def test_code_in_a_file_is_not_run(tmp_path: Path, container: str) -> None:
    path, harm = tmp_path / "trap.pth", tmp_path / "harm"
    if container == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Trap(harm)}))
    else:
        torch.save(
            {"state_dict": Trap(harm)}, path, _use_new_zipfile_serialization=container == "zip"
        )
    for allowed in (False, True):
        with pytest.raises(CheckpointError):
            load_checkpoint(path, allow_pickle=allowed)
        assert not harm.exists()


def test_pickles_are_read_only_where_the_caller_says_so(
    plus_plus: MlicModel, tmp_path: Path
) -> None:
    torch.save(plus_plus.state_dict(), tmp_path / "x.pth")
    for read in (load_checkpoint, mlic_fast.load):
        with pytest.raises(CheckpointError, match="allow_pickle"):
            read(tmp_path / "x.pth")
    assert main(["pack", str(tmp_path / "x.pth"), str(tmp_path / "packed")]) == 1
    assert main(["pack", str(tmp_path / "x.pth"), str(tmp_path / "packed"), "--allow-pickle"]) == 0
    assert mlic_fast.load(tmp_path / "packed").model_id == mlic_fast.load(plus_plus).model_id


@pytest.mark.parametrize(
    "content",
    [
        {},
        [1, 2],
        {"state_dict": None},
        {"state_dict": {"a": 1}},
        {0: torch.zeros(1)},
        {"conv.weight": torch.zeros(2, 2)},
        torch.zeros(3),
        {"lrp_anchor.999999999.lrp_transform.0.weight": torch.zeros(1)},
    ],
)
def test_foreign_content(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "x.pth", allow_pickle=True)


def test_odd_shapes_in_a_file(plus_plus: MlicModel, tmp_path: Path) -> None:
    """Sizes that no configuration has, where the configuration is read from."""
    for name in (
        "h_a.reduction.0.weight",
        "g_a.analysis_transform.6.weight",
        "g_a.analysis_transform.0.conv1.weight",
        "channel_context.1.fushion.0.weight",
        "entropy_parameters_anchor.0.fusion.0.weight",
        "lrp_anchor.0.lrp_transform.0.weight",
    ):
        for value in (torch.tensor(1.0), torch.zeros(0, 3), torch.zeros(7, 3, 1, 1)):
            torch.save(plus_plus.state_dict() | {name: value}, tmp_path / "x.pth")
            with pytest.raises(CheckpointError):
                load_checkpoint(tmp_path / "x.pth", allow_pickle=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"N": 1.5}',
        '{"N": "16"}',
        '{"N": -1}',
        '{"colour": 1}',
        '{"stage_channels": [1, 2]}',
        '{"stage_channels": [1, 0, 2]}',
        '{"stage_channels": null}',
        '{"hyper_channels": [8]}',
        '{"lrp_channels": []}',
        '{"lrp_channels": 7}',
        '{"lambdas": ["a"]}',
        '{"lambdas": 3}',
        '{"variant": "mlic", "M": 6, "slices": 2}',
        '{"weight_family": "2022"}',
        '{"N": 5000}',
        '{"M": 4096, "slices": 128}',
        '{"synthesis_blocks": [1, 1000000000]}',
        '{"lambdas": [1, Infinity]}',
        '{"lambdas": [NaN]}',
        '{"lambdas": [1, %s]}' % (10**400),
        "[" * 100_000,
        '{"N": %s}' % ("9" * 5000),
    ],
)
def test_damaged_configurations(plus_plus: MlicModel, tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file(plus_plus.state_dict(), path, metadata={CONFIG_KEY: text})
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_configuration_round_trip() -> None:
    others = {"lambdas": (0.1, 0.25)}, {"hyper_channels": (8, 12)}
    for config in (*SMALL.values(), *(replace(SMALL["mlic"], **other) for other in others)):
        assert MlicConfig.from_json(config.to_json()) == config


def test_what_is_not_a_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.pth", tmp_path / "nothing" / "x.pth"):
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            load_checkpoint(path)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    """Cut short, or overwritten at the front, in the middle, at the end."""
    config = replace(SMALL["mlic"], N=2, M=2, slices=1, stage_channels=(1, 1, 1))
    model = lively_model(config).eval()
    path = tmp_path / "x"
    if kind == "safetensors":
        save_checkpoint(model, path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    random = torch.Generator().manual_seed(5)

    def number(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=random))

    damaged = [whole[: number(len(whole))] for _ in range(40)]
    damaged += [b"", b"\0", b"PK\x03\x04", b"\x80\x02.", b"hello" * 9, whole[:8]]
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(1 + number(8)):
            data[number(min(len(data), 2000))] = number(256)
        damaged.append(bytes(data))
    for data in damaged:
        path.write_bytes(data)
        try:
            load_checkpoint(path, allow_pickle=kind != "safetensors")
        except CheckpointError as error:
            assert str(error)


# -- hostile files ---------------------------------------------------------------------------

TINY = replace(SMALL["mlic"], N=2, M=2, slices=1, stage_channels=(1, 1, 1))


def tampered(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A safetensors file with another header."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@pytest.mark.parametrize("note", ["", "1", "22", "333", "4444"])
def test_reading_tensors(tmp_path: Path, note: str) -> None:
    """Of all kinds, at any place in the file; nothing of it stays in memory."""
    path = tmp_path / "x.safetensors"
    tensors = {
        "half": torch.arange(70).bfloat16(),
        "none": torch.empty(0, 3, dtype=torch.float16),
        "one": torch.tensor(2.5, dtype=torch.float64),
        "table": torch.arange(600).to(torch.uint16).reshape(2, 300),
        "whether": torch.tensor([True, False]),
    }
    save_file(tensors, path, metadata={"note": ""})
    change = lambda header: header["__metadata__"].update(note=note)  # noqa: E731
    path.write_bytes(tampered(path.read_bytes(), change))
    metadata, found = read_safetensors(path)
    assert metadata == {"note": note}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    before = sys.getallocatedblocks()
    for _ in range(500):
        read_safetensors(path)
    assert sys.getallocatedblocks() - before < 500


@pytest.mark.parametrize("kind", ["float", "packed"])
def test_headers_that_lie(tmp_path: Path, kind: str) -> None:
    """Of sizes, places, kinds and configuration: an error, in little time and memory."""
    model, path = lively_model(TINY).eval(), tmp_path / "x.safetensors"
    if kind == "float":
        save_checkpoint(model, path)
    else:
        save_packed(model, pack(model), path)
    whole = path.read_bytes()
    name = "g_s.synthesis_transform.0.conv1.weight"
    configuration = json.loads(model.config.to_json())

    def configured(**fields: Any) -> Callable[[dict[str, Any]], None]:
        text = json.dumps(configuration | fields)
        return lambda header: header["__metadata__"].update({CONFIG_KEY: text})

    def entry(**fields: Any) -> Callable[[dict[str, Any]], None]:
        return lambda header: header[name].update(fields)

    lies = [
        *(entry(shape=s) for s in ([], [0], [0, 2**62], [2**62, 2**62], [-1], [1] * 9000)),
        *(entry(data_offsets=o) for o in ([0, 2**63], [8, 0], [-4, 0], [0, 4], [2**40, 2**41])),
        *(entry(dtype=d) for d in ("F64", "I32", "BOOL", "C64", "F8_E4M3", "F99")),
        *(configured(**{field: 4096}) for field in ("N", "M")),
        configured(stage_channels=[4096, 4096, 4096]),
        configured(transforms="blocks", lambdas=[1], analysis_blocks=[64, 64]),
        configured(slices=2),
        lambda header: header.pop(name),
        lambda header: header.update({"more": header[name]}),
        lambda header: header["__metadata__"].update({CONFIG_KEY: "[" * 100_000}),
    ]
    for lie in lies:
        path.write_bytes(tampered(whole, lie))
        with limited_memory(), pytest.raises(CheckpointError):
            mlic_fast.load(path)
    for size in (2**63, 2**31, 100_000_000, 0, 1):
        path.write_bytes(size.to_bytes(8, "little") + whole[8:])
        with limited_memory(), pytest.raises(CheckpointError):
            mlic_fast.load(path)


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """An allocation of more than a few hundred MB beyond what the process has fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("config", [TINY, BLOCKS], ids=["residual", "blocks"])
def test_odd_values_in_files(tmp_path: Path, config: MlicConfig) -> None:
    """Values that are not finite are named; of huge ones either CheckpointError or a codec."""
    model, path = lively_model(config).eval(), tmp_path / "x.safetensors"
    state = {k: v for k, v in model.state_dict().items() if v.numel()}
    random = torch.Generator().manual_seed(7)
    names = [k for k, v in state.items() if v.is_floating_point() and "bound" not in k]
    names = [name for name in names if not name.endswith("pedestal")]
    for i in range(18):
        name = names[int(torch.randint(len(names), (1,), generator=random))]
        bad = (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-45)[i % 6]
        changed = state[name].clone().flatten()
        changed[int(torch.randint(len(changed), (1,), generator=random))] = bad
        content = state | {name: changed.reshape(state[name].shape)}
        save_file(content, path, metadata={CONFIG_KEY: config.to_json()})
        if i % 6 < 3:
            with pytest.raises(CheckpointError, match=re.escape(name)):
                load_checkpoint(path)
            continue
        with np.errstate(all="ignore"), contextlib.suppress(CheckpointError):
            codec = mlic_fast.load(path)
            data = codec.compress(torch.zeros(3, 5, 9, dtype=torch.uint8))
            with contextlib.suppress(mlic_fast.CorruptStreamError):
                codec.decompress(data)


def test_damaged_tables_in_files(plus_plus: MlicModel, tmp_path: Path) -> None:
    """CompressAI's coder checks none: it would read beyond them."""
    path = tmp_path / "x.safetensors"
    tables = {
        "_quantized_cdf": torch.tensor([[0, 9, 65536]] * 16, dtype=torch.int32),
        "_cdf_length": torch.full((16,), 3, dtype=torch.int32),
        "_offset": torch.zeros(16, dtype=torch.int32),
    }

    def attempt(**changes: Tensor) -> None:
        prior = {f"entropy_bottleneck.{k}": v for k, v in (tables | changes).items()}
        state = {k: v for k, v in plus_plus.state_dict().items() if "entropy_b" in k or v.numel()}
        save_file(state | prior, path, metadata={CONFIG_KEY: plus_plus.config.to_json()})
        load_checkpoint(path)

    attempt()
    bad = {
        "_cdf_length": (2, 4, -1, 2**30),
        "_quantized_cdf": ([[0, 9, 65535]], [[1, 9, 65536]], [[0, 0, 65536]], [[0, 70000, 65536]]),
    }
    for name, values in bad.items():
        for value in values:
            changed = tables[name].clone()
            changed[5] = torch.tensor(value, dtype=torch.int32)
            with pytest.raises(CheckpointError, match="tables"):
                attempt(**{name: changed})
    for name, value in tables.items():
        for wrong in (value[:-1].clone(), torch.tensor(3, dtype=torch.int32), value[:0].clone()):
            with pytest.raises(CheckpointError, match="tables"):
                attempt(**{name: wrong})


def test_each_kind_of_transforms_writes_its_own_fields() -> None:
    """The identities of models with residual transforms are what they were before blocks."""
    residual = json.loads(MlicConfig().to_json())
    assert not residual.keys() & {"transforms", "block_channels", "analysis_blocks"}
    assert hashlib.sha256(PRESETS["demo"].to_json().encode()).hexdigest()[:8] == "24595aad"
    blocks = PRESETS["photo"]
    assert "stage_channels" not in json.loads(blocks.to_json())
    for config in (blocks, BLOCKS, MlicConfig()):
        assert MlicConfig.from_json(config.to_json()) == config


def test_fresh_blocks_are_the_identity() -> None:
    model = create_model(PRESETS["photo"])
    x = torch.randn(1, 320, 4, 4)
    assert torch.equal(model.g_s.coarse(x), x)
