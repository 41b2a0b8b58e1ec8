"""Reading and writing checkpoints.

Files read: this project's safetensors (the configuration in the metadata); files of the public
MLIC++ code, both weight families; state dicts of CompressAI's own MLIC++ (its pull request 357).
Those of ``torch.save`` are pickles, which are read only where the caller says so.

Nothing in a file is trusted: a damaged or hostile one raises CheckpointError, and costs no more
memory than a few times its size.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mlic_fast.atomic_files import write_atomically
from mlic_fast.errors import CheckpointError
from mlic_fast.models.config import CONFIG_KEY, PACKING, MlicConfig
from mlic_fast.models.mlic import MlicModel, create_model

State = dict[str, Tensor]

#: Of safetensors.
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool},
}
#: Made by ``update()`` from the weights: may be missing, and are resized to what a file has.
_TABLES = re.compile(r"\.(_offset|_quantized_cdf|_cdf_length|scale_table)$")
#: The same in every model; in files of half precision some are zero, in damaged ones anything.
_CONSTANTS = re.compile(r"\.(bound|pedestal|scale_bound|target|mask|relative_position_index)$")


def load_checkpoint(path: str | os.PathLike[str], *, allow_pickle: bool = False) -> MlicModel:
    """Read a checkpoint of any supported kind; the model is on the CPU and in evaluation mode.

    Args:
        path: a safetensors file.
        allow_pickle: whether the file may be one of ``torch.save``, whose unpickler, though
            restricted to weights, is not made for files of strangers.

    Raises CheckpointError when the file cannot be read, its tensors do not fit the model, or have
    values that are not finite; the message names the tensors.
    """
    path = Path(path)
    config, state = _read(path, allow_pickle)
    if config is None:
        state = _from_compressai(_from_old_compressai(state))
        config = _infer_config(state)
    # Costs no memory, whatever sizes a damaged file claims. (And little time, as constructors only
    # make, fill and copy: more on meta tensors makes PyTorch import its compiler, for seconds.)
    with torch.device("meta"):
        expected = create_model(config).state_dict()
    check_state(expected, state, f"{path} does not fit {config.variant}")
    with _NoRandomNumbers():
        model = create_model(config).float()  # whatever the default dtype is
    _fill(model, state)
    check_finite(model, str(path))
    return model.eval()


class _NoRandomNumbers(TorchFunctionMode):
    """While entered, parameters that would start as random numbers hold anything."""

    _SKIPPED = (torch.nn.init.kaiming_uniform_, torch.nn.init.uniform_, torch.Tensor.uniform_)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._SKIPPED:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def check_finite(model: torch.nn.Module, name: str) -> None:
    """Raise CheckpointError if a weight is NaN or infinite."""
    bad = [
        key
        for key, value in model.state_dict().items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if bad:
        raise CheckpointError(f"{name} has values that are not finite: {_listed(bad)}")


def save_checkpoint(
    model: MlicModel, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model with its configuration as safetensors, without the tables of ``update()``.

    Tensors keep their dtype (a model in half precision gives half the size); ``metadata`` joins the
    configuration in the header of the file.
    """
    write_atomically(path, checkpoint_bytes(model, metadata))


def checkpoint_bytes(model: MlicModel, metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes that :func:`save_checkpoint` writes."""
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not _TABLES.search(k)}
    return save(state, {CONFIG_KEY: model.config.to_json(), **(metadata or {})})


def _read(path: Path, allow_pickle: bool) -> tuple[MlicConfig | None, State]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        metadata, tensors = read_safetensors(path)
        state = {key: value for key, value in tensors.items() if not key.startswith(PACKING)}
        config = MlicConfig.from_json(metadata[CONFIG_KEY]) if CONFIG_KEY in metadata else None
        return config, state
    except SafetensorError as error:
        if not allow_pickle:
            raise CheckpointError(
                f"{path} is not a safetensors file, or it is damaged. If it is one of torch.save "
                "and you trust where it comes from, convert it once: mlic-fast pack "
                "--allow-pickle, or load_checkpoint(.., allow_pickle=True) and save_checkpoint"
            ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return None, _read_pickle(path)


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, str], State]:
    """Metadata and tensors of a file, which the memory is mapped to.

    The package safetensors checks the file and no more: it leaks two integers with each tensor that
    it gives.

    Raises:
        SafetensorError: damaged, or not of this kind.
        OSError: cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    data = np.memmap(path, np.uint8, mode="c")
    end = 8 + int.from_bytes(data[:8].tobytes(), "little")
    tensors = {}
    for name, entry in json.loads(data[8:end].tobytes()).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise SafetensorError(f"{name} is of type {entry['dtype']}")
        dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
        start, stop = (end + offset for offset in entry["data_offsets"])
        flat = torch.frombuffer(data[start:stop], dtype=dtype) if start < stop else torch.empty(0)
        tensors[name] = flat.to(dtype).reshape(shape)
    return metadata, tensors


def _read_pickle(path: Path) -> State:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind: damaged files lead the unpickler astray
        raise CheckpointError(f"{path} is neither safetensors nor a PyTorch file") from error
    if isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise CheckpointError(f"{path} holds no state dict")
    return {key.removeprefix("module."): value for key, value in content.items()}


def _from_old_compressai(state: State) -> State:
    """CompressAI before 1.2.7 called the factorised prior's parts _matrix0, _bias0, _factor0."""
    plural = {"matrix": "matrices", "bias": "biases", "factor": "factors"}
    return {
        re.sub(
            r"entropy_bottleneck\._(matrix|bias|factor)(\d)$",
            lambda m: f"entropy_bottleneck.{plural[m[1]]}.{m[2]}",
            key,
        ): value
        for key, value in state.items()
    }


def _from_compressai(state: State) -> State:
    """Names of CompressAI's MLIC++ -> names of the public MLIC++ code."""
    if not any(key.startswith("latent_codec.") for key in state):
        return state
    slice_prefix = r"^latent_codec\.y\.(?:latent_codec|channel_context)\.y(\d+)\."
    parts = {
        "channel_part": "channel_context",
        "global_inter_part": "global_inter_context",
        "spatial_context_nonanchor": "local_context",
        "intra_channel_context_nonanchor": "global_intra_context",
        "entropy_parameters_anchor": "entropy_parameters_anchor",
        "entropy_parameters_nonanchor": "entropy_parameters_nonanchor",
        "lrp_anchor": "lrp_anchor",
        "lrp_nonanchor": "lrp_nonanchor",
    }
    renamed: State = {}
    for key, value in state.items():
        name = re.sub(r"^latent_codec\.(h_a|h_s)\.", r"\1.", key)
        name = re.sub(r"^latent_codec\.z\.entropy_bottleneck\.", "entropy_bottleneck.", name)
        # Every slice of CompressAI's model has its own Gaussian conditional, without weights.
        name = re.sub(slice_prefix + r"y\.gaussian_conditional\.", "gaussian_conditional.", name)
        match = re.match(slice_prefix + r"(\w+)\.(.*)$", name)
        if match and match[2] in parts:
            name = f"{parts[match[2]]}.{match[1]}.{match[3]}"
        renamed[name] = value
    if (
        "local_context.0.context.0.weight" in renamed
        or "global_inter_context.1.mlp.0.weight" not in renamed
    ):
        raise CheckpointError(
            "this is CompressAI's MLIC or MLIC+: their contexts differ from the ones here, so only "
            "its MLIC++ can be read"
        )
    return renamed


def _infer_config(state: State) -> MlicConfig:
    """Configuration of a public MLIC++ state dict, from the shapes of its tensors."""

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise CheckpointError(f"not a checkpoint of the MLIC family: {name} is missing")
        return state[name].shape

    slices = 1 + max(
        (int(m[1]) for k in state if (m := re.match(r"lrp_anchor\.(\d+)\.", k))), default=0
    )
    old = "lrp_anchor.0.lrp_transform.6.weight" in state
    ep = "entropy_parameters_anchor.0.fusion"
    channel = "channel_context.1.fushion"
    lrp = "lrp_anchor.0.lrp_transform"
    try:
        return MlicConfig(
            variant="mlic_plus_plus",
            N=shape("h_a.reduction.0.weight")[0],
            M=shape("g_a.analysis_transform.6.weight")[0],
            slices=slices,
            stage_channels=(
                shape("g_a.analysis_transform.0.conv1.weight")[0],
                shape("g_a.analysis_transform.2.conv1.weight")[0],
                shape("g_a.analysis_transform.4.conv1.weight")[0],
            ),
            channel_context_channels=(
                (shape(f"{channel}.0.weight")[0], shape(f"{channel}.2.weight")[0])
                if slices > 1
                else (192, 128)
            ),
            entropy_parameters_channels=(
                shape(f"{ep}.0.weight")[0],
                shape(f"{ep}.2.weight")[0],
                shape(f"{ep}.4.weight")[0],
            ),
            lrp_channels=(shape(f"{lrp}.0.weight")[0], shape(f"{lrp}.2.weight")[0])
            if not old
            else (224, 128),
            weight_family="2023" if old else "current",
        )
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"not a checkpoint of the MLIC family: {error}") from error


def check_state(own: State, state: State, what_is_wrong: str) -> None:
    """Raise CheckpointError, which says in one message all that does not fit."""
    problems = []
    missing = sorted(k for k in own if k not in state and not _TABLES.search(k))
    unexpected = sorted(k for k in state if k not in own)
    shapes = sorted(
        f"{k} {list(state[k].shape)} instead of {list(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape and not _TABLES.search(k)
    )
    kinds = sorted(k for k in own if k in state and not _can_hold(own[k], state[k]))
    for what, names in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", shapes),
        ("of another kind", kinds),
    ):
        if names:
            problems.append(f"{what}: {_listed(names)}")
    if problems:
        raise CheckpointError(f"{what_is_wrong}: " + "; ".join(problems))


def _can_hold(own: Tensor, value: Tensor) -> bool:
    """Whether a value is an ordinary tensor of the same kind of numbers."""
    return (
        value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
        and value.is_floating_point() == own.is_floating_point()
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _fill(model: MlicModel, state: State) -> None:
    """Load a state dict that fits, with the tables it has; constants stay the model's own."""
    own = model.state_dict()
    for key, value in state.items():
        if _TABLES.search(key):
            module, name = key.rsplit(".", 1)
            setattr(model.get_submodule(module), name, own[key].new_empty(value.shape))
    own = model.state_dict()
    stored = own | {k: v for k, v in state.items() if not _CONSTANTS.search(k)}
    model.load_state_dict({k: stored[k].to(own[k].dtype) for k in own})
    try:
        model.entropy_bottleneck.check_tables(model.config.N)
        levels = model.gaussian_conditional.scale_table
        if levels.dim() != 1:
            raise ValueError("scale_table is no vector")
        model.gaussian_conditional.check_tables(len(levels))
    except ValueError as error:
        raise CheckpointError(f"the tables in the checkpoint are damaged: {error}") from error
