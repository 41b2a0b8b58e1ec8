"""Does a device code a golden stream bit for bit? Asked once a device, and remembered."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import mlic_fast
from mlic_fast import _C, bitstream
from mlic_fast.atomic_files import write_atomically
from mlic_fast.conformance import FOLDER
from mlic_fast.errors import CorruptStreamError, MlicError

if TYPE_CHECKING:
    from mlic_fast.codec import Codec

#: The golden stream, of the model ``photo``: 200x193 pixels.
_FILE, _STREAM = FOLDER / "photo.zip", "face"


def cache_folder() -> Path:
    """Where results are kept: ``mlic_fast`` in the user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlic_fast"


def remembered(codec: Codec) -> str | None:
    """What :func:`check` found on the codec's device, now or in a process before.

    It is asked again for another GPU, driver or version. What it raises is not kept.
    """
    key = _key(codec.device)
    known = _known()
    return known[key] if key in known else check(codec)


def check(codec: Codec) -> str | None:
    """Decode a golden stream and code its pixels again; what differs first, None if nothing does.

    A codec of another model than ``photo`` lends its device and its engine.
    """
    from mlic_fast.codec import load

    with zipfile.ZipFile(_FILE) as archive:
        stream = archive.read(f"{_STREAM}.mlic")
        expected = json.loads(archive.read("expected.json"))[_STREAM]
    if codec.model_id != bitstream.read(stream)[0].model_id:
        codec = load("photo", device=str(codec.device), engine=codec.engine)
    problem = _problem(codec, stream, expected)
    _remember(_key(codec.device), problem)
    return problem


def _problem(codec: Codec, stream: bytes, expected: dict[str, str]) -> str | None:
    try:
        pixels = codec.decompress(stream, output="numpy")
        again = codec.compress(pixels, quality=bitstream.read(stream)[0].quality)
    except CorruptStreamError as error:
        return _first_difference(codec, stream, expected) or str(error)
    assert isinstance(again, bytes)
    found = {"pixels": pixels.tobytes(), "pixels compressed": again}
    if all(hashlib.sha256(data).hexdigest() == expected[name] for name, data in found.items()):
        return None
    return _first_difference(codec, stream, expected) or "a golden stream gave other bytes twice"


def _first_difference(codec: Codec, stream: bytes, expected: dict[str, str]) -> str | None:
    from mlic_fast.conformance.engines import codec_on
    from mlic_fast.conformance.recorder import Recorder
    from mlic_fast.conformance.verification import record

    recorder = Recorder(codec._engine._ops)  # type: ignore[attr-defined]
    watched = codec_on(recorder, codec.model, codec.packed)
    found = recorder.hashes
    with suppress(MlicError):
        found = record(watched, recorder, stream)
    for name, value in (found or recorder.hashes).items():
        if value and value != expected[name]:
            return f"in a golden stream, {name} are wrong"
    return None


def _key(device: torch.device) -> str:
    """Machine, driver and versions."""
    parts = [f"mlic_fast {mlic_fast.__version__} {_code_digest()}", f"torch {torch.__version__}"]
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        versions = f"driver {driver_version()}", f"triton {metadata.version('triton')}"
        parts += [gpu.name, str(getattr(gpu, "uuid", device)), *versions]
    return ", ".join(parts)


def driver_version() -> str:
    """Version of NVIDIA's driver, from the kernel's module; else the newest CUDA it serves."""
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        if match := re.search(r"\s(\d+\.\d+(\.\d+)?)\s", text):
            return match[1]
    core: Any = torch._C
    return f"for CUDA {core._cuda_getDriverVersion()}"


def _code_digest() -> str:
    """Digest of the code that computes on a device: in a checkout, the version does not change."""
    package = Path(mlic_fast.__file__).parent
    digest = hashlib.sha256()
    for folder in ("kernels", "engine", "coder"):
        for file in sorted((package / folder).glob("*.py")):
            digest.update(file.read_bytes())
    digest.update(Path(_C.__file__).read_bytes())
    return digest.hexdigest()[:12]


def _known() -> dict[str, str | None]:
    with suppress(OSError, ValueError):
        known = json.loads((cache_folder() / "self-check.json").read_text())
        if isinstance(known, dict):
            return known
    return {}


def _remember(key: str, problem: str | None) -> None:
    """For processes to come; a folder that cannot be written costs them a check each."""
    text = json.dumps({**_known(), key: problem}, indent=1) + "\n"
    with suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_atomically(cache_folder() / "self-check.json", text.encode())
