#!/usr/bin/env bash
# All that wants a GPU, in one run: build, bits first, then time. Results go to the folder given
# (default: build/gpu), to be kept with benchmarks/results.py.
#
#     benchmarks/gpu.sh [FOLDER]          PYTHON=python3 chooses the interpreter
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
OUT=${1:-build/gpu}
mkdir -p "$OUT"
failed=0
step() {
  echo "== $1"
  shift
  "$@" || { echo "== failed: $*"; failed=1; }
}

# What the machine's own packages warn of is none of our concern; of failures all are wanted.
export PYTEST_ADDOPTS="-W default --maxfail 20"
command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
against=()
"$PYTHON" -c "import compressai" 2>/dev/null && against=(--against reference)
several=() # most of the time goes into compiling kernels, one for each kind of launch
"$PYTHON" -c "import xdist" 2>/dev/null && several=(-n 8)

MLIC_FAST_CUDA=ON "$PYTHON" setup.py build_ext --inplace >"$OUT/build.log" 2>&1 || {
  tail -n 30 "$OUT/build.log"
  exit 1
}
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total --format=csv

# Nothing is timed before it is right.
step "kernels against the specification" "$PYTHON" -m pytest -q "${several[@]}" tests/kernels
step "range coder" "$PYTHON" -m pytest -q tests/coder/test_device.py
step "engine" "$PYTHON" -m pytest -q tests/engine/test_gpu.py
step "golden streams" "$PYTHON" -m mlic_fast.cli verify --engine gpu
[ "$failed" = 0 ] || exit 1

step "first image, cold and warm caches" bash -c "
  export TRITON_CACHE_DIR=\$(mktemp -d)
  for run in cold warm; do
    $PYTHON - \$run <<'PY'
import sys, time
start = time.perf_counter()
import torch, mlic_fast
codec = mlic_fast.load('demo', device='cuda')
image = torch.zeros(3, 512, 768, dtype=torch.uint8)
codec.decompress(codec.compress(image))
print(f'{sys.argv[1]}: {time.perf_counter() - start:.1f} s to the first image there and back')
PY
  done"
for model in demo mlic_plus_plus mlic_plus mlic; do
  step "bench $model" "$PYTHON" -m mlic_fast.cli bench --model "$model" --device cuda \
    --size 768x512 --size 1920x1080 "${against[@]}" --runs 15 --json "$OUT/bench-$model.json"
done
step "bench mlic_plus_plus, 4K" "$PYTHON" -m mlic_fast.cli bench --model mlic_plus_plus \
  --device cuda --size 3840x2160 --runs 10 --json "$OUT/bench-4k.json"
step "profile encode" "$PYTHON" -m mlic_fast.cli profile --model mlic_plus_plus \
  --device cuda --json "$OUT/profile-encode.json" --trace "$OUT/trace-encode.json"
step "profile decode" "$PYTHON" -m mlic_fast.cli profile --decode --model mlic_plus_plus \
  --device cuda --json "$OUT/profile-decode.json" --trace "$OUT/trace-decode.json"
step "suites" "$PYTHON" benchmarks/suite.py -k bench_gpu --json "$OUT/suite.json"
exit "$failed"
