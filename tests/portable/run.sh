#!/usr/bin/env bash
# Builds check.cpp for this machine, for ARM64 and for s390x, which is big-endian; runs the other
# two in an emulator; compares what the three print. With --install, root first gets the packages of
# Debian that this needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

packages=(cmake g++-aarch64-linux-gnu g++-s390x-linux-gnu qemu-user)
lacks_tools() {
  local tool
  for tool in cmake {aarch64,s390x}-linux-gnu-g++ qemu-{aarch64,s390x}; do
    command -v "$tool" >/dev/null || return 0
  done
  return 1
}
if lacks_tools && [ "${1:-}" = --install ]; then
  apt-get update -qq
  apt-get install -qq --yes --no-install-recommends "${packages[@]}" >/dev/null
fi
if lacks_tools; then
  echo "Tools are missing. On Debian: apt-get install ${packages[*]}" >&2
  exit 1
fi

# build FOLDER ARGUMENT ..: static, as the emulators have no libraries to load.
build() {
  cmake -S . -B "$1" -DMLIC_FAST_CHECK=ON -DMLIC_FAST_WERROR=ON -DMLIC_FAST_CUDA=OFF \
    -DCMAKE_EXE_LINKER_FLAGS=-static "${@:2}" >/dev/null
  cmake --build "$1" --parallel >/dev/null
}

build build/portable
build/portable/mlic_check >build/portable/printed
for machine in aarch64 s390x; do
  folder=build/portable-$machine
  build $folder -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$machine \
    -DCMAKE_CXX_COMPILER=$machine-linux-gnu-g++
  qemu-$machine $folder/mlic_check >$folder/printed
  diff build/portable/printed $folder/printed
  echo "$machine computes the same: $(wc -l <$folder/printed) results"
done
