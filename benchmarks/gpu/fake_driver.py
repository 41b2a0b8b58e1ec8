"""Triton on a driver that runs nothing (``fake_driver.c``), for a rehearsal without a GPU.

Tensors lie on the CPU, and their addresses are what the real launchers are given.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

#: The capability of an H200.
TARGET = 90


class FakeDriver:
    """What Triton asks its driver for.

    Attributes:
        library: the C library: ``fake_launches()``, ``fake_refused()``.
    """

    def __init__(self) -> None:
        from triton.backends.nvidia import driver

        self.utils, self.launcher_cls = driver.CudaUtils(), driver.CudaLauncher
        self.library = ctypes.CDLL("libcuda.so.1")
        for name in ("fake_launches", "fake_refused"):
            getattr(self.library, name).restype = ctypes.c_long

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", TARGET, 32)

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        assert device == 0

    def get_current_stream(self, device: int) -> int:
        return 0


def install() -> FakeDriver:
    """Makes it Triton's driver; before anything of ``mlic_fast.kernels`` is imported.

    The linker looks for libraries where it did when the process began, so this begins anew.
    """
    if "TRITON_LIBCUDA_PATH" not in os.environ:
        folder = _build()
        paths = [folder, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        os.environ |= {
            "TRITON_LIBCUDA_PATH": folder,
            "LD_LIBRARY_PATH": ":".join(paths),
            "TRITON_INTERPRET": "0",
        }
        os.execv(sys.executable, [sys.executable, *sys.argv])
    import triton

    from mlic_fast.kernels import configs

    driver = FakeDriver()
    triton.runtime.driver.set_active(driver)
    configs.architecture = lambda device: f"sm{TARGET}"  # type: ignore[assignment]
    return driver


def _build() -> str:
    """The folder of a libcuda.so.1, made of the C file."""
    from triton.backends.nvidia import driver

    folder = tempfile.mkdtemp()
    include = Path(driver.__file__).parent / "include"
    source = Path(__file__).with_suffix(".c")
    command = ["cc", "-shared", "-fPIC", "-O1", f"-I{include}", source]
    subprocess.run([*command, "-o", f"{folder}/libcuda.so.1"], check=True)
    os.symlink("libcuda.so.1", f"{folder}/libcuda.so")
    return folder
