#!/usr/bin/env bash
# Decodes all golden streams with the whole package on an emulated ARM64: Python and PyTorch for it
# come from Debian and PyPI, the module is built here. Needs root, for debootstrap, and some minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=$PWD/build/golden
root=$folder/root
site=$folder/site
core=build/portable-aarch64/libmlic_core.a  # of run.sh
python=${PYTHON:-.venv/bin/python}

if ! command -v debootstrap >/dev/null || [ ! -f $core ]; then
  echo "First tests/portable/run.sh; on Debian: apt-get install debootstrap" >&2
  exit 1
fi
if [ ! -d "$site/torch" ]; then
  rm -rf "$folder"
  # Unpacked, not installed: nothing of it runs but Python. From where this machine has its packages.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' | sed -n 1p)
  debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,libpython3-dev,libgomp1 \
    bookworm "$root" "$mirror" >/dev/null
  for package in "$root"/var/cache/apt/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar --extract --keep-directory-symlink -C "$root"
  done
  # The newest PyTorch whose wheel of PyPI for ARM64 needs no CUDA. (pip would look for what it needs
  # on this machine.)
  "$python" -m pip install --quiet --target "$site" --only-binary :all: --python-version 3.11 \
    --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 --no-deps \
    torch==2.10.0 filelock fsspec jinja2 markupsafe mpmath networkx sympy typing_extensions \
    numpy==1.26.4 pillow safetensors tqdm
  mkdir "$site/mlic_fast-0.dist-info"
  printf 'Metadata-Version: 2.1\nName: mlic_fast\nVersion: 0\n' >"$site/mlic_fast-0.dist-info/METADATA"
fi

module=mlic_fast/_C.cpython-311-aarch64-linux-gnu.so
trap 'rm -f $module' EXIT
aarch64-linux-gnu-g++ -shared -fPIC -O2 -std=c++17 -fvisibility=hidden -Icsrc \
  -I"$root/usr/include/python3.11" -I"$root/usr/include" \
  -I"$("$python" -c 'import pybind11; print(pybind11.get_include())')" \
  csrc/bindings.cpp csrc/exact/bindings.cpp csrc/rans/gpu/*.cpp $core -o $module

qemu-aarch64 -L "$root" -E PYTHONHOME="$root/usr" -E PYTHONPATH="$PWD:$site" \
  "$root/usr/bin/python3.11" -m mlic_fast.cli verify --engine cpu:neon
