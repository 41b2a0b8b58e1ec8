#!/usr/bin/env bash
# All that wants a GPU, in stages of a few minutes each: bits first, then time.
#
#     benchmarks/gpu.sh STAGE...          PYTHON=python3 chooses the interpreter
#
#     tests      kernels against their twins and the specification
#     engine     range coder, whole engine, golden streams, profiler
#     sanitize   the range coder's kernels under compute-sanitizer: memcheck, racecheck
#     start      seconds to the first image, with cold and with warm caches
#     kernels    every kernel beside its twin; entropy path, transforms and codec as graphs
#     codec      photo and MLIC++ against the reference, MLIC++ at 3840x2160
#     family     MLIC and MLIC+ against the reference
#     profile    MLIC++ taken apart, both ways
#     all        these, in this order
#
# The package is built first, which takes no time when it is built. A stage that fails ends the run. What
# is measured goes to $OUT (default: build/gpu) and is added to benchmarks/results/<machine>/.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
STAGES=(tests engine sanitize start kernels codec family profile)
failed=0

# What the machine's own packages warn of is none of our concern; of failures all are wanted.
export PYTEST_ADDOPTS="-W default --maxfail 20"
export PATH=$PATH:/usr/local/cuda/bin PYTHONPATH=$PWD
against=()
"$PYTHON" -c "import compressai" 2>/dev/null && against=(--against reference)
several=() # most of the time goes into compiling kernels, one for each kind of launch
"$PYTHON" -c "import xdist" 2>/dev/null && several=(-n 8)

step() {
  echo "== $1 ($(date +%T))"
  shift
  "$@" && return
  echo "== failed: $*"
  failed=1
  return 1
}

# A measurement with --json, and its result kept.
measure() {
  local name=$1
  shift
  step "$name" "$@" --json "$OUT/$name.json" &&
    "$PYTHON" benchmarks/results.py "$OUT/$name.json"
}

build() {
  # The version of the package is read from its metadata, which a copied tree may lack.
  MLIC_FAST_CUDA=ON "$PYTHON" setup.py build_ext --inplace egg_info >"$OUT/build.log" 2>&1 || {
    tail -n 30 "$OUT/build.log"
    exit 1
  }
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total --format=csv
}

tests() {
  step "kernels" "$PYTHON" -m pytest -q "${several[@]}" tests/kernels
}

engine() {
  step "range coder" "$PYTHON" -m pytest -q tests/coder/test_device.py
  step "engine" "$PYTHON" -m pytest -q tests/engine/test_fused.py tests/engine/test_gpu.py
  step "golden streams" "$PYTHON" -m mlic_fast.cli verify --engine gpu
  step "profiler" "$PYTHON" -m pytest -q tests/test_profile.py
}

sanitize() {
  local tool
  for tool in memcheck racecheck; do
    # Without PyTorch's cache every array is an allocation of its own; graphs need the cache.
    step "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$PYTHON" -m pytest -q tests/coder/test_device.py -k "cuda and not graph" ||
      [ "$tool" = memcheck ] || failed=0 # racecheck reports lanes that write the same value
  done
}

start() {
  local caches folder
  folder=$(mktemp -d)
  for caches in cold warm; do
    step "first image, $caches caches" env TRITON_CACHE_DIR="$folder" "$PYTHON" -c "
import time
start = time.perf_counter()
import torch, mlic_fast
codec = mlic_fast.load('photo', device='cuda')
image = torch.zeros(3, 512, 768, dtype=torch.uint8)
codec.decompress(codec.compress(image))
print(f'{time.perf_counter() - start:.1f} s to the first image there and back')
"
  done
  rm -r "$folder"
}

kernels() {
  measure suite "$PYTHON" benchmarks/suite.py -k bench_gpu --repeats 1
}

# bench NAME MODEL ARGUMENT...
bench() {
  local name=$1 model=$2
  shift 2
  measure "$name" "$PYTHON" -m mlic_fast.cli bench --model "$model" --device cuda "$@"
}

codec() {
  local sizes=(--size 768x512 --size 1920x1080)
  bench bench-photo photo "${sizes[@]}" "${against[@]}" --runs 15
  bench bench-mlic_plus_plus mlic_plus_plus "${sizes[@]}" "${against[@]}" --runs 15
  bench bench-4k mlic_plus_plus --size 3840x2160 --runs 10
}

family() {
  local model
  for model in mlic mlic_plus; do
    bench "bench-$model" "$model" --size 768x512 "${against[@]}" --runs 15
  done
}

profile() {
  local way command=("$PYTHON" -m mlic_fast.cli profile --model mlic_plus_plus --device cuda)
  for way in encode decode; do
    [ "$way" = encode ] || command+=(--decode)
    measure "profile-$way" "${command[@]}" --trace "$OUT/trace-$way.json"
  done
}

[ $# -gt 0 ] || set -- help
[ "$1" != all ] || set -- "${STAGES[@]}"
for stage in "$@"; do
  [[ " ${STAGES[*]} " == *" $stage "* ]] || {
    sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p'
    exit 2
  }
done
mkdir -p "$OUT"
build
for stage in "$@"; do
  "$stage"
  [ "$failed" = 0 ] || exit 1
done
