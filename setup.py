"""Builds the module ``mlic_fast._C`` with CMake and Ninja; the rest is in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def find_tool(name: str) -> str | None:
    """Path of a build tool: beside this interpreter, activated or not, else on PATH."""
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(name, path=here)


def require_tool(name: str) -> str:
    """Path of a build tool, which must be there."""
    path = find_tool(name)
    if path is None:
        raise SystemExit(f"{name} was not found: run `pip install {name}` and try again.")
    return path


class CMakeBuild(build_ext):
    """Builds in build/cmake-<tag>, which later builds reuse."""

    def build_extension(self, ext: Extension) -> None:
        """Runs CMake and Ninja."""
        import pybind11  # only here, so that metadata can be had without it

        cmake, ninja = require_tool("cmake"), require_tool("ninja")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build_dir = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        drop_stale_cache(build_dir)
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('MLIC_FAST_BUILD_TYPE', 'Release')}",
            f"-DMLIC_FAST_CUDA={os.environ.get('MLIC_FAST_CUDA', 'AUTO')}",
            f"-DMLIC_FAST_WERROR={os.environ.get('MLIC_FAST_WERROR', 'OFF')}",
            f"-DMLIC_FAST_OUTPUT_DIR={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        build = [cmake, "--build", str(build_dir)]
        if jobs := os.environ.get("MAX_JOBS"):
            build += ["--parallel", jobs]
        for command in (configure, build):
            subprocess.run(command, check=True)


def drop_stale_cache(build_dir: Path) -> None:
    """Removes a cache of another source tree, or that names tools an isolated build took away."""
    cache = build_dir / "CMakeCache.txt"
    if not cache.exists():
        return
    lines = [line for line in cache.read_text().splitlines() if ":" in line and "=" in line]
    paths = {line.partition(":")[0]: Path(line.partition("=")[2]) for line in lines}
    tools = ("CMAKE_COMMAND", "CMAKE_MAKE_PROGRAM", "CMAKE_CXX_COMPILER", "Python_EXECUTABLE")
    moved = paths.get("CMAKE_HOME_DIRECTORY") != ROOT
    if moved or any(not paths.get(tool, cache).exists() for tool in tools):
        shutil.rmtree(build_dir)


# kernels/ is mlic_fast.kernels. A link serves runs from the source tree, but an sdist drops it.
packages = {"mlic_fast.kernels", *find_packages(include=["mlic_fast", "mlic_fast.*"])}

setup(
    packages=sorted(packages),
    package_dir={"mlic_fast.kernels": "kernels"},
    ext_modules=[Extension("mlic_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    setup_requires=[name for name in ("cmake", "ninja") if find_tool(name) is None],
)
